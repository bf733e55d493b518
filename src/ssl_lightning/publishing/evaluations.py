"""What `evaluate` measured of an entry: records among its files, and a table on its page."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_lightning.data import DATA_MODULES
from ssl_lightning.evaluation.calibration_record import CalibrationRecord
from ssl_lightning.evaluation.corruption_record import CorruptionRecord
from ssl_lightning.evaluation.transfer_record import TransferRecord
from ssl_lightning.parsing import parse_json
from ssl_lightning.report.generalisation import NOTHING, estimate_text, number_text
from ssl_lightning.suggest import pick
from ssl_lightning.zoo.cards import CALIBRATION, CORRUPTION, EVALUATIONS, FINETUNE, PROBE, Card
from ssl_lightning.zoo.entries import checked_file
from ssl_lightning.zoo.records import Size

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


METHODS = {"probe": (PROBE, "linear probe"), "finetune": (FINETUNE, "fine-tuned")}
"""Method of transfer -> its file, and what it is."""


def file_of(record: Evaluation) -> str:
    """Return the file of an entry that a record belongs in.

    Raises:
        ValueError: if its method is unknown.
    """
    if isinstance(record, TransferRecord):
        return pick("method of transfer", record.method, METHODS)[0]
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
        ValueError: if the entry is not among its networks, or data, sizes or errors are not those
            of the card.
    """
    rows = {row.network: row for row in record.rows}
    if card.name not in rows:
        raise ValueError(
            f"{path}: expected {card.name} among the networks, got {', '.join(rows)}. Evaluate "
            f"`zoo:{card.name}`."
        )
    check_size(path, rows[card.name], card.compact)
    if record.dense is not None:
        if not re.fullmatch(r"[\w.-]+", record.dense) or record.dense not in rows:
            raise ValueError(
                f"{path}: expected an entry of a zoo as the dense network, got {record.dense!r}. "
                "Evaluate with --dense zoo:<name>."
            )
        check_size(path, rows[record.dense], card.dense)
    if not isinstance(record, TransferRecord):
        check_data(path, record, card)
    retained = tuple(row for name, row in rows.items() if name in (card.name, record.dense))
    return dataclasses.replace(record, rows=retained)  # type: ignore[arg-type]


def check_size(path: str | Path, row: Any, size: Size) -> None:
    """Make sure that a network of a record has the size that a card says.

    Raises:
        ValueError: if it has not.
    """
    if (row.macs, row.parameters) != (size.macs, size.num_parameters):
        raise ValueError(
            f"{path}: {row.network} has {row.macs:,} multiply-adds and {row.parameters:,} "
            f"parameters there, and {size.macs:,} and {size.num_parameters:,} in the card. "
            "Evaluate it again."
        )


def check_data(path: str | Path, record: CalibrationRecord | CorruptionRecord, card: Card) -> None:
    """Make sure that a record is of the card's data and, where all test images are, of its error.

    Raises:
        ValueError: if it is not.
    """
    expected = DATA_MODULES[card.data.name].__name__.removesuffix("DataModule")
    if record.data != expected:
        raise ValueError(
            f"{path}: expected images of {expected}, which the entry was trained with, got "
            f"{record.data}. Evaluate it without --data."
        )
    row: Any = next(row for row in record.rows if row.network == card.name)
    found = row.error.value if isinstance(record, CalibrationRecord) else row.clean.value
    whole = record.split == "test" and record.images == card.data.num_test
    if whole and abs(found - card.test_error) > TOLERANCE:
        raise ValueError(
            f"{path}: {card.name} has an error of {found:.2f} % on the test images there, and "
            f"of {card.test_error:.2f} % in its card. Evaluate it again."
        )


@dataclass(frozen=True)
class Evaluated:
    """What an entry's records say.

    Attributes:
        rows: measure with its images, dense network, entry, difference.
        dense: names of the dense networks beside the entry.
    """

    rows: Rows
    dense: tuple[str, ...]


def evaluated(card: Card, folder: Path) -> Evaluated | None:
    """Return what an entry's records say; None if it has none."""
    rows: Rows = []
    dense: list[str] = []
    for file, kind in KINDS.items():
        if file in card.files:
            record: Any = kind.load(folder / file)
            rows += ROWS[kind](record, card.name)
            dense += [] if record.dense in (None, card.name) else [record.dense]
    return Evaluated(rows, tuple(dict.fromkeys(dense))) if rows else None


def checked_evaluated(card: Card, folder: Path) -> Evaluated | None:
    """Return :func:`evaluated` of an entry whose records are as they were published.

    Raises:
        FileNotFoundError, ValueError: if one is not.
    """
    for file in EVALUATIONS:
        if file in card.files:
            checked_file(folder / file, card.files[file])
    return evaluated(card, folder)


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
    how = METHODS[record.method][1]
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
