"""Figures with their standard errors, from which images are classified wrongly. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, fmean


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error, in the same unit.

    Attributes:
        value: the figure.
        se: its standard error: how much it would vary if other images were drawn.

    Example:
        >>> Estimate(1.25, 0.5).z
        2.5
    """

    value: float
    se: float

    @property
    def z(self) -> float:
        """The figure in units of its standard error; 0 if both are 0."""
        if self.se > 0:
            return self.value / self.se
        return float("inf") * self.value if self.value else 0.0


def mean_estimate(values: Sequence[float], scale: float = 1.0) -> Estimate:
    r"""Return the mean of independent values and its standard error.

    .. math:: \bar x, \quad \sqrt{\sum_i (x_i - \bar x)^2 / (n (n - 1))}

    Args:
        values: one per image.
        scale: both are multiplied by it, such as 100 for percent.

    Raises:
        ValueError: if there are none.

    Example:
        >>> mean_estimate([1, 0, 0, 0], 100)
        Estimate(value=25.0, se=25.0)
    """
    number = len(values)
    if not number:
        raise ValueError("mean_estimate: expected values, got none. Measure on some images.")
    mean = fmean(values)
    squares = sum((value - mean) ** 2 for value in values)
    se = sqrt(squares / (number * (number - 1))) if number > 1 else 0.0
    return Estimate(scale * mean, scale * se)


def wrong_estimate(wrong: str, trials: int) -> Estimate:
    """Return the error in percent, if each image was classified several times.

    The images are independent of each other, the trials of one image are not.

    Args:
        wrong: one digit per image: how often it was classified wrongly.
        trials: how often each image was classified, 1 to 9.

    Example:
        >>> wrong_estimate("5000", 5)
        Estimate(value=25.0, se=25.0)
    """
    return mean_estimate([int(digit) for digit in wrong], 100 / trials)


def wrong_difference(wrong: str, reference: str, trials: int) -> Estimate:
    """Return by how many points an error is above another on the same images.

    Args:
        wrong: as of :func:`wrong_estimate`.
        reference: the same of the other network.
        trials: how often each image was classified.

    Raises:
        ValueError: if they are of different numbers of images.

    Example:
        >>> wrong_difference("1100", "0101", 1)
        Estimate(value=0.0, se=40.8...)
    """
    if len(wrong) != len(reference):
        raise ValueError(
            f"wrong_difference: expected the same images, got {len(wrong)} and {len(reference)}. "
            "Measure both networks in one command."
        )
    pairs = zip(wrong, reference, strict=True)
    return mean_estimate([int(a) - int(b) for a, b in pairs], 100 / trials)


def digits(counts: Sequence[int]) -> str:
    """Write counts from 0 to 9 as one digit each.

    Raises:
        ValueError: if one has two digits.

    Example:
        >>> digits([0, 5, 1])
        '051'
    """
    if any(not 0 <= count <= 9 for count in counts):
        raise ValueError("digits: expected counts from 0 to 9, got others. Use fewer trials.")
    return "".join(map(str, counts))


def threshold(comparisons: int, level: float = 0.05) -> float:
    """Return from how many standard errors on one of several differences is no chance.

    Two-sided, with Bonferroni's correction: under chance alone, any of the differences is beyond
    it with a probability of at most ``level``.

    Example:
        >>> round(threshold(1), 2), round(threshold(10), 2)
        (1.96, 2.81)
    """
    return NormalDist().inv_cdf(1 - level / (2 * comparisons))
