"""What the tables and pictures of calibration, corruptions and transfer have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ssl_lightning.evaluation.estimates import Estimate

NOTHING = "-"
TABLE_WIDTH = 150  # characters; a narrower terminal wraps the lines, but no figure is cut
Cells = tuple[str, ...]


def estimate_text(found: Estimate | None, places: int = 2, *, sign: bool = False) -> str:
    """Write a figure with its standard error.

    Example:
        >>> estimate_text(Estimate(8.512, 0.279)), estimate_text(Estimate(1, 0.1), 1, sign=True)
        ('8.51 ± 0.28', '+1.0 ± 0.1')
    """
    if found is None:
        return NOTHING
    value = f"{found.value:{'+' if sign else ''}.{places}f}"
    return f"{value} ± {found.se:.{places}f}"


def number_text(value: float | None, places: int = 1) -> str:
    """Write a number that may be missing.

    Example:
        >>> number_text(103.26), number_text(None)
        ('103.3', '-')
    """
    return NOTHING if value is None else f"{value:.{places}f}"


def plain_table(title: str, head: Cells, rows: Sequence[Cells], caption: str = "") -> Table:
    """Lay out cells; the first column is of names, the others of figures. No cell is cut."""
    table = Table(title=title, caption=caption or None, box=SIMPLE_HEAD)
    for number, name in enumerate(head):
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(name, justify=justify, no_wrap=not number, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
