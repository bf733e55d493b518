"""evaluate: what pruning does to generalisation, of several networks side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ssl_lightning.cli.examples import program, shown
from ssl_lightning.cli.parse import call
from ssl_lightning.suggest import pick

COMMANDS = {
    "calibration": "calibration",
    "corruption": "corruption",
    "transfer": "transfer",
}
"""What is measured -> module of this package with a function of that name."""
USAGE = """usage: {program} {name} WHAT NETWORK [NETWORK ...] [options]

What pruning does to generalisation, of several networks side by side. A NETWORK
is a checkpoint, a folder that `compact` wrote, or zoo:<name>. WHAT is one of:

  calibration  whether confidences can be trusted, which classes suffer
  corruption   errors on images with fifteen common corruptions
  transfer     a linear probe of the features, or fine-tuning, on other data

`{program} {name} calibration --help` says more.
"""
NETWORKS: dict[str, dict[str, Any]] = {
    "networks": {
        "nargs": "+",
        "metavar": "NETWORK",
        "help": "checkpoints that `fit` wrote, folders that `compact` wrote, or zoo:<name>",
    }
}
TO: dict[str, dict[str, Any]] = {
    "--to": {
        "required": True,
        "help": "the other data, such as CIFAR10DataModule or imagenette, or a config whose `data` "
        "names it; images are scaled to the size that a network takes",
    }
}
BY_HAND = {"transfer": {**NETWORKS, **TO}}
"""What is measured -> arguments that its function's signature cannot express, if others."""


def run(name: str, arguments: list[str]) -> None:
    """Carry out the command.

    Raises:
        ValueError: if what to measure is missing or unknown.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        text = USAGE.format(program=program(), name=name) + shown(name)
        (sys.stdout if arguments else sys.stderr).write(text)
        raise SystemExit(0 if arguments else 2)
    what = arguments[0]
    module = import_module(f"ssl_lightning.cli.{pick('evaluation', what, COMMANDS)}")
    function: Callable[..., Any] = getattr(module, what)
    call(function, f"{name} {what}", arguments[1:], BY_HAND.get(what, NETWORKS))
