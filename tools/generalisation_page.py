"""Fill the tables of docs/generalisation.md from the records in docs/generalisation.

python tools/generalisation_page.py

Between ``<!-- RECORD TABLE -->`` and ``<!-- end -->`` is a table of a record. A test compares them
with the records.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_lightning.evaluation.calibration_record import CalibrationRecord
from ssl_lightning.evaluation.corruption_record import CorruptionRecord
from ssl_lightning.evaluation.transfer_record import TransferRecord
from ssl_lightning.report import calibration, corruption, transfer
from ssl_lightning.zoo.wording import table

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, RECORDS = DOCS / "generalisation.md", DOCS / "generalisation"
MARKED = re.compile(r"(<!-- (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
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


def filled(text: str) -> str:
    """Return the page with its tables made anew."""

    def one(found: re.Match[str]) -> str:
        kind, cells = TABLES[found[3]]
        return f"{found[1]}{table(*cells(kind.load(RECORDS / f'{found[2]}.json')))}\n{found[4]}"

    return MARKED.sub(one, text)


def main() -> int:
    """Rewrite the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"Wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
