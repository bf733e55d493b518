"""Where a trial writes: folders of its own, whatever the config that it was made from says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

ROOT = "trainer.default_root_dir"


def places(config: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return the entries of a config that say where a run writes, for a run in ``folder``.

    What is below the config's own run folder is at the same place below the new one; checkpoints
    that are elsewhere go to ``checkpoints``, logs to ``logs``.

    Args:
        config: resolved config of a run, as plain values.
        folder: of the new run.

    Returns:
        Dotted path -> new value.

    Example:
        >>> keep = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "runs/a/best"}}
        >>> logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "runs"}}
        >>> trainer = {"default_root_dir": "runs/a", "callbacks": [keep], "logger": logger}
        >>> for path, value in places({"trainer": trainer}, "sweep/trial-0000").items():
        ...     print(path, value)
        trainer.default_root_dir sweep/trial-0000
        trainer.callbacks.0.init_args.dirpath sweep/trial-0000/best
        trainer.logger.init_args.save_dir sweep/trial-0000/logs
    """
    trainer = config["trainer"]
    root = os.path.normpath(trainer["default_root_dir"])
    found = {ROOT: folder}
    for path, arguments in objects(trainer, "callbacks"):
        for name, value in arguments.items():
            moved = below(root, value, folder)
            if moved is None and name == "dirpath" and value is not None:
                moved = f"{folder}/checkpoints"
            if moved is not None:
                found[f"{path}.{name}"] = moved
    for path, arguments in objects(trainer, "logger"):
        if "save_dir" in arguments:
            found[f"{path}.save_dir"] = f"{folder}/logs"
    return found


def objects(trainer: Mapping[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and arguments of the object, or the objects of the list, that an option gives."""
    given = trainer.get(name)
    entries = {f".{i}": entry for i, entry in enumerate(given)} if isinstance(given, list) else None
    for suffix, entry in (entries or {"": given}).items():
        if isinstance(entry, dict) and entry.get("init_args"):
            yield f"trainer.{name}{suffix}.init_args", entry["init_args"]


def below(root: str, value: Any, folder: str) -> str | None:
    """Return the place in ``folder`` of what is in ``root``; None if it is not there.

    Example:
        >>> below("runs/a", "runs/a/compact", "new"), below("runs/a", "runs/ab", "new")
        ('new/compact', None)
    """
    if not isinstance(value, str):
        return None
    path = os.path.normpath(value)
    if path != root and not path.startswith(f"{root}{os.sep}"):
        return None
    return f"{folder}{path[len(root) :]}"
