"""What the commands that measure something fixed do with the record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console, RenderableType

from ssl_lightning.evaluation.corruption_record import CorruptionRecord
from ssl_lightning.evaluation.transfer_record import TransferRecord
from ssl_lightning.measure.serial import Record

R = TypeVar("R", bound=Record)
C = TypeVar("C", TransferRecord, CorruptionRecord)


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
    record: R,
    table: RenderableType,
    draw: Callable[[R, Path], None],
    output: str | None,
    width: int,
) -> None:
    """Print the table; write record and picture.

    Args:
        record: what was measured.
        table: it laid out, in one table or several.
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


def continued(record: C, output: str | None, keys: Mapping[str, str]) -> C:
    """Return what is stored of an interrupted measurement, or the record as it is given.

    Args:
        record: without rows: the conditions of the measurement, and the title.
        output: file that is written after each step.
        keys: network -> text that is equal for the same weights and data.

    Raises:
        ValueError: if the file holds a measurement under other conditions, or of other networks or
            data of the same name.
    """
    if output is None or not Path(output).is_file():
        return record
    found = record.load(output)
    given, stored = conditions(record), conditions(found)
    if given != stored:
        other = [name for name in given if given[name] != stored.get(name)]
        raise ValueError(
            f"--output: {output} holds a measurement with another {', '.join(other)}, so it cannot "
            "be continued. Give another file, or remove that one."
        )
    for row in found.rows:
        if row.key is not None and keys.get(row.network, row.key) != row.key:
            raise ValueError(
                f"--output: {output} holds figures of another {row.network}, or of other data: its "
                "weights, or how its images are read, have changed since. Give another file, or "
                "remove that one."
            )
    return replace(found, title=record.title)


def conditions(record: Record) -> dict[str, Any]:
    """Return all of a record but its rows and its title, as JSON holds it."""
    plain = json.loads(json.dumps(record.to_dict()))
    return {name: value for name, value in plain.items() if name not in ("rows", "title")}
