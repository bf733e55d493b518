"""Charts of layers of a run's page."""

from __future__ import annotations

from ssl_lightning.measure.record import Run
from ssl_lightning.report.charts import TOTAL, latency_bars, left_out, macs_bars
from ssl_lightning.report.engines import setting
from ssl_lightning.report.html.page import Figure
from ssl_lightning.report.html.plots import Bar, bars_plot
from ssl_lightning.report.html.run_tables import (
    NOT_TIMED,
    REMOVED,
    groups_cell,
    latency,
    macs_cell,
    time_cell,
)
from ssl_lightning.report.run_report import GROUP_KINDS, RunReport
from ssl_lightning.report.table import TITLES


def layer_figures(report: RunReport, run: Run) -> list[Figure]:
    """Draw multiply-adds and time of the whole network and its layers, in percent of the first.

    Of deep networks those layers that the picture ``report.png`` shows, too.
    """
    base = report.benchmark.baseline
    panels = {
        f"multiply-adds, % of {base}": macs_bars(report),
        f"latency, % of {base}": latency_bars(report, run),
    }
    figures = []
    for title, groups in panels.items():
        timed = title.startswith("latency")
        bars = [
            Bar(
                group,
                model,
                found.get(model),
                label_of(found.get(model), missing(report, group, model, timed)),
                words(report, run, group, model),
            )
            for group, found in groups.items()
            for model in report.benchmark.models
        ]
        caption = f"{title.capitalize()}; {', '.join(report.benchmark.models)}"
        caption += f"; eager, {setting(run)}" if timed else "; of one image"
        sentences = "".join(f" {sentence.capitalize()}." for sentence in left_out(report))
        figures.append(
            Figure(bars_plot(bars, title, alternative(title, bars)), f"{caption}.{sentences}")
        )
    return figures


def label_of(value: float | None, reason: str) -> str:
    """Write a share at the end of a bar.

    Example:
        >>> label_of(12.345, ""), label_of(100.4, ""), label_of(None, "removed")
        ('12.3', '100', 'removed')
    """
    if value is None:
        return reason
    return f"{value:.3g}" if value < 99.5 else f"{value:.0f}"


def missing(report: RunReport, group: str, model: str, timed: bool) -> str:
    """Say why there is no bar."""
    if group == TOTAL:
        return NOT_TIMED
    macs = report.benchmark.layer_macs.get(group, {})
    return NOT_TIMED if timed and model in macs else REMOVED


def words(report: RunReport, run: Run, group: str, model: str) -> str:
    """Return what a bar says: network, layer, groups left, multiply-adds and time."""
    record = report.benchmark
    if group == TOTAL:
        error = report.errors.get(model)
        said = "error not measured" if error is None else f"error {error:.2f} %"
        time = latency(run.network.get(model))
        parts = [said, f"{record.models[model].macs:,} multiply-adds"]
        return f"{model}, {group}: {', '.join([*parts, f'{time} ms' if time else NOT_TIMED])}"
    kinds = report.layers.get(group, {})
    groups = [
        f"{groups_cell(kinds[k]).text} {TITLES[k]} left" for k in GROUP_KINDS if k in kinds
    ] or ["groups not counted"]
    macs = record.layer_macs.get(group, {})
    count = macs_cell(macs.get(model), bool(macs)).text
    time = time_cell(run.layers.get(group, {}).get(model), model in macs or not macs).text
    parts = [f"{count} multiply-adds" if count[:1].isdigit() else f"multiply-adds {count}"]
    parts.append(f"{time} ms" if time[:1].isdigit() else f"time {time}")
    return f"{model}, {group}: {', '.join(parts)}; after pruning {', '.join(groups)}"


def alternative(title: str, bars: list[Bar]) -> str:
    """Say in words what a chart of bars shows."""
    whole = ", ".join(f"{bar.series} {bar.label}" for bar in bars if bar.group == TOTAL)
    layers = len({bar.group for bar in bars}) - 1
    return f"Bar chart of {title}: {whole} for the whole network, and {layers} layers below it."
