"""What the commands that measure something fixed do with the record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from ssl_lightning.measure.serial import Record

R = TypeVar("R", bound=Record)


def check_output(output: str | None) -> None:
    """Refuse an output that is no JSON file, before anything is measured.

    Raises:
        ValueError: saying what to give.
    """
    if output is not None and (Path(output).suffix != ".json" or Path(output).is_dir()):
        raise ValueError(
            f"--output: expected a file that ends in .json, got {output}. The picture is written "
            "beside it, with .png."
        )


def finish(
    record: R, table: Table, draw: Callable[[R, Path], None], output: str | None, width: int
) -> None:
    """Print the table; write record and picture.

    Args:
        record: what was measured.
        table: it laid out.
        draw: writes the picture to a path.
        output: file for the record; the picture's name ends in ``.png``.
        width: characters that the table needs.
    """
    console = Console()
    console = console if console.width >= width else Console(width=width)
    console.print(table)
    if output is not None:
        path = Path(output)
        record.save(path)
        draw(record, path.with_suffix(".png"))
        console.print(f"Wrote {path} and {path.with_suffix('.png')}")
