"""Networks' calibration, and the classes that pruning costs most: tables and picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from ssl_lightning.evaluation.calibration_record import CalibrationRecord, CalibrationRow
from ssl_lightning.evaluation.estimates import Estimate, threshold
from ssl_lightning.report.charts import COLORS, INK, PALE, finish_figure, new_figure, plain_axes
from ssl_lightning.report.generalisation import (
    Cells,
    estimate_text,
    number_text,
    plain_table,
)
from ssl_lightning.report.table import short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEAD = (
    "network",
    "MACs",
    "error %",
    "NLL",
    "ECE %",
    "temperature",
    "NLL scaled",
    "ECE % scaled",
)
AGAINST = ("above dense:", "error", "NLL", "ECE", "disagreement %")


def calibration_rows(record: CalibrationRecord) -> list[Cells]:
    """Return the cells of a line for each network, as :data:`HEAD` names them."""
    return [
        (
            row.network,
            short_count(row.macs),
            estimate_text(row.error),
            estimate_text(row.nll, 3),
            estimate_text(row.ece),
            f"{row.temperature:.2f}",
            estimate_text(row.scaled_nll, 3),
            estimate_text(row.scaled_ece),
        )
        for row in record.rows
    ]


def against_rows(record: CalibrationRecord) -> list[Cells]:
    """Return the cells of a line for each pruned network, as :data:`AGAINST` names them."""
    return [
        (
            network,
            estimate_text(against.error, sign=True),
            estimate_text(against.nll, 3, sign=True),
            estimate_text(against.ece, sign=True),
            estimate_text(against.disagreement),
        )
        for network, against in record.compared().items()
    ]


def class_head(record: CalibrationRecord) -> Cells:
    """Return the heads of the table of classes."""
    return ("class", "images", f"error % of {record.dense}", *record.compared())


def class_rows(record: CalibrationRecord) -> list[Cells]:
    """Return the cells of a line for each class: how many points each network loses in it."""
    dense = next(row for row in record.rows if row.network == record.dense)
    compared = record.compared()
    limit = threshold(len(record.class_images) * max(len(compared), 1))
    return [
        (
            name,
            str(record.class_images[name]),
            number_text(error),
            *(loss_text(against.classes[name], limit) for against in compared.values()),
        )
        for name, error in dense.class_errors.items()
    ]


def loss_text(found: Estimate, limit: float) -> str:
    """Write a difference; a star says that it is beyond so many standard errors.

    Example:
        >>> loss_text(Estimate(4.0, 1.0), 3.0), loss_text(Estimate(-1.0, 1.0), 3.0)
        ('+4.0 ± 1.0 *', '-1.0 ± 1.0')
    """
    return estimate_text(found, 1, sign=True) + (" *" if abs(found.z) > limit else "")


def explained(record: CalibrationRecord) -> str:
    """Say how it was measured."""
    return (
        f"{record.images:,} {record.split} images of {record.data}. NLL: negative log-likelihood, "
        f"nats per image. ECE: expected calibration error, {record.num_bins} bins (Guo et al., "
        f"2017). Scaled: outputs divided by a temperature that was fitted on {record.scaled_on}. "
        "±: standard error, of other images, not of other trainings."
    )


def class_words(record: CalibrationRecord) -> str:
    """Say what the stars in the table of classes are."""
    comparisons = len(record.class_images) * max(len(record.compared()), 1)
    return (
        f"Points of error above {record.dense}, ± standard error. *: beyond "
        f"{threshold(comparisons):.1f} standard errors, which chance alone gives to any of these "
        f"{comparisons} differences with a probability of at most 5 %."
    )


def calibration_table(record: CalibrationRecord) -> Group:
    """Lay out the tables of a record, one above the other."""
    tables: list[Table] = [
        plain_table(record.title, HEAD, calibration_rows(record), explained(record))
    ]
    if record.compared():
        tables += [
            plain_table("", AGAINST, against_rows(record)),
            plain_table("", class_head(record), class_rows(record), class_words(record)),
        ]
    return Group(*tables)


def calibration_chart(record: CalibrationRecord, path: str | Path) -> None:
    """Draw how accuracies differ from confidences, and what each class loses, as a PNG.

    Args:
        record: what to draw.
        path: PNG file to write.
    """
    compared = record.compared()
    figure = new_figure(10.5 if compared else 6, 4.6)
    panels = figure.subplots(1, 2 if compared else 1, squeeze=False)[0]
    draw_reliability(panels[0], record)
    if compared:
        draw_classes(panels[1], record)
    finish_figure(
        figure,
        record.title,
        f"{record.images:,} {record.split} images of {record.data}; bars: one standard error",
        path,
        columns=min(len(record.rows), 3),
    )


def draw_reliability(axes: Axes, record: CalibrationRecord) -> None:
    """Draw accuracy over confidence; points below the diagonal are too confident."""
    axes.plot([0, 100], [0, 100], color=PALE, lw=1, ls="--", zorder=1)
    for number, row in enumerate(record.rows):
        axes.plot(
            [100 * found.confidence for found in row.bins],
            [100 * found.accuracy for found in row.bins],
            marker="o",
            ms=3.5,
            lw=1.4,
            color=color_of(number),
            label=legend(row),
        )
    plain_axes(axes, "Accuracy over confidence, %")
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)


def draw_classes(axes: Axes, record: CalibrationRecord) -> None:
    """Draw how many points of error each class loses."""
    compared = record.compared()
    names = [row.network for row in record.rows]
    for place, (network, against) in enumerate(compared.items()):
        shift = 0.7 * ((place + 0.5) / len(compared) - 0.5)
        axes.errorbar(
            [found.value for found in against.classes.values()],
            [y + shift for y in range(len(against.classes))],
            xerr=[found.se for found in against.classes.values()],
            fmt="o",
            ms=3.5,
            lw=1.2,
            color=color_of(names.index(network)),
        )
    axes.axvline(0, color=PALE, lw=1)
    plain_axes(axes, f"Error above {record.dense}, points", "x")
    axes.set_yticks(range(len(record.class_images)), list(record.class_images))
    axes.set_ylim(len(record.class_images) - 0.5, -0.5)
    axes.tick_params(axis="y", labelcolor=INK)


def legend(row: CalibrationRow) -> str:
    """Return the label of a network."""
    return f"{row.network} (ECE {row.ece.value:.1f} %)"


def color_of(number: int) -> str:
    """Return the colour of a network by its place."""
    return COLORS[number % len(COLORS)]
