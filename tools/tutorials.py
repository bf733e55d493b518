"""Run the Python blocks of a page and see what they print.

``python tools/tutorials.py docs/tutorials/timm.md`` runs them in a temporary folder, in the order
in which they stand, and writes what each prints below it, as a block of text. The tests compare
the two with all numbers masked, since those differ between machines.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


class Ran(NamedTuple):
    """A block of code, what stands below it, and what it printed."""

    code: str
    shown: str
    printed: str


def run(page: Path) -> list[Ran]:
    """Run the blocks of a page in one namespace, in the current folder."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    ran = []
    for match in BLOCK.finditer(page.read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(match["code"], str(page), "exec"), namespace)
        ran.append(Ran(match["code"], match["output"] or "", printed.getvalue()))
    return ran


def masked(text: str) -> str:
    """Return a text in which a machine's numbers, and the widths of columns, do not matter.

    Example:
        >>> masked("error  1.22 %")
        'error # %'
    """
    return re.sub(r" +", " ", NUMBER.sub("#", text))


def with_outputs(page: Path, ran: list[Ran]) -> str:
    """Return the text of a page with what its blocks printed below them."""
    blocks = iter(ran)

    def shown(match: re.Match[str]) -> str:
        block = next(blocks)
        output = f"\n```text\n{block.printed}```\n" if block.printed else ""
        return f"```python\n{block.code}```\n{output}"

    return BLOCK.sub(shown, page.read_text())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in sys.argv[1:]:
        path = Path(name).resolve()
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            path.write_text(with_outputs(path, run(path)))
        print(os.path.relpath(path))
