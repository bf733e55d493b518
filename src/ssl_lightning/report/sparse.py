"""Sparse layers against dense engines: the table, the bars per layer, and where sparsity pays."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ssl_lightning.measure.sparse_record import CONV_PART, SparseRecord, SparseRow
from ssl_lightning.report.charts import (
    COLORS,
    GRID,
    INK,
    PALE,
    finish_figure,
    new_figure,
    plain_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTHING = "-"
TABLE_WIDTH = 148  # characters; a narrower terminal wraps the lines, but no figure is cut
FORM_NAMES = {"columns": "SSL", "csr": "l1 (CSR)"}
Run = tuple[int, int]  # batch size, threads


def sparse_table(record: SparseRecord) -> Table:
    """Lay out all rows: what the paper had, what the arithmetic allows, what was measured.

    The mean of the speed-ups stands below each block of a configuration with one batch size and
    number of threads, as the paper's headline is such a mean; a layer that would get slower is
    dense and counts as 1. The conv part as a whole is a row of its own and not in the mean.
    """
    table = Table(title=record.title, caption=_caption(record), box=SIMPLE_HEAD)
    for title in ("#", "layer"):
        table.add_column(title, no_wrap=True)
    for title in ("row %", "col. %", "batch", "thr."):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("best dense", no_wrap=True)
    for title in ("dense ms", "sparse ms", "paper", "limit", "ours", "KB lowered", "held"):
        table.add_column(title, justify="right", no_wrap=True)
    for rows in _blocks(record).values():
        layers = [row for row in rows if row.layer != CONV_PART]
        for row in layers:
            table.add_row(*map(Text, _cells(row)))
        if layers:
            table.add_row(*map(Text, _means(layers)), style="bold")
        for row in rows:
            if row.layer == CONV_PART:
                table.add_row(*map(Text, _cells(row)))
        table.add_section()
    return table


def _blocks(record: SparseRecord) -> dict[tuple[int, str, Run], list[SparseRow]]:
    """Group rows by configuration, form, batch size and threads."""
    blocks: dict[tuple[int, str, Run], list[SparseRow]] = {}
    for row in record.rows:
        key = (row.configuration, row.form, (row.batch_size, row.threads))
        blocks.setdefault(key, []).append(row)
    return dict(sorted(blocks.items()))


def _cells(row: SparseRow) -> list[str]:
    number = f"{row.configuration or ''} {FORM_NAMES.get(row.form, row.form)}".strip()
    return [
        number,
        row.layer,
        f"{100 * row.row_sparsity:.1f}",
        f"{100 * row.column_sparsity:.1f}",
        str(row.batch_size),
        str(row.threads),
        row.dense_engine,
        f"{row.dense_ms:.3f}",
        f"{row.sparse_ms:.3f}",
        NOTHING if row.paper is None else f"{row.paper:.2f}",
        f"{row.limit:.2f}",
        f"{row.speedup:.2f} ± {row.speedup_iqr:.2f}",
        f"{row.lowering_bytes / 1024:.0f}",
        f"{row.workspace_bytes / 1024:.0f}" if row.workspace_bytes else NOTHING,
    ]


def _means(rows: list[SparseRow]) -> list[str]:
    papers = [row.paper for row in rows if row.paper is not None]
    paper = f"{fmean(papers):.2f}" if len(papers) == len(rows) else NOTHING
    limit, ours = fmean(row.limit for row in rows), fmean(max(row.speedup, 1) for row in rows)
    return ["", "mean", *[""] * 7, paper, f"{limit:.2f}", f"{ours:.2f}", "", ""]


def _caption(record: SparseRecord) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    return (
        f"{record.dtype}; {record.machine.processor}, {record.machine.num_cores} cores, "
        f"{record.instruction_set}; {versions}. Sparse: padding, lowering, product and scattering. "
        "Speed-up over the fastest dense engine: median ± interquartile range of the ratios of "
        "samples taken in turns. KB: the lowered matrix of one image, and what the kernel holds "
        "instead on all its threads. In the mean, a layer that would get slower stays dense (1). "
        "Conv part: all layers with ReLU, pooling and response norms between them."
    )


def speedup_chart(record: SparseRecord, path: str | Path) -> None:
    """Draw the speed-up of each layer as bars: the paper's, ours and what the arithmetic allows.

    One panel per configuration, batch size and number of threads.

    Args:
        record: what to draw.
        path: PNG file to write.
    """
    blocks = _blocks(record)
    columns = min(len(blocks), 4)
    lines = -(-len(blocks) // columns)
    figure = new_figure(max(3.6 * columns + 0.6, 7.4), 2.7 * lines + 0.9)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, ((number, form, (batch, threads)), rows) in zip(panels, blocks.items(), strict=False):
        _draw_bars(axes, rows)
        plural = "" if threads == 1 else "s"
        title = f"#{number} {FORM_NAMES.get(form, form)}, batch {batch}, {threads} thread{plural}"
        plain_axes(axes, title, "y")
    for axes in panels[len(blocks) :]:
        axes.set_visible(False)
    finish_figure(figure, record.title, _conditions(record), path)


def _draw_bars(axes: Axes, rows: list[SparseRow]) -> None:
    """Draw limit, paper and ours side by side for each layer, values above ours."""
    series = {
        "arithmetic limit": ([row.limit for row in rows], GRID),
        "paper, product alone": ([row.paper or 0.0 for row in rows], COLORS[0]),
        "measured, all included": ([row.speedup for row in rows], COLORS[2]),
    }
    width = 0.84 / len(series)
    for i, (name, (values, color)) in enumerate(series.items()):
        places = [x + (i - 1) * width for x in range(len(rows))]
        drawn = axes.bar(places, values, width * 0.92, color=color, label=name, zorder=2)
        if i == len(series) - 1:
            axes.bar_label(drawn, fmt="%.1f", fontsize=7.5, color=INK, padding=1)
    axes.set_xticks(range(len(rows)), [row.layer for row in rows])
    axes.axhline(1, color=INK, linewidth=0.8, zorder=3)
    axes.set_ylim(0, 1.12 * max(max(values) for values, _ in series.values()))


def break_even_chart(record: SparseRecord, path: str | Path) -> None:
    """Draw speed-up over the share of multiply-adds that remain, with the arithmetic limit.

    Both axes are logarithmic, so the limit is a straight line; under the line at 1 sparsity costs
    time. Columns and CSR are one line each per batch size and number of threads.

    Args:
        record: what to draw, as ``benchmark break-even`` measures it.
        path: PNG file to write.
    """
    figure = new_figure(7.4, 5.0)
    axes = figure.subplots()
    limits = sorted({row.limit for row in record.rows})
    axes.plot(limits, limits, color=PALE, linestyle=(0, (4, 3)), label="arithmetic limit")
    colors = {"columns": COLORS[2], "csr": COLORS[1]}
    styles = ["-", ":", "-.", "--"]
    blocks = _blocks(record)
    runs = sorted({run for _, _, run in blocks})
    for (_, form, run), rows in blocks.items():
        rows = sorted(rows, key=lambda row: row.limit)
        batch, threads = run
        axes.plot(
            [row.limit for row in rows],
            [row.speedup for row in rows],
            color=colors.get(form, INK),
            linestyle=styles[runs.index(run) % len(styles)],
            marker="o",
            markersize=4,
            label=f"{FORM_NAMES.get(form, form)}, batch {batch}, threads {threads}",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.set_xlabel("fewer multiply-adds: 1 / ((1 - row)(1 - column))", color=INK, fontsize=9.5)
    axes.axhline(1, color=INK, linewidth=0.8)
    plain_axes(axes, "Speed-up over the fastest dense engine")
    finish_figure(figure, record.title, _conditions(record), path, columns=3)


def _conditions(record: SparseRecord) -> str:
    return f"{record.machine.processor}, {record.instruction_set}, {record.dtype}"
