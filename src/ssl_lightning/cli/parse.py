"""Command-line arguments of a function: its signature and docstring are the parser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ssl_lightning.cli.parser_errors import OneSentenceParser


def call(
    function: Callable[..., Any],
    name: str,
    arguments: list[str],
    by_hand: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Parse ``arguments`` for ``function`` and call it; ``--help`` shows its docstring.

    Args:
        function: whose parameters become arguments: positional if they have no default.
        name: of the command.
        arguments: to parse.
        by_hand: argument as it is typed, such as ``"runs"`` or ``"--all"`` -> settings of
            :meth:`argparse.ArgumentParser.add_argument`, for parameters that need others than
            their signature gives.
    """
    summary = (function.__doc__ or "").split("\n\n")[0]
    parser = OneSentenceParser(prog=f"ssl-lightning {name}", description=summary)
    given = by_hand or {}
    for argument, settings in given.items():
        parser.add_argument(argument, **settings)
    skipped: set[str | int] = {argument.lstrip("-") for argument in given}
    parser.add_function_arguments(function, as_positional=True, skip=skipped)
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:  # `--masked` for `--masked true`
            action.nargs, action.const = "?", True
    return function(**vars(parser.parse_args(arguments)))
