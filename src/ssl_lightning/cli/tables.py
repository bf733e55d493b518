"""Tables in the terminal."""

from collections.abc import Collection

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDTH = 120  # characters, where the output is no terminal
WIDEST = 1000

Rows = list[tuple[str, ...]]


def show_table(
    title: str, columns: tuple[str, ...], rows: Rows, whole: Collection[str] = ()
) -> None:
    """Print a table; long cells are folded, never cut.

    Args:
        title: above it; none if empty.
        columns: their heads.
        rows: their cells.
        whole: heads of columns of which no cell is folded while others can be.
    """
    table = Table(title=title or None, box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in whole)
    for row in rows:
        table.add_row(*map(Text, row))
    screen = console()
    least = Measurement.get(screen, screen.options.update(width=WIDEST), table).minimum
    if least > screen.width:  # lines that the terminal wraps are better than cells that are cut
        screen.width = least
    screen.print(table)


def console() -> Console:
    """Return the terminal, or a wide one if the output is no terminal."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=WIDTH)


def say(line: str) -> None:
    """Print a line as it is."""
    console().print(line, highlight=False, markup=False, soft_wrap=True)
