"""Bar charts of multiply-adds and latency, per layer and for the whole network."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ssl_lightning.files import replacing
from ssl_lightning.measure.record import BenchmarkResult, Run
from ssl_lightning.report.run_report import RunReport
from ssl_lightning.report.table import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#9aa5b1", "#e8a33d", "#1f6feb", "#2da44e", "#a371f7", "#cf222e")
MARKERS = "osD^vPX"
INK, PALE, GRID = "#24292f", "#6e7781", "#e4e7eb"
TOTAL = "whole network"
MAX_LAYERS = 16  # more would be unreadable; those with the most multiply-adds are shown
Bars = dict[str, dict[str, float]]  # group of bars -> model -> percent


def bar_chart(report: RunReport, path: str | Path, run: Run | None = None) -> None:
    """Draw multiply-adds and latency in percent of the first model's, as a PNG.

    Two panels side by side, each with the whole network and below it the layers; one bar per model
    with its value at its end, "removed" where a model has no such layer.
    Of very deep networks the 16 layers with the most multiply-adds are shown, and the line below
    says how many are not.

    Args:
        report: what to draw.
        path: PNG file to write.
        run: which of its runs to draw, in eager; the first if None.
    """
    run, models = run or report.benchmark.run(), list(report.benchmark.models)
    panels = {"Multiply-adds": macs_bars(report), "Latency": latency_bars(report, run)}
    num_bars = (len(models) + 0.8) * len(panels["Latency"])
    figure = new_figure(10, 2.0 + 0.17 * num_bars)
    for axes, (title, bars) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        _draw_bars(axes, bars, models)
        _decorate(axes, f"{title}, % of {models[0]}", list(bars))
    labels = [_legend(report, model) for model in models]
    conditions = "\n".join([_conditions(report.benchmark, run), *left_out(report)])
    finish_figure(figure, report.title, conditions, path, labels)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of that many inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    return figure


def finish_figure(
    figure: "Figure",
    title: str,
    conditions: str,
    path: str | Path,
    labels: list[str] | None = None,
    columns: int | None = None,
) -> None:
    """Set the title above, the legend of the first panel below, and write the PNG."""
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    handles, own = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(
        handles=handles,
        labels=labels or own,
        title=conditions,
        loc="outside lower center",
        ncols=columns or len(handles),
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )
    legend.get_title().set(fontsize=8.5, color=PALE)
    save_figure(figure, path)


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write the PNG; a reader never sees half a file."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def plain_axes(axes: "Axes", title: str, grid: Literal["x", "y", "both"] = "both") -> None:
    """Set the title of a panel, and let nothing but its grid and two lines frame it."""
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.grid(axis=grid, color=GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)


def _layers(report: RunReport) -> list[str]:
    """Return the layers to show, in the order of the network."""
    macs, baseline = report.benchmark.layer_macs, report.benchmark.baseline
    with_baseline = [layer for layer in macs if macs[layer].get(baseline)]
    largest = sorted(with_baseline, key=lambda layer: -macs[layer][baseline])[:MAX_LAYERS]
    return [layer for layer in with_baseline if layer in largest]


def left_out(report: RunReport) -> list[str]:
    """Return a sentence about the layers that the picture does not show; none if it shows all."""
    macs, baseline = report.benchmark.layer_macs, report.benchmark.baseline
    counts = {layer: found.get(baseline, 0) for layer, found in macs.items()}
    shown = _layers(report)
    hidden = [layer for layer in counts if layer not in shown]
    if not hidden:
        return []
    share = 100 * sum(counts[layer] for layer in hidden) / max(sum(counts.values()), 1)
    return [
        f"not shown: {plural(len(hidden), 'layer')} of {len(counts)}, those with the fewest "
        f"multiply-adds ({share:.2g} % of {baseline}'s); `ssl-lightning report` lists them"
    ]


def macs_bars(report: RunReport) -> Bars:
    """Return the multiply-adds of the whole network and its layers, in percent of the first's."""
    record = report.benchmark
    counts = {TOTAL: {name: size.macs for name, size in record.models.items()}}
    counts |= {layer: record.layer_macs[layer] for layer in _layers(report)}
    return {
        group: {model: 100 * value / max(macs[record.baseline], 1) for model, value in macs.items()}
        for group, macs in counts.items()
    }


def latency_bars(report: RunReport, run: Run) -> Bars:
    """Return the latency of the whole network and its layers, in percent of the first model's."""
    timings = {TOTAL: run.network} | {layer: run.layers.get(layer, {}) for layer in _layers(report)}
    return {
        group: {model: 100 * timing.ratio for model, timing in found.items()}
        for group, found in timings.items()
    }


def _legend(report: RunReport, model: str) -> str:
    error = report.errors.get(model)
    return model if error is None else f"{model} (error {error:.2f}%)"


def _conditions(record: BenchmarkResult, run: Run) -> str:
    return (
        f"{record.machine.processor}, {plural(run.threads, 'thread')}, batch {run.batch_size}, "
        f"{run.dtype}, eager, torch {record.machine.torch}; shorter is faster"
    )


def _draw_bars(axes: "Axes", bars: Bars, models: list[str]) -> None:
    """Draw one group of bars per layer, one bar per model, each with its value at its end."""
    from matplotlib.patheffects import withStroke

    height = 0.84 / len(models)
    halo = [withStroke(linewidth=3, foreground="white")]
    for i, model in enumerate(models):
        offset = (i - (len(models) - 1) / 2) * height
        values = [group.get(model, 0.0) for group in bars.values()]
        labels = [_label(group.get(model)) for group in bars.values()]
        places = [y + offset for y in range(len(bars))]
        color = COLORS[i % len(COLORS)]
        drawn = axes.barh(places, values, height * 0.9, color=color, label=model, zorder=2)
        axes.bar_label(drawn, labels, padding=3, fontsize=8, color=INK, path_effects=halo, zorder=3)
    top = max([100.0, *(value for group in bars.values() for value in group.values())])
    axes.set_xlim(0, 1.13 * top)


def _label(value: float | None) -> str:
    if value is None:
        return "removed"
    return f"{value:.3g}" if value < 99.5 else f"{value:.0f}"


def _decorate(axes: "Axes", title: str, names: list[str]) -> None:
    """Decorate a panel; the whole network stands on top, apart from the layers."""
    decorate(axes, title, names)
    for label in axes.get_yticklabels()[:1]:  # the right panel has none
        label.set_fontweight("bold")
    axes.axvline(100, color=PALE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    if len(names) > 1:
        axes.axhline(0.5, color=PALE, linewidth=0.8)


def decorate(axes: "Axes", title: str, names: list[str]) -> None:
    """Set title, ticks and grid of groups of bars, from the top down."""
    plain_axes(axes, title, "x")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.spines["bottom"].set_visible(False)
