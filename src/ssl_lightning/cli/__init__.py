"""The command line. Nothing heavy is imported before the command is known."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from importlib import import_module
from traceback import walk_tb

from ssl_lightning.progress import shown

COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("fit", "train a backbone with penalties (LightningCLI)"),
    "validate": ("fit", "measure a checkpoint on the validation split"),
    "test": ("fit", "measure a checkpoint on the test split"),
    "predict": ("fit", "class probabilities of a checkpoint"),
    "compact": ("compact", "write the smaller network that computes the same as a checkpoint"),
    "sensitivity": ("sensitivity", "the error after removing shares of each layer's channels"),
    "prune": ("prune", "remove the least important channels of a network, without training"),
    "benchmark": ("benchmark", "measure dense, masked and compact networks side by side"),
    "evaluate": (
        "evaluate",
        "calibration, errors on corrupted images, and transfer to other data",
    ),
    "export": ("export", "write a network for onnxruntime, OpenVINO or torch.export"),
    "report": ("report", "tables and figures of a benchmark"),
    "sparsify": (
        "sparsify",
        "train down to a budget, compact, measure and export, beside controls",
    ),
    "compare": (
        "compare",
        "one network and budget with every method, side by side",
    ),
    "sweep": ("sweep", "search hyperparameters: the front of validation error over cost"),
    "zoo": ("zoo", "list, show, verify, publish, push and pull compact networks"),
}
"""Command -> module of this package whose ``run(arguments)`` carries it out, and what it does."""

TRAINED = ("fit", "validate", "test", "predict")
"""Commands whose progress Lightning shows, or a line for each epoch."""
SEVERAL_RUNS = ("sparsify", "compare", "sweep")
"""Commands that train several times: a bar for all would be in the way of each one's."""
USAGE = """usage: {program} COMMAND [ARGUMENTS]

Structured sparsity learning: train sparse, compact exactly, measure.

commands:
{commands}

`{program} COMMAND --help` says more. SSL_TRACEBACK=1 shows where an error came from.

begin with (MNIST images ship with the package):
  {program} {fit}
  {program} {compact}
  {program} {benchmark}
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 failed, 2 wrong usage.

    ``zoo verify`` has one more: 3 if something could not be measured here.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from ssl_lightning import __version__

        sys.stdout.write(f"ssl-lightning {__version__}\n")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        from ssl_lightning.suggest import nearest

        sys.stderr.write(f"error: unknown command {name!r}. {nearest(name, COMMANDS)}\n")
        return 2
    return carry_out(name, arguments[1:])


def carry_out(name: str, arguments: list[str]) -> int:
    """Run a command; a mistake of the user becomes one paragraph on stderr, without traceback.

    A command may return an exit status of its own; None stands for 0.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # of nvcc without GPU
    try:
        with nullcontext() if name in TRAINED else shown(bars=name not in SEVERAL_RUNS):
            status = import_module(f"{__name__}.{COMMANDS[name][0]}").run(name, arguments)
    except Exception as error:
        own = own_error(error)
        if not is_users(own) or os.environ.get("SSL_TRACEBACK"):
            raise
        sys.stderr.write(f"error: {message_of(own)}\n")
        return 1
    return int(status or 0)


def message_of(error: BaseException) -> str:
    """Return what an error says; where a file or folder is in the way, without a number."""
    in_the_way = (FileExistsError, NotADirectoryError, IsADirectoryError)
    if isinstance(error, in_the_way) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}. Give another path."
    return str(error)


def own_error(error: Exception) -> BaseException:
    """Return the error of this package behind one of another library, if there is one.

    The parser of the command line puts what a callback or data module says of its arguments into
    a long list of all that it tried.
    """
    cause: BaseException | None = error
    while cause is not None:
        raised_in = [
            frame.f_globals.get("__name__", "") for frame, _ in walk_tb(cause.__traceback__)
        ]
        if raised_in and raised_in[-1].startswith("ssl_lightning."):
            return cause
        cause = cause.__cause__
    return error


def is_users(error: BaseException) -> bool:
    """Whether an error is about what the user gave, not a bug."""
    kinds = (
        ValueError,
        FileExistsError,
        FileNotFoundError,
        NotADirectoryError,
        PermissionError,
    )
    names = ("MisconfigurationException", "ConnectError", "ConnectTimeout", "DiskFullError")
    return isinstance(error, kinds) or type(error).__name__ in names


def usage() -> str:
    """Return the overview of all commands."""
    from ssl_lightning.cli.examples import EXAMPLES, program

    rows = "\n".join(f"  {name:<11} {what}" for name, (_, what) in COMMANDS.items())
    return USAGE.format(program=program(), commands=rows, **EXAMPLES)
