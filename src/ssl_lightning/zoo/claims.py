"""Checks of what a card claims: figures that pages show and that timings are taken again by."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ssl_lightning.measure.sparse_record import SparseRecord
from ssl_lightning.measure.table4 import LAYERS, TABLE4
from ssl_lightning.report.run_report import GROUP_KINDS
from ssl_lightning.suggest import shortened
from ssl_lightning.zoo.records import Latency

TIMED = ("dense", "masked", "compact")
FORMS = ("columns", "csr")
MOST = {"batch_size": 4096, "threads": 4096, "num_rounds": 1000}
"""Setting of a timing -> the largest that is taken again because a card says so."""
TEXT = ("row", "reference")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+:/-]{0,99}( (AND|OR|WITH) [A-Za-z0-9_.+-]{1,100}){0,9}")
BY_LAYER = (*GROUP_KINDS, "flop_percent")


def check_word(where: str, value: str) -> None:
    """Reject a name or SPDX expression with characters that such a thing does not have.

    Raises:
        ValueError: naming ``where`` it was found.

    Example:
        >>> check_word("card.licence", "Apache-2.0 OR MIT")
        >>> check_word("card.licence", "<b>MIT")
        Traceback (most recent call last):
        ...
        ValueError: card.licence: expected letters, digits and `_.+:/-`, got '<b>MIT'. Correct it.
    """
    if not WORD.fullmatch(value):
        raise ValueError(
            f"{where}: expected letters, digits and `_.+:/-`, got {shortened(value)}. Correct it."
        )


def check_latency(records: Sequence[Latency]) -> None:
    """Reject timings that cannot be taken again.

    Raises:
        ValueError: naming the field.
    """
    for i, record in enumerate(records):
        for field, most in MOST.items():
            value = getattr(record, field)
            if not 1 <= value <= most:
                raise ValueError(
                    f"card.latency[{i}].{field}: expected 1 to {most}, got {value}. Publish the "
                    "run again."
                )
        for field in ("ratio", "ratio_iqr", "median_ms"):
            if set(getattr(record, field)) != set(TIMED):
                raise ValueError(
                    f"card.latency[{i}].{field}: expected {', '.join(TIMED)}, got "
                    f"{shortened(list(getattr(record, field)))}. Publish the run again."
                )


def check_layer_macs(macs: Mapping[str, Sequence[int]]) -> None:
    """Reject multiply-adds of layers that are not [compact, dense].

    Raises:
        ValueError: naming the layer.
    """
    for layer, counts in macs.items():
        if len(counts) != 2 or min(counts) < 0:
            raise ValueError(
                f"card.layer_macs.{shortened(layer)[1:-1]}: expected those of the [compact, dense] "
                f"network, got {shortened(counts)}. Publish the run again."
            )


def check_speedups(record: SparseRecord | None) -> None:
    """Reject a comparison with the paper's Table 4 that is not of its layers.

    Raises:
        ValueError: saying what was expected.
    """
    if record is None:
        return
    rows = record.rows
    kinds = {(row.configuration, row.form) for row in rows}
    fine = [row.layer for row in rows] == list(LAYERS) and len(kinds) == 1
    if not fine or rows[0].configuration not in TABLE4 or rows[0].form not in FORMS:
        raise ValueError(
            f"card.layer_speedups.rows: expected the layers {', '.join(LAYERS)}, beside one of the "
            f"configurations {', '.join(map(str, TABLE4))} and of one form of "
            f"{', '.join(FORMS)}, got {shortened([row.layer for row in rows])} of "
            f"{shortened(sorted(kinds))}. Publish the run again."
        )
    for row in rows:
        for share in (row.row_sparsity, row.column_sparsity):
            if not 0 <= share < 1:
                raise ValueError(
                    f"card.layer_speedups: expected shares from 0 to 1, got {share} of "
                    f"{row.layer}. Publish the run again."
                )


def check_paper(paper: Mapping[str, Any] | None) -> None:
    """Reject a published row that no page could show.

    Raises:
        ValueError: naming the field.

    Example:
        >>> check_paper({"row": "LeNet 2", "error": 0.8, "filters": {"conv1": 5}})
        >>> check_paper({"row": ["LeNet 2"]})
        Traceback (most recent call last):
        ...
        ValueError: card.paper.row: expected a text, got ['LeNet 2']. ...
    """
    for field, value in (paper or {}).items():
        where = f"card.paper.{shortened(field)[1:-1]}"
        if field in TEXT and not isinstance(value, str):
            raise ValueError(f"{where}: expected a text, got {shortened(value)}. Correct it.")
        if field in BY_LAYER and isinstance(value, dict):
            wrong = [v for v in value.values() if not is_figure(v)]
        else:
            wrong = [] if is_figure(value) else [value]
        if wrong:
            raise ValueError(
                f"{where}: expected a figure or a text, got {shortened(wrong[0])}. Correct it."
            )


def is_figure(value: Any) -> bool:
    """Whether a value is a finite number or a text.

    Example:
        >>> is_figure(0.8), is_figure("1 - 2"), is_figure(float("nan")), is_figure(True)
        (True, True, False, False)
    """
    if isinstance(value, bool):
        return False
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
