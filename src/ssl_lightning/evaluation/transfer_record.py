"""How well networks, or their features, do on other data. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ssl_lightning.evaluation.estimates import Estimate, wrong_difference, wrong_estimate
from ssl_lightning.measure.serial import VersionedRecord

SCHEMA = 1


@dataclass(frozen=True)
class TransferRow:
    """One network.

    Attributes:
        network: its name.
        macs: multiply-adds of one image.
        parameters: number of parameters.
        features: numbers that its last linear layer reads.
        errors: percent, one for each seed.
        weight_decays: chosen for each seed; empty where none is chosen.
        wrong: one digit per image: with how many of the seeds it is classified wrongly.
        key: equal for the same weights and data; None where it was not noted.
    """

    network: str
    macs: int
    parameters: int
    features: int
    errors: tuple[float, ...]
    weight_decays: tuple[float, ...]
    wrong: str
    key: str | None = None

    def mean(self) -> float:
        """Return the mean error over the seeds, percent."""
        return fmean(self.errors)

    def spread(self) -> float:
        """Return the standard deviation over the seeds, points; 0 for one seed."""
        return stdev(self.errors) if len(self.errors) > 1 else 0.0

    def error(self) -> Estimate:
        """Return the mean error with the standard error due to the images it was measured on."""
        return wrong_estimate(self.wrong, len(self.errors))


@dataclass(frozen=True)
class TransferRecord(VersionedRecord):
    """Networks beside each other, trained on the same images of other data.

    Attributes:
        title: heading.
        method: ``"probe"`` or ``"finetune"``.
        data: name of the data set they are transferred to.
        split: that errors are measured on, ``"validation"`` or ``"test"``.
        trained: training images of each run.
        images: images that errors are measured on.
        seeds: each draws other training images, and the order and the fresh layer of fine-tuning.
        settings: of the method.
        dense: name of the network that others are compared with; None for none.
        rows: the networks.
        schema: version of this format.

    Raises:
        ValueError: if the schema is unknown.

    Example:
        >>> rows = tuple(TransferRow(n, 1, 1, 8, (50.0,), (), w) for n, w in (("a", "0011"),
        ...                                                               ("b", "1011")))
        >>> record = TransferRecord("t", "probe", "X", "test", 9, 4, (0,), {}, "a", rows)
        >>> record.loss(rows[0]), record.loss(rows[1])
        (None, Estimate(value=25.0, se=25.0))
    """

    title: str
    method: str
    data: str
    split: str
    trained: int
    images: int
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    dense: str | None
    rows: tuple[TransferRow, ...]
    schema: int = SCHEMA

    what = "transfer"
    known_schema = SCHEMA

    def __post_init__(self) -> None:
        self.check_schema(self.schema)

    def loss(self, row: TransferRow) -> Estimate | None:
        """Return by how many points the mean error is above the dense network's.

        The standard error is that of the images; for what the seeds vary see
        :meth:`seed_losses`.

        Returns:
            None for the dense network, or if there is none.
        """
        dense = next((other for other in self.rows if other.network == self.dense), None)
        if dense is None or dense.network == row.network:
            return None
        return wrong_difference(row.wrong, dense.wrong, len(self.seeds))

    def seed_losses(self, row: TransferRow) -> tuple[float, ...]:
        """Return the differences to the dense network's errors, seed by seed, in points."""
        dense = next((other for other in self.rows if other.network == self.dense), None)
        if dense is None:
            return ()
        return tuple(a - b for a, b in zip(row.errors, dense.errors, strict=True))
