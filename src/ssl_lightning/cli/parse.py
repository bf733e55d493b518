"""Command-line arguments of a function: its signature and docstring are the parser."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser

from ssl_lightning.cli.examples import program, shown
from ssl_lightning.cli.parser_errors import OneSentenceParser
from ssl_lightning.cli.short_help import ShortHelp, usage_of

IMPORT = "import"


def call(
    function: Callable[..., Any],
    name: str,
    arguments: list[str],
    by_hand: Mapping[str, Mapping[str, Any]] | None = None,
    imports: bool = True,
) -> Any:
    """Parse ``arguments`` for ``function`` and call it; ``--help`` shows its docstring.

    Args:
        function: whose parameters become arguments: positional if they have no default.
        name: of the command.
        arguments: to parse.
        by_hand: argument as it is typed, such as ``"runs"`` or ``"--all"`` -> settings of
            :meth:`argparse.ArgumentParser.add_argument`, for parameters that need others than
            their signature gives.
        imports: whether modules to import may be named.
    """
    parser = CommandParser(
        prog=f"{program()} {name}",
        description=described(function),
        formatter_class=ShortHelp,
        allow_abbrev=False,
    )
    parser.example = shown(name)
    given = by_hand or {}
    for argument, settings in given.items():
        parser.add_argument(argument, **settings)
    skipped: set[str | int] = {argument.lstrip("-") for argument in given}
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=skipped)
    if imports:
        add_import(parser)
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:  # `--masked` for `--masked true`
            action.nargs, action.const = "?", True
    parser.usage = usage_of(parser)
    values = vars(parser.parse_args(arguments))
    import_modules(values.pop(IMPORT, None))
    return function(**values)


class CommandParser(OneSentenceParser):
    """Ends its help with an example."""

    example = ""

    def format_help(self, *formatter: Any) -> str:
        """Return the help."""
        return f"{super().format_help(*formatter)}{self.example}"


def described(function: Callable[..., Any]) -> str:
    """Return what a function's docstring says before its arguments."""
    return inspect.cleandoc(function.__doc__ or "").partition("\n\nArgs:")[0].replace("``", "`")


def add_import(parser: ArgumentParser) -> None:
    """Let a parser take the names of modules to import."""
    parser.add_argument(
        f"--{IMPORT}",
        type=str | list[str] | None,
        default=None,
        help="module or modules of your own to import first, such as one that calls "
        "`register_backbone`",
    )


def import_modules(given: str | list[str] | None) -> None:
    """Import the modules that the user names, so that what they register is known.

    Raises:
        ValueError: if one is not found.
    """
    for name in [given] if isinstance(given, str) else given or []:
        try:
            import_module(name)
        except (ImportError, TypeError, ValueError) as error:
            raise ValueError(
                f"--{IMPORT}: cannot import {name!r}: {error}. Where it is in a folder of its own, "
                "name that in PYTHONPATH."
            ) from error
