"""The same search as a sweep of Weights & Biases."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssl_lightning.files import replacing
from ssl_lightning.sweep.places import places
from ssl_lightning.sweep.space import Space

PROGRAM = "ssl-lightning"
RUN = "$WANDB_RUN_ID"
LOGGER = "lightning.pytorch.loggers.WandbLogger"


def wandb_sweep(
    config: Mapping[str, Any],
    files: Sequence[str],
    space: Space,
    output: str,
    name: str,
    error: str,
) -> dict[str, Any]:
    """Return the content of a sweep file: Bayesian search for the lowest error in a space.

    Its command is ``fit`` with the same configs. A shell fills in the number of the run, so that
    each run has a folder of its own.

    Args:
        config: resolved config, as plain values.
        files: of the config.
        space: what is searched.
        output: folder in which runs get their folders.
        name: of the sweep.
        error: name of the logged metric to minimise.

    Example:
        >>> space = Space.from_data({"model.lr": {"log": [1e-4, 1e-1]}}, "space")
        >>> trainer = {"default_root_dir": "runs/a", "logger": None}
        >>> found = wandb_sweep({"trainer": trainer}, ["a.yaml"], space, "runs/s", "s", "val/error")
        >>> found["command"][2]
        'exec ssl-lightning fit --config a.yaml --trainer.default_root_dir=runs/s/wandb-$...
        >>> found["parameters"]
        {'model.lr': {'distribution': 'log_uniform_values', 'min': 0.0001, 'max': 0.1}}
    """
    own = places(config, f"{output}/wandb-{RUN}")
    if not any(LOGGER in str(entry) for entry in loggers(config)):
        own = {path: value for path, value in own.items() if not path.startswith("trainer.logger")}
        own |= {
            "trainer.logger": LOGGER,
            "trainer.logger.init_args.save_dir": f"{output}/wandb-{RUN}/logs",
        }
    flags = [f"--config {shlex.quote(file)}" for file in files]
    flags += [f"--{path}={quoted(value)}" for path, value in own.items()]
    return {
        "program": PROGRAM,
        "name": name,
        "method": "bayes",
        "metric": {"name": error, "goal": "minimize"},
        "parameters": {path: found.for_wandb() for path, found in space.dimensions.items()},
        "command": ["sh", "-c", f'exec {PROGRAM} fit {" ".join(flags)} "$@"', "fit", "${args}"],
    }


def loggers(config: Mapping[str, Any]) -> list[Any]:
    """Return the loggers of a config."""
    given = config["trainer"].get("logger")
    return given if isinstance(given, list) else [given]


def quoted(value: str) -> str:
    """Return a word for a shell, which fills in the number of the run.

    Example:
        >>> quoted("runs/my sweep/wandb-$WANDB_RUN_ID/logs")
        "'runs/my sweep/wandb-'$WANDB_RUN_ID/logs"
    """
    return RUN.join(shlex.quote(part) if part else "" for part in value.split(RUN))


def write_wandb_file(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a sweep file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(dict(content), sort_keys=False, width=1000))
