"""Data that commands measure errors on, as the ``data`` section of a config names it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from ssl_lightning.data import named_class


def data_section(config: str | None, folder: Path | None, otherwise: str) -> dict[str, Any] | None:
    """Return the ``data`` section of a config, or None if there is nothing to measure on.

    A config that the user did not name, which lies beside the network, may only name the library's
    data modules: no code is imported because a file names it.

    Args:
        config: that the user names; ``"none"`` for no data.
        folder: that may hold a ``config.yaml``, which is taken if the user names none.
        otherwise: what else the user may do, for the message.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no such section.
    """
    beside = None if folder is None else folder / "config.yaml"
    path = beside if config is None else Path(config)
    if config == "none" or path is None or (config is None and not path.is_file()):
        return None
    if not path.is_file():
        raise FileNotFoundError(f"--data: no file {path}.")
    content = yaml.safe_load(path.read_text())
    if not isinstance(content, dict) or "class_path" not in (content.get("data") or {}):
        raise ValueError(
            f"{path} has no `data: {{class_path: ...}}` section. Give a config that `fit` takes"
            f"{otherwise}."
        )
    section: dict[str, Any] = content["data"]
    if config is None and named_class(str(section["class_path"])) is None:
        Console().print(
            f"Errors are not measured: {path} names the data module {section['class_path']}. To "
            f"import it, give `--data {path}`."
        )
        return None
    return section


def make_data(section: dict[str, Any]) -> Any:
    """Return the data module that a config's ``data`` section names, with its data at hand."""
    package, _, name = section["class_path"].rpartition(".")
    module = import_module(package or "ssl_lightning.data")
    data = getattr(module, name)(**section.get("init_args", {}))
    data.prepare_data()
    return data
