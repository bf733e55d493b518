"""Calibration of classifiers, and which classes one of two networks gets wrong more often."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_lightning.evaluation.calibration_record import AgainstDense, Bin, CalibrationRow
from ssl_lightning.evaluation.estimates import Estimate, mean_estimate
from ssl_lightning.evaluation.predictions import Predictions

BINS = 15
HALVINGS = 60
"""Of the interval in which a temperature is looked for."""
RESAMPLES = 200
"""Of the images with replacement, for standard errors of calibration errors."""


def calibration_error(predictions: Predictions, num_bins: int = BINS) -> float:
    r"""Return the expected calibration error in percent.

    .. math:: 100 \sum_b \frac{n_b}{n} |\mathrm{acc}_b - \mathrm{conf}_b|

    over intervals of equal width of the confidence, the largest of the softmax (torchmetrics).

    Args:
        predictions: of N images.
        num_bins: number of intervals.

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.

    Example:
        >>> sure = Predictions(torch.tensor([[9.0, -9.0]] * 4), torch.tensor([0, 0, 0, 1]))
        >>> round(calibration_error(sure), 3)
        25.0
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, labels = predictions
    probabilities = logits.double().softmax(1)
    classes = logits.shape[1]
    found = multiclass_calibration_error(probabilities, labels, classes, num_bins, norm="l1")
    return 100 * float(found)


def reliability(predictions: Predictions, num_bins: int = BINS) -> tuple[Bin, ...]:
    """Return the images by their confidence, in intervals of equal width that hold any.

    Example:
        >>> half = Predictions(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
        >>> reliability(half)
        (Bin(images=4, confidence=0.5, accuracy=0.75),)
    """
    confidence = predictions.logits.double().softmax(1).amax(1)
    edges = torch.linspace(0, 1, num_bins + 1, dtype=confidence.dtype)
    place = torch.bucketize(confidence, edges, right=True).clamp(max=num_bins)
    right = (~predictions.wrong()).double()
    inside = [place == number for number in place.unique()]
    return tuple(
        Bin(int(here.sum()), float(confidence[here].mean()), float(right[here].mean()))
        for here in inside
    )


def temperature(predictions: Predictions) -> float:
    """Return the number that the outputs are divided by for the smallest log-likelihood loss.

    It changes no class. The loss is convex in the temperature's inverse, so that the sign of its
    derivative says on which side the smallest lies. The logarithm is looked for between -5 and 5.

    Reference:
        Guo et al., 2017, section 4.2, equation 9.

    Example:
        >>> sure = Predictions(torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
        >>> round(temperature(sure), 3)  # 4 / log(3)
        3.641
    """
    logits = predictions.logits.double()
    of_label = logits.gather(1, predictions.labels[:, None])

    def fall(logarithm: float) -> float:  # of the loss, as the temperature rises
        expected = ((logits * math.exp(-logarithm)).softmax(1) * logits).sum(1, keepdim=True)
        return float((expected - of_label).mean())

    if abs(fall(0.0)) <= torch.finfo(logits.dtype).eps * float(logits.abs().max()):
        return 1.0  # all outputs are the same, say
    least, most = -5.0, 5.0
    for _ in range(HALVINGS):
        middle = (least + most) / 2
        least, most = (middle, most) if fall(middle) > 0 else (least, middle)
    return math.exp((least + most) / 2)


def scaled(predictions: Predictions, other: Predictions | None) -> tuple[float, Predictions]:
    """Return a temperature, and predictions scaled by one that was not fitted on them.

    Args:
        predictions: to scale.
        other: of other images, to fit on. None: each half of the images (every second one) is
            scaled by the temperature of the other half.

    Returns:
        The temperature fitted on ``other``, or on all images, and the scaled predictions.
    """
    if other is not None:
        fitted = temperature(other)
        return fitted, predictions.divided(fitted)
    result = predictions.logits.clone()
    for half in (0, 1):
        fit_on = Predictions(*(part[1 - half :: 2] for part in predictions))
        result[half::2] /= temperature(fit_on) if len(fit_on.labels) else 1.0
    return temperature(predictions), Predictions(result, predictions.labels)


def resampled_errors(predictions: Predictions, num_bins: int = BINS, seed: int = 0) -> Tensor:
    """Return calibration errors in percent of images drawn again with replacement.

    Predictions of the same images give pairs, from which differences can be judged.

    Reference:
        Efron, Bootstrap Methods: Another Look at the Jackknife, 1979.
    """
    generator = torch.Generator().manual_seed(seed)
    number = len(predictions.labels)
    draws = (torch.randint(number, (number,), generator=generator) for _ in range(RESAMPLES))
    drawn = (Predictions(*(part[draw] for part in predictions)) for draw in draws)
    return torch.tensor([calibration_error(part, num_bins) for part in drawn])


