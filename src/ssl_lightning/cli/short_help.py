"""The parser's help of more than a thousand lines, as one or two lines for each option."""

from __future__ import annotations

import re
import textwrap

FULL_HELP = "--help-all"
WIDTH = 100
COLUMN = 38
HINT = (
    f"{FULL_HELP} shows every option whole; --trainer.callbacks.help CLASS, --data.help CLASS and "
    "--model.optimizer.help CLASS the options of a class."
)


def shortened(text: str) -> str:
    r"""Return the parser's help with the first sentence of each option only.

    Options that show the help of a class are omitted: one line at the end names them.

    Example:
        >>> print(shortened("options:\n  --x X   How much. More. (type: int, default: 3)\n"))
        options:
          --x X                               How much. (default: 3)
        <BLANKLINE>
        --help-all shows every option whole; --trainer.callbacks.help CLASS, ...
    """
    lines: list[str] = []
    for block in blocks(text):
        if not block[0].startswith("  -"):
            lines += block
            continue
        option, _, rest = block[0].strip().partition("  ")
        if ".help" not in option:
            lines += one_option(option, " ".join([rest, *block[1:]]))
    return "\n".join([*lines, "", *textwrap.wrap(HINT, WIDTH), ""])


def blocks(text: str) -> list[list[str]]:
    """Split the help into options with their descriptions, and single lines between them.

    Of what stands between, the first line of each paragraph that ends in a colon is a title; the
    paragraphs below titles are docstrings, which the reference shows better.
    """
    found: list[list[str]] = []
    in_option = docstring = False
    for line in text.splitlines():
        if line.startswith("  -"):
            found.append([line])
            in_option, docstring = True, False
        elif in_option and line.startswith(" " * 8):
            found[-1].append(line)
        elif not line.strip():
            in_option = False
            docstring = docstring and bool(found)
        elif not docstring:
            found += [[""], [line]] if found else [[line]]
            in_option, docstring = False, True
    return found


def one_option(option: str, description: str) -> list[str]:
    """Return the lines of one option."""
    option = option.partition(", --")[0] if "+ " in option else option
    words = " ".join(description.split())
    default = re.search(r".*default: ([^,()]{1,40})[,)]", words)
    sentence = re.split(r"(?<=[^.][.:]) | \(type:|\(required", words)[0].rstrip(":")
    value = f" (default: {default.group(1)})" if default else ""
    indent = " " * COLUMN
    head = f"  {option}"
    sentence = textwrap.shorten(sentence, 160, placeholder=" ...")
    body = textwrap.wrap(sentence + value, WIDTH - COLUMN) or [""]
    if len(head) < COLUMN - 1:
        return [f"{head:<{COLUMN}}{body[0]}", *(indent + line for line in body[1:])]
    return [head, *(indent + line for line in body)]
