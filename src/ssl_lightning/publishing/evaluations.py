"""What `evaluate` measured of an entry: records among its files, and a table on its page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssl_lightning.evaluation.calibration_record import CalibrationRecord
from ssl_lightning.evaluation.corruption_record import CorruptionRecord
from ssl_lightning.evaluation.transfer_record import TransferRecord
from ssl_lightning.files import parse_json
from ssl_lightning.report.generalisation import NOTHING, estimate_text, number_text
from ssl_lightning.zoo.cards import CALIBRATION, CORRUPTION, EVALUATIONS, FINETUNE, PROBE, Card

Evaluation = CalibrationRecord | CorruptionRecord | TransferRecord
Rows = list[tuple[object, ...]]
KINDS: dict[str, type[Evaluation]] = {
    CALIBRATION: CalibrationRecord,
    CORRUPTION: CorruptionRecord,
    PROBE: TransferRecord,
    FINETUNE: TransferRecord,
}
"""File of an entry -> what it holds."""
TOLERANCE = 0.05
"""Points by which an error on all test images may differ from the card's."""
assert tuple(KINDS) == EVALUATIONS


def file_of(record: Evaluation) -> str:
    """Return the file of an entry that a record belongs in."""
    if isinstance(record, TransferRecord):
        return {"probe": PROBE, "finetune": FINETUNE}[record.method]
    return CALIBRATION if isinstance(record, CalibrationRecord) else CORRUPTION


def read_evaluation(path: str | Path) -> Evaluation:
    """Read what ``evaluate`` wrote, whichever kind it is.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such record.
    """
    content = parse_json(Path(path).read_bytes(), str(path))
    fields = set(content) if isinstance(content, dict) else set()
    for kind in (CalibrationRecord, CorruptionRecord, TransferRecord):
        if {f.name for f in dataclasses.fields(kind)} == fields:
            return kind.load(path)
    raise ValueError(
        f"{path}: expected what `evaluate calibration`, `corruption` or `transfer` wrote, got "
        "another file. Give its --output."
    )


def belonging(record: Evaluation, card: Card, path: str | Path) -> Evaluation:
    """Return the part of a record that is about an entry and the dense network beside it.

    Raises:
        ValueError: if the entry is not among its networks, or they are not of the entry's size or
            error.
    """
    rows = {row.network: row for row in record.rows}
    if card.name not in rows:
        raise ValueError(
            f"{path}: expected {card.name} among the networks, got {', '.join(rows)}. Evaluate "
            f"`zoo:{card.name}`."
        )
    row, small = rows[card.name], card.compact
    if (row.macs, row.parameters) != (small.macs, small.num_parameters):
        raise ValueError(
            f"{path}: {card.name} has {row.macs:,} multiply-adds and {row.parameters:,} parameters "
            f"there, and {small.macs:,} and {small.num_parameters:,} in its card. Evaluate it "
            "again."
        )
    whole = record.split == "test" and record.images == card.data.num_test
    if isinstance(record, CalibrationRecord) and whole:
        found = record.rows[list(rows).index(card.name)].error.value
        if abs(found - card.test_error) > TOLERANCE:
            raise ValueError(
                f"{path}: {card.name} has an error of {found:.2f} % on the test images there, and "
                f"of {card.test_error:.2f} % in its card. Evaluate it again."
            )
    retained = tuple(row for name, row in rows.items() if name in (card.name, record.dense))
    return dataclasses.replace(record, rows=retained)  # type: ignore[arg-type]


def evaluation_rows(card: Card, folder: Path) -> Rows:
    """Return what an entry's records say: measure, dense network, entry, difference."""
    found: Rows = []
    for file, kind in KINDS.items():
        if file in card.files:
            record: Any = kind.load(folder / file)
            found += ROWS[kind](record, card.name)
    return found


def calibration_rows(record: CalibrationRecord, name: str) -> Rows:
    """Return the figures of an entry that say how far its confidences can be trusted."""
    own, dense = both(record, name)
    above = own.against
    on = f"{record.images:,} {record.split} images"
    texts = (("expected calibration error, %", "ece", 2), ("negative log-likelihood", "nll", 3))
    rows: Rows = [
        (
            f"{text} ({on})",
            estimate_text(dense and getattr(dense, field), places),
            estimate_text(getattr(own, field), places),
            estimate_text(above and getattr(above, field), places, sign=True),
        )
        for text, field, places in texts
    ]
    if above is not None:
        share = estimate_text(above.disagreement)
        rows.append((f"another class than the dense one, % ({on})", NOTHING, share, NOTHING))
    return rows


def corruption_rows(record: CorruptionRecord, name: str) -> Rows:
    """Return the figures of an entry on corrupted images."""
    own, dense = both(record, name)
    on = f"{len(own.corruptions)} corruptions of {record.images:,} {record.split} images"
    of_dense = None if dense is None else record.mean_error(dense)
    rows: Rows = [
        (
            f"error, % ({on})",
            estimate_text(of_dense),
            estimate_text(record.mean_error(own)),
            estimate_text(record.loss(own), sign=True),
        )
    ]
    if dense is not None:
        relative = number_text(record.corruption_error(own))
        rows.append((f"mean corruption error, % ({on})", "100.0", relative, NOTHING))
    return rows


def transfer_rows(record: TransferRecord, name: str) -> Rows:
    """Return the error of an entry on other data."""
    own, dense = both(record, name)
    how = {"probe": "linear probe", "finetune": "fine-tuned"}[record.method]
    runs = f", mean of {len(record.seeds)} seeds" if len(record.seeds) > 1 else ""
    on = f"{record.trained:,} training and {record.images:,} {record.split} images{runs}"
    cells = (
        estimate_text(dense and dense.error()),
        estimate_text(own.error()),
        estimate_text(record.loss(own), sign=True),
    )
    return [(f"{how} on {record.data}, error, % ({on})", *cells)]


def both(record: Any, name: str) -> tuple[Any, Any]:
    """Return the rows of an entry and of the dense network; None where the entry is that."""
    rows = {row.network: row for row in record.rows}
    return rows[name], None if record.dense in (None, name) else rows[record.dense]


ROWS: Mapping[type, Callable[[Any, str], Rows]] = {
    CalibrationRecord: calibration_rows,
    CorruptionRecord: corruption_rows,
    TransferRecord: transfer_rows,
}
