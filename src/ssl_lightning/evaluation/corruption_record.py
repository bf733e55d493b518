"""Errors on corrupted images. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from ssl_lightning.evaluation.estimates import Estimate, mean_estimate, wrong_difference
from ssl_lightning.measure.serial import VersionedRecord

SCHEMA = 1
SEVERITIES = (1, 2, 3, 4, 5)
CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The fifteen common corruptions of Hendrycks & Dietterich, 2019, in their order."""


@dataclass(frozen=True)
class Corrupted:
    """One network on the images of one corruption.

    Attributes:
        errors: percent, one for each severity.
        wrong: one digit per image: at how many of the severities it is classified wrongly.
    """

    errors: tuple[float, ...]
    wrong: str


@dataclass(frozen=True)
class CorruptionRow:
    """One network.

    Attributes:
        network: its name.
        macs: multiply-adds of one image.
        parameters: number of parameters.
        clean: error in percent on the images as they are.
        corruptions: corruption -> what was measured.
        key: equal for the same weights and data; None where it was not noted.
    """

    network: str
    macs: int
    parameters: int
    clean: Estimate
    corruptions: dict[str, Corrupted]
    key: str | None = None


def counts(row: CorruptionRow) -> list[int]:
    """Return for each image how often it is classified wrongly, over all that was measured.

    Example:
        >>> found = {"fog": Corrupted((50.0,) * 5, "50"), "snow": Corrupted((10.0,) * 5, "01")}
        >>> counts(CorruptionRow("net", 1, 1, Estimate(0.0, 0.0), found))
        [5, 1]
    """
    return [sum(map(int, digits)) for digits in zip(*words(row), strict=True)]


def words(row: CorruptionRow) -> list[str]:
    """Return the digits of each corruption."""
    return [found.wrong for found in row.corruptions.values()]


@dataclass(frozen=True)
class CorruptionRecord(VersionedRecord):
    r"""Networks beside each other, on the same corrupted images.

    The corruption error is relative to the dense network, where Hendrycks & Dietterich (ICLR 2019,
    section 4) take AlexNet. With :math:`E_{s,c}` in percent, over severities s and C corruptions c:

    .. math:: \mathrm{mCE} = \frac{100}{C} \sum_c
        \frac{\sum_s E_{s,c}}{\sum_s E^\mathrm{dense}_{s,c}}, \qquad
        \mathrm{relative\ mCE} = \frac{100}{C} \sum_c
        \frac{\sum_s (E_{s,c} - E_\mathrm{clean})}
        {\sum_s (E^\mathrm{dense}_{s,c} - E^\mathrm{dense}_\mathrm{clean})}

    Attributes:
        title: heading.
        data: name of the data set.
        split: ``"validation"`` or ``"test"``.
        images: how many, of each corruption and severity.
        input_shape: channels, height and width of an image.
        source: where the corrupted images are from, in words.
        seed: of what is random in them; None for stored files.
        dense: name of the network that others are compared with; None for none.
        rows: the networks.
        schema: version of this format.

    Raises:
        ValueError: if the schema is unknown.
    """

    title: str
    data: str
    split: str
    images: int
    input_shape: tuple[int, ...]
    source: str
    seed: int | None
    dense: str | None
    rows: tuple[CorruptionRow, ...]
    schema: int = SCHEMA

    what = "corruption"
    known_schema = SCHEMA

    def __post_init__(self) -> None:
        self.check_schema(self.schema)

    def row(self, network: str | None) -> CorruptionRow | None:
        """Return the row of a network, None if there is none."""
        return next((row for row in self.rows if row.network == network), None)

    def mean_error(self, row: CorruptionRow) -> Estimate:
        """Return the mean error over corruptions and severities, percent."""
        return mean_estimate(counts(row), 100 / (len(SEVERITIES) * len(row.corruptions)))

    def loss(self, row: CorruptionRow, corruption: str | None = None) -> Estimate | None:
        """Return by how many points the mean error is above the dense network's.

        Args:
            row: of a network.
            corruption: only of this one; None for all.

        Returns:
            None for the dense network, or if there is none.
        """
        dense = self.row(self.dense)
        if dense is None or dense.network == row.network:
            return None
        if corruption is not None:
            pair = row.corruptions[corruption].wrong, dense.corruptions[corruption].wrong
            return wrong_difference(*pair, len(SEVERITIES))
        differences = [a - b for a, b in zip(counts(row), counts(dense), strict=True)]
        return mean_estimate(differences, 100 / (len(SEVERITIES) * len(row.corruptions)))

    def corruption_error(self, row: CorruptionRow, *, relative: bool = False) -> float | None:
        """Return the mean corruption error in percent of the dense network's.

        Args:
            row: of a network.
            relative: whether to count only what an error is above that on clean images.

        Returns:
            None if there is no dense network, or it loses nothing by a corruption.
        """
        dense = self.row(self.dense)
        if dense is None:
            return None
        quotients = []
        for name, found in row.corruptions.items():
            mine = fmean(found.errors) - relative * row.clean.value
            other = fmean(dense.corruptions[name].errors) - relative * dense.clean.value
            if other <= 0:
                return None
            quotients.append(mine / other)
        return 100 * fmean(quotients)
