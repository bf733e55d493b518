"""Command-line arguments of a function: its signature and docstring are the parser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser


def call(function: Callable[..., Any], name: str, arguments: list[str]) -> Any:
    """Parse ``arguments`` for ``function`` and call it; ``--help`` shows its docstring."""
    summary = (function.__doc__ or "").split("\n\n")[0]
    parser = ArgumentParser(prog=f"ssl-lightning {name}", description=summary)
    parser.add_function_arguments(function, as_positional=True)
    return function(**vars(parser.parse_args(arguments)))
