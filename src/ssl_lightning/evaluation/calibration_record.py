"""How far confidences can be trusted, and which classes pruning costs most. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_lightning.evaluation.estimates import Estimate
from ssl_lightning.measure.serial import VersionedRecord

SCHEMA = 1


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies in one interval.

    Attributes:
        images: how many.
        confidence: their mean confidence.
        accuracy: the share of them that is classified rightly.
    """

    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class AgainstDense:
    """A network less the dense one, on the same images.

    Attributes:
        error: points.
        nll: negative log-likelihood, nats per image.
        ece: expected calibration error, points.
        disagreement: percent of the images that the two give different classes.
        classes: class -> points of its error.
    """

    error: Estimate
    nll: Estimate
    ece: Estimate
    disagreement: Estimate
    classes: dict[str, Estimate]


@dataclass(frozen=True)
class CalibrationRow:
    """One network.

    Attributes:
        network: its name.
        macs: multiply-adds of one image.
        parameters: number of parameters.
        error: percent.
        nll: mean negative log-likelihood, nats per image.
        ece: expected calibration error, percent.
        temperature: that the outputs are divided by to scale them.
        scaled_nll: as ``nll``, after that.
        scaled_ece: as ``ece``, after that.
        class_errors: class -> percent.
        bins: by confidence, ascending.
        against: the differences to the dense network; None for that one, or if there is none.
    """

    network: str
    macs: int
    parameters: int
    error: Estimate
    nll: Estimate
    ece: Estimate
    temperature: float
    scaled_nll: Estimate
    scaled_ece: Estimate
    class_errors: dict[str, float]
    bins: tuple[Bin, ...]
    against: AgainstDense | None


@dataclass(frozen=True)
class CalibrationRecord(VersionedRecord):
    """Networks beside each other, measured on the same images.

    Attributes:
        title: heading.
        data: name of the data set.
        split: ``"validation"`` or ``"test"``.
        images: how many.
        class_images: class -> how many of them.
        num_bins: intervals of confidence.
        scaled_on: images that temperatures were fitted on, in words.
        dense: name of the network that others are compared with; None for none.
        rows: the networks.
        schema: version of this format.

    Raises:
        ValueError: if the schema is unknown, or there is no network.
    """

    title: str
    data: str
    split: str
    images: int
    class_images: dict[str, int]
    num_bins: int
    scaled_on: str
    dense: str | None
    rows: tuple[CalibrationRow, ...]
    schema: int = SCHEMA

    what = "calibration"
    known_schema = SCHEMA

    def __post_init__(self) -> None:
        self.check_schema(self.schema)
        if not self.rows:
            raise ValueError("calibration: expected at least one network, got none. Measure again.")

    def compared(self) -> dict[str, AgainstDense]:
        """Return network -> its differences to the dense one."""
        return {row.network: row.against for row in self.rows if row.against is not None}
