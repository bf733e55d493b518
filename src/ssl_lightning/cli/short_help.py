"""The help of a command, short enough to read: options in one list, without Python's types."""

from __future__ import annotations

import argparse
import re
import shutil
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

WIDEST, COLUMN = 100, 26
"""Characters of a line, at most; where what is said of an option begins, at most."""
UNSAID: tuple[Any, ...] = (None, False, argparse.SUPPRESS, [])
"""Defaults that go without saying."""


def text_width() -> int:
    """Return how long lines may be."""
    return min(shutil.get_terminal_size().columns, WIDEST)


class PlainHelp(argparse.HelpFormatter):
    """Lays help out like that of all commands."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, **{"max_help_position": COLUMN, "width": text_width(), **settings})


class ShortHelp(PlainHelp, DefaultHelpFormatter):
    """Says what an option does and its default, as people write it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        """Return the text; ``%(default)s`` in it is replaced later."""
        if isinstance(action, argparse._HelpAction):
            return "show this"
        text = (action.help or "").replace("``", "`")
        positional = not action.option_strings
        if positional or action.required or action.default in UNSAID or "default" in text:
            return text
        text = text if text.endswith("..") else text.removesuffix(".")
        return f"{text} (default: %(default)s)"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Leave out that a list may be added to, and the values of what is switched on."""
        text: str = super()._format_action_invocation(action)
        text = re.sub(r", --[\w.]+\+ .*", "", text)
        if action.default is True:
            return text.replace("[{true,false}]", "{true,false}")
        return text.removesuffix(" [{true,false}]")


def usage_of(parser: ArgumentParser) -> str:
    """Return the line of usage: what has to be given, and that there are options.

    Example:
        >>> parser = ArgumentParser(prog="ssl-lightning prune")
        >>> for name in ("network", "--macs"):
        ...     _ = parser.add_argument(name)
        >>> _ = parser.add_argument("--to", required=True)
        >>> usage_of(parser)
        'ssl-lightning prune NETWORK --to TO [options]'
    """
    words = [parser.prog]
    for action in sorted(parser._actions, key=lambda action: bool(action.option_strings)):
        name = str(action.metavar or action.dest.upper())
        if not action.option_strings:
            several = {"+": "{0} [{0} ...]", "*": "[{0} ...]", "?": "[{0}]"}
            words.append(several.get(str(action.nargs), "{0}").format(name))
        elif action.required:
            words.append(f"{action.option_strings[0]} {name}")
    return " ".join([*words, "[options]"])
