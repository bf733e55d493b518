"""Per-epoch figures of a run, from the files that its CSV logger wrote. Imports no torch."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

LOG, CONFIG = "metrics.csv", "config.yaml"
VERSION = re.compile(r"version_(\d+)")
"""Name of the folder of a logger's run."""
LEFT_OUT = ("epoch", "step", "test/")
"""Columns, by their beginning, that say nothing about an epoch of training."""

Rows = list[dict[str, str]]


def read_log(folder: Path, epochs: int) -> str | None:
    """Return the last value of every figure in every epoch, as CSV with one row per epoch.

    A run that was resumed has several logs; where two hold the same epoch, the later one counts.
    One that begins with the first step is of another run, whose figures replace the earlier ones;
    those of `validate` and `test`, which train nothing, and of runs in folders below are left out.

    Args:
        folder: of the run; logs are looked for in it and below.
        epochs: that the run trained.

    Returns:
        CSV with the column ``epoch`` and then the figures by name, or None if no log holds a
        figure for every epoch.
    """
    by_epoch = values_by_epoch(folder)
    rows = [by_epoch.get(epoch, {}) for epoch in range(epochs)]
    if not rows or not all(rows):
        return None
    names = sorted({name for row in rows for name in row})
    text = io.StringIO()
    writer = csv.DictWriter(text, ["epoch", *names], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"epoch": epoch, **row} for epoch, row in enumerate(rows))
    return text.getvalue()


def values_by_epoch(folder: Path) -> dict[int, dict[str, str]]:
    """Return epoch -> figure -> its last value, of all logs of a run, the earliest first."""
    found: dict[int, dict[str, str]] = {}
    for rows in logs_of_last_run(folder).values():
        for epoch, row in last_values(rows).items():
            found.setdefault(epoch, {}).update(row)
    return found


def logs_of_last_run(folder: Path) -> dict[Path, Rows]:
    """Return log -> its rows, of all parts of the run that was begun last in a folder."""
    found: dict[Path, Rows] = {}
    for log in logs_of(folder):
        rows = rows_of(log)
        if is_of_training(rows):
            found = {} if min(last_values(rows)) == 0 else found
            found[log] = rows
    return found


def logs_of(folder: Path) -> list[Path]:
    """Return the logs in a folder and below, but for folders of other runs, in their order."""
    logs = (log for log in folder.rglob(LOG) if not in_other_run(log, folder))
    return sorted(logs, key=version)


def in_other_run(log: Path, folder: Path) -> bool:
    """Whether a log lies below a folder with a config of its own."""
    between = [log.parent, *log.parent.parents]
    between = between[: between.index(folder)]
    return any(
        (place / CONFIG).is_file() and not VERSION.fullmatch(place.name) for place in between
    )


def is_of_training(rows: Rows) -> bool:
    """Whether a log is of a `fit`: `validate` and `test` write one row of step 0.

    Example:
        >>> is_of_training([{"epoch": "0", "step": "0", "val/error": "9"}])
        False
        >>> is_of_training([{"epoch": "0", "step": "7", "val/error": "9"}])
        True
    """
    epochs = [row for row in rows if (row.get("epoch") or "").isdigit()]
    trained = (row.get("step") != "0" for row in epochs)
    return any(trained) or any(
        value and name.startswith("train/") for row in epochs for name, value in row.items()
    )


def read_curves(folder: Path) -> dict[str, list[float]]:
    """Return figure -> value per epoch up to the last one that is logged; NaN where there is none.

    As :func:`read_log`, but also of runs that were stopped; empty if nothing was logged.
    """
    found = values_by_epoch(folder)
    epochs = range(max(found, default=-1) + 1)
    names = sorted({name for row in found.values() for name in row})
    return {name: [number(found.get(e, {}).get(name)) for e in epochs] for name in names}


def number(text: str | None) -> float:
    """Return the number that a log holds; NaN for what is none.

    Example:
        >>> number("2.5"), number(None), number("<b>")
        (2.5, nan, nan)
    """
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def version(log: Path) -> tuple[int, str]:
    """Return the number of the log's folder ``version_<n>``, and its path, to sort by.

    Example:
        >>> version(Path("run/version_12/metrics.csv"))[0], version(Path("run/metrics.csv"))[0]
        (12, -1)
    """
    found = VERSION.fullmatch(log.parent.name)
    return (int(found[1]) if found else -1), str(log)


def rows_of(log: Path) -> Rows:
    """Return the rows of a log."""
    with log.open(newline="") as file:
        return list(csv.DictReader(file))


def last_values(rows: Rows) -> dict[int, dict[str, str]]:
    """Return epoch -> figure -> the last value that a log holds of it."""
    values: dict[int, dict[str, str]] = {}
    for row in rows:
        if (row.get("epoch") or "").isdigit():
            known = values.setdefault(int(row["epoch"]), {})
            known.update({k: v for k, v in row.items() if v and not k.startswith(LEFT_OUT)})
    return values


def parse_curves(text: str) -> dict[str, list[float]]:
    r"""Return figure -> value per epoch; NaN where there is none.

    Example:
        >>> parse_curves("epoch,val/error\n0,2.5\n1,1.5\n")
        {'val/error': [2.5, 1.5]}
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    names = [name for name in rows[0] if name != "epoch"] if rows else []
    return {name: [float(row[name] or "nan") for row in rows] for name in names}
