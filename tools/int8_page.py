"""The table of docs/guides/int8.md: from the records beside it."""

from __future__ import annotations

from pathlib import Path

from ssl_lightning.measure.precision_record import PrecisionRecord
from ssl_lightning.zoo.wording import table

RECORDS = Path(__file__).resolve().parent.parent / "docs/guides/int8"
HEAD = ("engine", "network", "precision", "error %", "file, MB", "latency, ms", "speed-up")


def made(mark: str) -> str:
    """Return the table of a record."""
    rows = [
        (
            row.engine,
            row.network,
            row.precision,
            f"{row.error:.2f}",
            f"{row.num_bytes / 1e6:.2f}",
            f"{row.timing.median_ms:.3f}",
            f"{1 / row.timing.ratio:.2f}",
        )
        for row in PrecisionRecord.load(RECORDS / f"{mark}.json").rows
    ]
    return f"{table(HEAD, rows)}\n"