@dataclass(frozen=True)
class Calibrated:
    """A network's predictions with what is computed from them once.

    Attributes:
        predictions: as it gives them.
        scaled: after temperature scaling.
        temperature: of that.
        resampled: see :func:`resampled_errors`.
    """

    predictions: Predictions
    scaled: Predictions
    temperature: float
    resampled: Tensor

    @classmethod
    def of(cls, predictions: Predictions, other: Predictions | None = None) -> Calibrated:
        """Compute it; see :func:`scaled` for ``other``."""
        fitted, after = scaled(predictions, other)
        return cls(predictions, after, fitted, resampled_errors(predictions))


def class_estimates(
    values: Sequence[float], labels: Tensor, classes: Sequence[str]
) -> dict[str, Estimate]:
    """Return class -> mean of its images' values in percent; classes without images are omitted.

    Example:
        >>> class_estimates([1.0, 0.0, 0.0], torch.tensor([0, 0, 1]), ["cat", "dog"])["cat"]
        Estimate(value=50.0, se=50.0)
    """
    of_class: dict[str, list[float]] = {}
    for value, label in zip(values, labels.tolist(), strict=True):
        of_class.setdefault(classes[label], []).append(value)
    return {name: mean_estimate(of_class[name], 100) for name in classes if name in of_class}


def against_dense(network: Calibrated, dense: Calibrated, classes: Sequence[str]) -> AgainstDense:
    """Return the differences of a network to the dense one, on the same images.

    Standard errors are those of paired differences: image by image, and for the calibration error
    resample by resample. They say what other images would change, not what another training would.

    Raises:
        ValueError: if they are of different images.

    Reference:
        Hooker et al., What Do Compressed Deep Neural Networks Forget?, 2019.
    """
    mine, other = network.predictions, dense.predictions
    if not torch.equal(mine.labels, other.labels):
        raise ValueError(
            "against_dense: expected predictions of the same images in the same order, got other "
            "labels. Measure both networks on one data set and split."
        )
    more_wrong = (mine.wrong().double() - other.wrong().double()).tolist()
    unlike = (mine.logits.argmax(1) != other.logits.argmax(1)).double().tolist()
    before, after = calibration_error(other), calibration_error(mine)
    spread = float((network.resampled - dense.resampled).std())
    return AgainstDense(
        error=mean_estimate(more_wrong, 100),
        nll=mean_estimate((mine.losses() - other.losses()).tolist()),
        ece=Estimate(after - before, spread),
        disagreement=mean_estimate(unlike, 100),
        classes=class_estimates(more_wrong, mine.labels, classes),
    )


def calibration_row(
    network: str,
    sizes: Mapping[str, int],
    found: Calibrated,
    classes: Sequence[str],
    dense: Calibrated | None = None,
) -> CalibrationRow:
    """Return all that is measured of one network.

    Args:
        network: its name.
        sizes: its ``"MACs"`` and ``"parameters"``.
        found: its predictions.
        classes: name of each label.
        dense: those of the dense network, if it is another one.

    Example:
        >>> same = Predictions(torch.eye(2) * 3, torch.tensor([0, 1]))
        >>> row = calibration_row("net", {"MACs": 1, "parameters": 2}, Calibrated.of(same), "ab")
        >>> row.error.value, row.class_errors, row.against
        (0.0, {'a': 0.0, 'b': 0.0}, None)
    """
    predictions, after = found.predictions, found.scaled
    wrong = predictions.wrong().double().tolist()
    of_classes = class_estimates(wrong, predictions.labels, classes)
    return CalibrationRow(
        network=network,
        macs=sizes["MACs"],
        parameters=sizes["parameters"],
        error=mean_estimate(wrong, 100),
        nll=mean_estimate(predictions.losses().tolist()),
        ece=Estimate(calibration_error(predictions), float(found.resampled.std())),
        temperature=found.temperature,
        scaled_nll=mean_estimate(after.losses().tolist()),
        scaled_ece=Estimate(calibration_error(after), float(resampled_errors(after).std())),
        class_errors={name: estimate.value for name, estimate in of_classes.items()},
        bins=reliability(predictions),
        against=None if dense is None else against_dense(found, dense, classes),
    )
