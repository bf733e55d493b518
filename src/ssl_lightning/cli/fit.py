"""fit, validate, test and predict: their help, for which nothing heavy is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ssl_lightning.cli.fit_help import FULL_HELP, help_of


def run(name: str, arguments: Sequence[str]) -> None:
    """Show the help, or run one of LightningCLI's subcommands."""
    if {"-h", "--help"} & set(arguments) and FULL_HELP not in arguments:
        from ssl_lightning.cli import COMMANDS

        sys.stdout.write(help_of(name, COMMANDS[name][1]))
        sys.exit(0)
    from ssl_lightning.cli.training import run as train

    train(name, ["--help" if argument == FULL_HELP else argument for argument in arguments])
