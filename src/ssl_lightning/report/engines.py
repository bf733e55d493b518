"""All engines beside each other: the table and the bars."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ssl_lightning.measure.record import BenchmarkResult, Run
from ssl_lightning.report.charts import COLORS, INK, PALE, decorate, finish_figure, new_figure
from ssl_lightning.report.run_report import RunReport
from ssl_lightning.report.table import NOTHING, milliseconds, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_COLUMNS = 2


def has_engines(record: BenchmarkResult) -> bool:
    """Return whether there is more to show than eager at one setting."""
    return len(record.runs) > 1 or any(len(run.engines) > 1 or run.left_out for run in record.runs)


def engine_table(report: RunReport) -> Table:
    """Lay out the latency of all models in all engines, one block for each setting.

    Every model has its median and interquartile range, the ratio to the first model in eager, and
    in its fastest engine the speed-up over the first model in the engine that is fastest for that
    one. Fits 80 columns.
    """
    record = report.benchmark
    table = Table(title=f"{report.title}: engines", caption=_caption(record), box=SIMPLE_HEAD)
    table.add_column("engine", no_wrap=True)
    table.add_column("model", overflow="fold")
    for title in ("latency ms", "ratio", "speed-up", "limit"):
        table.add_column(title, justify="right", no_wrap=True)
    for run in record.runs:
        table.add_row(*setting(run).split(", "), style="bold")
        for engine, timings in run.engines.items():
            for i, (model, timing) in enumerate(timings.items()):
                spread = f"{milliseconds(timing.median_ms)} ± {milliseconds(timing.iqr_ms)}"
                cells = [engine if i == 0 else "", model, spread, f"{timing.ratio:.3f}"]
                table.add_row(*map(Text, [*cells, *_speedup(record, run, engine, model)]))
        table.add_section()
    return table


def reasons(record: BenchmarkResult) -> list[str]:
    """Return one sentence for everything that could not be timed.

    The same reason in several settings is one sentence.
    """
    found: dict[str, list[str]] = {}
    for run in record.runs:
        for what, why in run.left_out.items():
            found.setdefault(f"{why}", []).append(f"{what} ({run.dtype})")
    return [f"Left out: {'; '.join(dict.fromkeys(where))}. {why}" for why, where in found.items()]


def setting(run: Run) -> str:
    """Return the conditions of a run in words.

    Example:
        >>> setting(Run("float32", 16, 2, {}, {}, {}, {}))
        'float32, batch 16, 2 threads'
    """
    return f"{run.dtype}, batch {run.batch_size}, {plural(run.threads, 'thread')}"


def _speedup(record: BenchmarkResult, run: Run, engine: str, model: str) -> list[str]:
    """Return the speed-up in the fastest engine and what multiply-adds allow; else nothing."""
    best = run.fastest[model]
    if best.engine != engine:
        return ["", ""]
    limit = record.models[record.baseline].macs / max(record.models[model].macs, 1)
    return [f"{1 / best.ratio:.2f}x" if best.ratio else NOTHING, f"{limit:.2f}x"]


def _caption(record: BenchmarkResult) -> str:
    shape = "x".join(map(str, record.input_shape))
    versions = ", ".join(f"{name} {found}" for name, found in record.versions.items())
    return (
        f"Input {shape} {record.memory_format}; {record.machine.processor}, "
        f"{record.machine.num_cores} cores; Python {record.machine.python}, {versions}. "
        f"Latency: median ± interquartile range. Ratio: to {record.baseline} in eager, round by "
        f"round. Speed-up: of a model in its fastest engine over {record.baseline} in the one "
        "fastest for that. Limit: by multiply-adds."
    )


def engine_chart(report: RunReport, path: str | Path) -> None:
    """Draw the latency of all models in all engines as a PNG, one panel for each setting.

    Bars are milliseconds; the ratio to the first model in eager stands at their end.

    Args:
        report: what to draw.
        path: PNG file to write.
    """
    runs, models = report.benchmark.runs, list(report.benchmark.models)
    columns = min(PANEL_COLUMNS, len(runs))
    rows = -(-len(runs) // columns)
    engines = max(len(run.engines) for run in runs)
    height = 1.4 + rows * (0.7 + 0.17 * engines * (len(models) + 0.8))
    figure = new_figure(5 * columns + 1, height)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, run in zip(panels, runs, strict=False):
        _draw(axes, run, models)
    for axes in panels[len(runs) :]:
        axes.set_visible(False)
    conditions = (
        f"{report.benchmark.machine.processor}; at each bar the time over {models[0]}'s in eager; "
        "shorter is faster"
    )
    finish_figure(figure, report.title, conditions, path, models)


def _draw(axes: Axes, run: Run, models: list[str]) -> None:
    """Draw one group of bars per engine, one bar per model."""
    height = 0.84 / len(models)
    for i, model in enumerate(models):
        timings = [timings.get(model) for timings in run.engines.values()]
        values = [0.0 if timing is None else timing.median_ms for timing in timings]
        spread = [0.0 if timing is None else timing.iqr_ms / 2 for timing in timings]
        labels = ["left out" if timing is None else f"{timing.ratio:.2f}" for timing in timings]
        places = [y + (i - (len(models) - 1) / 2) * height for y in range(len(timings))]
        drawn = axes.barh(
            places,
            values,
            height * 0.9,
            xerr=spread,
            color=COLORS[i % len(COLORS)],
            ecolor=PALE,
            label=model,
            zorder=2,
        )
        axes.bar_label(drawn, labels, padding=3, fontsize=8, color=INK, zorder=3)
    decorate(axes, f"{setting(run)}: ms", list(run.engines))
    axes.set_xlim(0, 1.15 * axes.get_xlim()[1])
