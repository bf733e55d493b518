"""Which networks of their own this user trained, and in which run folders.

``compact RUN/checkpoints/last.ckpt`` has to import the network's class. That a checkpoint names
one is no reason to: it may come from anywhere. That this user had ``fit`` train it, in this very
folder, is one. So ``fit`` writes it down, in the user's own folder and not in the run's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from ssl_lightning.files import in_turn, replacing


def registry() -> Path:
    """Return the file: below ``$XDG_DATA_HOME`` or ``~/.local/share``."""
    home = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return home / "ssl_lightning" / "own_runs.json"


def remember_run(folder: Path, network: nn.Module) -> None:
    """Write down that a run of this user trains a network of their own.

    Runs whose folders do not exist any more are forgotten. Where nothing can be written, nothing
    is: commands then ask for the class.

    Args:
        folder: of the run.
        network: that the user's config names by its class.
    """
    module, name = type(network).__module__, type(network).__qualname__
    origin = getattr(sys.modules[module.partition(".")[0]].__spec__, "origin", None)
    if origin is None:  # a folder without code of its own may be any
        return
    known = {"class": f"{module}.{name}", "origin": str(Path(origin).resolve())}
    with suppress(OSError), in_turn(registry().parent):
        runs = {path: run for path, run in read().items() if Path(path).is_dir()}
        with replacing(registry()) as temporary:
            temporary.write_text(
                json.dumps({**runs, str(folder.resolve()): known}, indent=1) + "\n"
            )


def is_own_run(path: Path, name: str) -> bool:
    """Whether this user trained the network of that import path in the folder that holds a file.

    The module must also be found where it was then.
    """
    for folder in path.resolve().parents:
        run = read().get(str(folder))
        if isinstance(run, Mapping) and run.get("class") == name:
            spec = find_spec(name.partition(".")[0])
            origin = None if spec is None else spec.origin
            return origin is not None and str(Path(origin).resolve()) == run.get("origin")
    return False


def read() -> dict[str, Any]:
    """Return run folder -> class and origin of its module; nothing if the file is damaged."""
    try:
        runs = json.loads(registry().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return runs if isinstance(runs, dict) else {}
