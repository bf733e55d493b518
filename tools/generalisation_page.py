"""The tables of docs/generalisation.md: from the records in docs/generalisation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_lightning.evaluation.calibration_record import CalibrationRecord
from ssl_lightning.evaluation.corruption_record import CorruptionRecord
from ssl_lightning.evaluation.transfer_record import TransferRecord
from ssl_lightning.report import calibration, corruption, transfer
from ssl_lightning.zoo.wording import table

DOCS = Path(__file__).resolve().parent.parent / "docs"
RECORDS = DOCS / "generalisation"
TABLES: dict[str, tuple[type[Any], Callable[[Any], tuple[Any, Any]]]] = {
    "networks": (CalibrationRecord, lambda r: (calibration.HEAD, calibration.calibration_rows(r))),
    "against": (CalibrationRecord, lambda r: (calibration.AGAINST, calibration.against_rows(r))),
    "classes": (
        CalibrationRecord,
        lambda r: (calibration.class_head(r), calibration.class_rows(r)),
    ),
    "summary": (CorruptionRecord, lambda r: (corruption.SUMMARY, corruption.summary_rows(r))),
    "corruptions": (
        CorruptionRecord,
        lambda r: (corruption.corruption_head(r), corruption.corruption_rows(r)),
    ),
    "transfer": (TransferRecord, lambda r: (transfer.HEAD, transfer.transfer_rows(r))),
}
"""Name of a table -> kind of its record, and its head and rows."""


def made(mark: str) -> str:
    """Return the table of a mark, ``RECORD TABLE``."""
    record, name = mark.split()
    kind, cells = TABLES[name]
    return f"{table(*cells(kind.load(RECORDS / f'{record}.json')))}\n"
