"""What penalties cost in training: the table and the bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ssl_lightning.measure.training_record import NONE, TrainingRecord, TrainingRow
from ssl_lightning.report.charts import (
    COLORS,
    INK,
    PALE,
    finish_figure,
    new_figure,
    plain_axes,
)
from ssl_lightning.report.table import NOTHING, milliseconds, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TABLE_WIDTH = 118  # characters; a narrower terminal wraps the lines, but no figure is cut
TITLE = "What penalties cost in training"
SERIES = {"proximal": COLORS[2], "subgradient": COLORS[1], "": COLORS[0]}
"""Mode -> colour of its bars; other libraries have no mode."""
OTHERS = "another library"
GAP = 0.6  # between the bars of two forms, in bars


def training_table(record: TrainingRecord) -> Table:
    """Lay out step time, time inside the penalties, and memory; one block for each backbone.

    What was left out has a row without figures; :func:`training_reasons` says why.
    """
    table = Table(title=TITLE, caption=_caption(record), box=SIMPLE_HEAD)
    for title in ("form", "mode"):
        table.add_column(title, no_wrap=True)
    for title in ("step ms", "ratio", "quartiles", "penalty ms", "peak MB", "penalty MB"):
        table.add_column(title, justify="right", no_wrap=True)
    for backbone, rows in record.blocks().items():
        shape = "x".join(map(str, record.input_shapes[backbone]))
        table.add_row(Text(backbone), shape, style="bold")
        for row in rows:
            table.add_row(*map(Text, _cells(row)))
        for what in record.left_out:
            if what.startswith(f"{backbone}, "):
                table.add_row(Text(what.removeprefix(f"{backbone}, ")), *[NOTHING] * 7)
        table.add_section()
    return table


def training_reasons(record: TrainingRecord) -> list[str]:
    """Return one sentence for everything that was left out."""
    return [f"Left out: {what}. {why.rstrip('.')}." for what, why in record.left_out.items()]


def _cells(row: TrainingRow) -> list[str]:
    measured = [milliseconds(row.step_ms)]
    if row.form == NONE:
        return [row.form, "", *measured, "1", "", "", megabytes(row.peak_bytes), ""]
    return [
        row.form,
        row.mode,
        *measured,
        f"{row.ratio:.3f}",
        f"{row.ratio_low:.3f} .. {row.ratio_high:.3f}",
        milliseconds(row.penalty_ms),
        megabytes(row.peak_bytes),
        megabytes(row.penalty_bytes),
    ]


def megabytes(count: int) -> str:
    """Write bytes in units of a million.

    Example:
        >>> [megabytes(count) for count in (0, 1280, 6_725_552, 397_329_248)]
        ['0.00', '0.00', '6.73', '397']
    """
    value = count / 1e6
    return f"{value:.2f}" if value < 99.5 else f"{value:.0f}"


def _caption(record: TrainingRecord) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    place = f"{record.machine.num_cores} cores, {record.cpu_capability}"
    return (
        f"{_conditions(record)}, {place}; Python {record.machine.python}, {versions}. "
        f"{record.steps} steps of each form in turns. Ratio: to the step without penalties, median "
        "and quartiles of the rounds. Penalty: inside the proximal step, the subgradient or the "
        "other library. Peak: of tensors beyond weights and optimizer state."
    )


def _conditions(record: TrainingRecord) -> str:
    threads = "" if record.machine.device == "cuda" else f", {plural(record.threads, 'thread')}"
    dtype = "bfloat16 autocast" if record.dtype == "bfloat16" else record.dtype
    return f"{record.machine.processor}{threads}, batch {record.batch_size}, {dtype}"


def training_chart(record: TrainingRecord, path: str | Path) -> None:
    """Draw for each backbone the step time over the one without penalties, and their own memory.

    Lines at the ends of the bars of time span the quartiles; behind them stands the time inside the
    penalties. Behind the memory stands how much higher a whole step's peak is, if it is.

    Args:
        record: what to draw.
        path: PNG file to write.
    """
    blocks = record.blocks()
    heights = [1.0 + 0.21 * len(rows) for rows in blocks.values()]
    figure = new_figure(10.5, 1.2 + sum(heights))
    panels = figure.subplots(len(blocks), 2, squeeze=False, height_ratios=heights)
    for (left, right), (backbone, (none, *rows)) in zip(panels, blocks.items(), strict=True):
        _draw(left, rows, lambda row: row.ratio, _time_label, spread=True)
        left.axvline(1, color=PALE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        plain_axes(left, f"{backbone}: step / {milliseconds(none.step_ms)} ms without", "x")
        _draw(right, rows, lambda row: row.penalty_bytes / 1e6, _memory_label(none))
        right.set_yticks([])
        peak = megabytes(none.peak_bytes)
        plain_axes(right, f"memory of penalties, MB (a step without: {peak})", "x")
    conditions = f"{_conditions(record)}; behind the bars: ms inside the penalties"
    finish_figure(figure, TITLE, conditions, path)


def _draw(
    axes: Axes,
    rows: Sequence[TrainingRow],
    value: Callable[[TrainingRow], float],
    label: Callable[[TrainingRow], str],
    spread: bool = False,
) -> None:
    """Draw one bar for each row, those of a form next to each other, from the top down."""
    places, ticks, y = [], {}, 0.0
    for form, members in groupby(rows, key=lambda row: row.form):
        own = [y + i for i, _ in enumerate(members)]
        ticks[form], y = sum(own) / len(own), own[-1] + 1 + GAP
        places += own
    for mode, color in SERIES.items():
        chosen = [(place, row) for place, row in zip(places, rows, strict=True) if row.mode == mode]
        heights = [place for place, _ in chosen]
        values = [value(row) for _, row in chosen]
        axes.barh(heights, values, 0.85, color=color, label=mode or OTHERS, zorder=2)
    ends = [max(value(row), row.ratio_high) if spread else value(row) for row in rows]
    for place, row, end in zip(places, rows, ends, strict=True):
        if spread:
            axes.plot([row.ratio_low, row.ratio_high], [place, place], color=INK, linewidth=1)
        axes.annotate(
            label(row),
            (end, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=INK,
            zorder=3,
        )
    axes.set_yticks(list(ticks.values()), list(ticks))
    axes.set_ylim(y - GAP - 0.4, -0.6)
    axes.set_xlim(0, 1.45 * max(ends, default=1.0) or 1.0)


def _time_label(row: TrainingRow) -> str:
    return f"{row.ratio:.3f}  ({milliseconds(row.penalty_ms)} ms)"


def _memory_label(none: TrainingRow) -> Callable[[TrainingRow], str]:
    def label(row: TrainingRow) -> str:
        more = 100 * (row.peak_bytes / max(none.peak_bytes, 1) - 1)
        step = f"  (a step: +{more:.1f} %)" if more >= 0.05 else ""
        return f"{megabytes(row.penalty_bytes)}{step}"

    return label
