"""Networks in float32, bfloat16 and int8: the table and the picture of error over latency."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ssl_lightning.measure.precision_record import PrecisionRecord, PrecisionRow
from ssl_lightning.report.charts import COLORS, INK, finish_figure, new_figure, plain_axes
from ssl_lightning.report.table import milliseconds, plural

TABLE_WIDTH = 100  # characters; a narrower terminal wraps the lines, but no figure is cut
MARKERS = {"float32": "o", "bfloat16": "s", "int8": "D"}
"""How a precision is drawn; networks differ by colour."""


def precision_table(record: PrecisionRecord) -> Table:
    """Lay out error, size of the file and latency, one block for each engine."""
    table = Table(title=record.title, caption=_caption(record), box=SIMPLE_HEAD)
    for title in ("engine", "network", "precision"):
        table.add_column(title, no_wrap=True)
    for title in ("error", "file MB", "latency ms", "speed-up"):
        table.add_column(title, justify="right", no_wrap=True)
    for engine, rows in groupby(record.rows, key=lambda row: row.engine):
        for i, row in enumerate(rows):
            table.add_row(*map(Text, [engine if i == 0 else "", *_cells(row)]))
        table.add_section()
    return table


def precision_reasons(record: PrecisionRecord) -> list[str]:
    """Return one sentence for everything that was left out."""
    return [f"Left out: {what}. {why.rstrip('.')}." for what, why in record.left_out.items()]


def _cells(row: PrecisionRow) -> list[str]:
    timing = row.timing
    return [
        row.network,
        row.precision,
        f"{row.error:.2f}",
        f"{row.num_bytes / 1e6:.2f}",
        f"{milliseconds(timing.median_ms)} ± {milliseconds(timing.iqr_ms)}",
        f"{1 / timing.ratio:.2f}x",
    ]


def _caption(record: PrecisionRecord) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    return (
        f"Error: {record.measure}, of the file that was run. Latency: median ± interquartile "
        f"range, {_conditions(record)}; Python {record.machine.python}, {versions}. Speed-up over "
        f"{record.rows[0].network} in float32 in the same engine, in turns. Int8: ranges from "
        f"{record.examples} examples."
    )


def _conditions(record: PrecisionRecord) -> str:
    shape = "x".join(map(str, record.input_shape))
    return (
        f"{plural(record.threads, 'thread')}, batch {record.batch_size}, input {shape}; "
        f"{record.machine.processor} ({', '.join(record.instructions) or 'without VNNI'})"
    )


def precision_chart(record: PrecisionRecord, path: str | Path) -> None:
    """Draw error over latency, one panel for each engine; lower and further left is better.

    Args:
        record: what to draw.
        path: PNG file to write.
    """
    engines = [(name, list(rows)) for name, rows in groupby(record.rows, lambda row: row.engine)]
    names = list(dict.fromkeys(row.network for row in record.rows))
    figure = new_figure(5.2 * len(engines), 4.4)
    panels = figure.subplots(1, len(engines), squeeze=False)[0]
    for axes, (engine, rows) in zip(panels, engines, strict=True):
        most = max(row.timing.median_ms for row in rows)
        for row in rows:
            axes.scatter(
                [row.timing.median_ms],
                [row.error],
                s=60,
                marker=MARKERS[row.precision],
                color=COLORS[names.index(row.network) % len(COLORS)],
                label=row.network if row.precision == rows[0].precision else None,
                zorder=3,
            )
            leftmost = row.timing.median_ms < most / 4  # others are written above their points
            axes.annotate(
                f"{row.precision}, {row.num_bytes / 1e6:.2f} MB, {1 / row.timing.ratio:.2f}x",
                (row.timing.median_ms, row.error),
                xytext=(0, -15 if leftmost else 7),
                textcoords="offset points",
                ha="left" if leftmost else "center",
                fontsize=7.5,
                color=INK,
            )
        axes.set_xlim(0, 1.25 * most)
        axes.margins(y=0.25)
        axes.set_ylabel("error")
        plain_axes(axes, f"{engine}: error over latency, ms", "both")
    finish_figure(figure, record.title, _conditions(record), path, names)
