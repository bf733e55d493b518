"""Networks on corrupted images: tables, and a picture of errors over severity."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from rich.console import Group

from ssl_lightning.evaluation.corruption_record import SEVERITIES, CorruptionRecord
from ssl_lightning.report.charts import COLORS, INK, new_figure, plain_axes, save_figure
from ssl_lightning.report.generalisation import Cells, estimate_text, number_text, plain_table
from ssl_lightning.report.table import short_count

SUMMARY = (
    "network",
    "MACs",
    "clean error %",
    "mean error %",
    "mean above dense",
    "mCE %",
    "relative mCE %",
)
COLUMNS = 5
"""Panels of the picture in a row."""


def summary_rows(record: CorruptionRecord) -> list[Cells]:
    """Return the cells of a line for each network, as :data:`SUMMARY` names them."""
    return [
        (
            row.network,
            short_count(row.macs),
            estimate_text(row.clean),
            estimate_text(record.mean_error(row)),
            estimate_text(record.loss(row), sign=True),
            number_text(record.corruption_error(row)),
            number_text(record.corruption_error(row, relative=True)),
        )
        for row in record.rows
    ]


def corruption_head(record: CorruptionRecord) -> Cells:
    """Return the heads of the table of corruptions: mean errors, and losses of the others."""
    others = [row.network for row in record.rows if record.loss(row) is not None]
    return (
        "corruption",
        *(row.network for row in record.rows),
        *(f"{n}, above dense" for n in others),
    )


def corruption_rows(record: CorruptionRecord) -> list[Cells]:
    """Return the cells of a line for each corruption: mean errors over severities, and losses."""
    others = [row for row in record.rows if record.loss(row) is not None]
    return [
        (
            name.replace("_", " "),
            *(number_text(fmean(row.corruptions[name].errors)) for row in record.rows),
            *(estimate_text(record.loss(row, name), 1, sign=True) for row in others),
        )
        for name in record.rows[0].corruptions
    ]


def severity_rows(record: CorruptionRecord) -> list[Cells]:
    """Return the cells of a line for each corruption: the errors at each severity, by network."""
    return [
        (
            name.replace("_", " "),
            *(" ".join(f"{e:4.1f}" for e in row.corruptions[name].errors) for row in record.rows),
        )
        for name in record.rows[0].corruptions
    ]


def explained(record: CorruptionRecord) -> str:
    """Say how it was measured, and what it is not."""
    seed = "" if record.seed is None else f", seed {record.seed}"
    own = (
        ""
        if record.seed is None
        else " These are not the published corrupted images (CIFAR-10-C, ImageNet-C): severities "
        "are those for 224 x 224 pixels, and harder on smaller images."
    )
    reference = (
        ""
        if record.dense is None
        else f" mCE: mean over corruptions of the error summed over severities, over that of "
        f"{record.dense}; relative mCE: the same of the rise above the clean error."
    )
    return (
        f"{record.images:,} {record.split} images of {record.data} for each corruption and "
        f"severity, {record.source}{seed}. ±: standard error, of other images.{reference}{own}"
    )


def corruption_table(record: CorruptionRecord) -> Group:
    """Lay out the tables of a record, one above the other."""
    names = tuple(row.network for row in record.rows)
    title = "Errors in percent at severity 1 to 5"
    return Group(
        plain_table(title, ("corruption", *names), severity_rows(record)),
        plain_table(
            "Mean error over severities, and points above the dense network's",
            corruption_head(record),
            corruption_rows(record),
        ),
        plain_table(record.title, SUMMARY, summary_rows(record), explained(record)),
    )


def corruption_chart(record: CorruptionRecord, path: str | Path) -> None:
    """Draw errors over severity, one panel for each corruption, as a PNG.

    Args:
        record: what to draw.
        path: PNG file to write.
    """
    names = list(record.rows[0].corruptions)
    lines = -(-len(names) // COLUMNS)
    figure = new_figure(11, 1.6 + 2.1 * lines)
    grid = figure.subplots(lines, COLUMNS, sharex=True, sharey=True, squeeze=False)
    panels = [axes for line in grid for axes in line]
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels, names, strict=False):
        for number, row in enumerate(record.rows):
            errors = (row.clean.value, *row.corruptions[name].errors)
            color = COLORS[number % len(COLORS)]
            axes.plot((0, *SEVERITIES), errors, color=color, lw=1.4, label=row.network)
        plain_axes(axes, name.replace("_", " "))
        axes.set_xticks((0, *SEVERITIES))
        axes.set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    legend = figure.legend(
        handles,
        labels,
        title=f"severity (0: clean); {record.images:,} {record.split} images of {record.data}, "
        f"{record.source}",
        loc="outside lower center",
        ncols=min(len(handles), 4),
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )
    legend.get_title().set(fontsize=8.5)
    figure.suptitle(f"{record.title}: error in %", fontsize=13, fontweight="bold", color=INK)
    save_figure(figure, path)
