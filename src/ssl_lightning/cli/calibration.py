"""evaluate calibration: whether confidences can be trusted, and which classes pruning costs."""

from __future__ import annotations

from collections import Counter

from ssl_lightning.cli.compared import (
    Compared,
    check_same_images,
    class_names,
    compared_networks,
    data_name,
)
from ssl_lightning.cli.records import check_output, finish
from ssl_lightning.evaluation.calibration import BINS, Calibrated, calibration_row
from ssl_lightning.evaluation.calibration_record import CalibrationRecord
from ssl_lightning.evaluation.predictions import Predictions, predict
from ssl_lightning.progress import track
from ssl_lightning.report.calibration import calibration_chart, calibration_table
from ssl_lightning.report.generalisation import TABLE_WIDTH

WHERE = "evaluate calibration"


def calibration(
    networks: list[str],
    dense: str | None = None,
    data: str | None = None,
    split: str = "validation",
    limit: int | None = None,
    batch_size: int = 250,
    title: str = "Calibration",
    output: str | None = None,
    model: str | None = None,
    config: str | None = None,
) -> None:
    """Measure calibration, and with a dense reference which classes are lost by pruning.

    Expected calibration error, log-likelihood, both also after temperature scaling; errors by
    class, and how often two networks disagree, with standard errors.

    Args:
        networks: checkpoints, compact folders or zoo:<name>.
        dense: the network that the others are compared with.
        data: config whose ``data`` names the images of all, or a data set such as mnist; default:
            those that each network was trained with.
        split: validation or test. On validation images, a temperature is fitted on one half for
            the other; for test images on the validation images.
        limit: number of images, the first ones; default: all.
        batch_size: images per forward pass.
        title: heading.
        output: JSON file to write; the picture is drawn beside it as a PNG.
        model: import path of the class of networks that are your own.
        config: instead, a config whose ``model.backbone`` is used.
    """
    check_output(output)
    found = compared_networks(WHERE, networks, dense, data, model, config)
    check_same_images(WHERE, found, split)
    record = measured(found, dense is not None, split, limit, batch_size, title)
    finish(record, calibration_table(record), calibration_chart, output, TABLE_WIDTH)


def measured(
    networks: list[Compared],
    has_dense: bool,
    split: str,
    limit: int | None,
    batch_size: int,
    title: str,
) -> CalibrationRecord:
    """Return the record of networks, of which the first is the dense one if there is one."""
    results = {n.name: calibrated(n, split, limit, batch_size) for n in track(networks, WHERE)}
    dense = networks[0].name if has_dense else None
    logits, labels = results[networks[0].name].predictions
    names = class_names(networks[0].data, logits.shape[1])
    counts = Counter(labels.tolist())
    rows = tuple(
        calibration_row(
            n.name,
            n.sizes(),
            results[n.name],
            names,
            results[dense] if dense not in (None, n.name) else None,
        )
        for n in networks
    )
    fitted_on = "the validation images" if split == "test" else "the other half of the images"
    class_images = {name: counts[i] for i, name in enumerate(names) if counts[i]}
    return CalibrationRecord(
        title,
        data_name(networks[0].data),
        split,
        len(labels),
        class_images,
        BINS,
        fitted_on,
        dense,
        rows,
    )


def calibrated(network: Compared, split: str, limit: int | None, batch_size: int) -> Calibrated:
    """Return a network's predictions; the temperature for test images is fitted on validation."""

    def on(split: str, limit: int | None) -> Predictions:
        return predict(network.model, network.batches(WHERE, split, limit, batch_size))

    splits = [(split, limit), *([("validation", None)] if split == "test" else [])]
    found = [on(*each) for each in track(splits, network.name)]
    return Calibrated.of(found[0], found[1] if split == "test" else None)
