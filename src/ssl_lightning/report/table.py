"""The comparison as a table in the terminal: the whole network, then its layers."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_lightning.benchmark.record import BenchmarkResult, Run, Timing
from ssl_lightning.report.run_report import RunReport

NOTHING = "-"
WHOLE = "whole network"
WIDTH = 124  # characters; a narrower terminal wraps the lines, but no figure is cut
TITLES = {"filters": "filters", "channels": "channels", "columns": "filter size"}


def comparison_table(report: RunReport, *, threads: int | None = None) -> Table:
    """Lay out errors, kept groups, multiply-adds and latency of all models below each other.

    One block for the whole network and one per layer, with one row per model, so that it fits a
    terminal whatever the number of models. Kept groups as ``kept/of`` (filter size is the number
    of kept columns). Per model: error %, multiply-adds and their share of the first model's,
    latency (median and interquartile range) and its ratio to the first model's. What is not
    known, or not there in a model, is ``-``.

    Args:
        report: what to show.
        threads: which run to show; the first if None.

    Raises:
        ValueError: if nothing was measured at that number of threads.
    """
    record, run = report.benchmark, report.benchmark.run(threads)
    kinds = [kind for kind in TITLES if any(kind in layer for layer in report.layers.values())]
    table = Table(title=report.title, caption=_caption(record, run), box=SIMPLE_HEAD)
    table.add_column("layer", overflow="fold")
    for title in (TITLES[kind] for kind in kinds):
        table.add_column(title, justify="right")
    table.add_column("model", overflow="fold")
    for title in ("error %", "MACs", f"% of {record.baseline}", "latency ms", "ratio"):
        table.add_column(Text(title), justify="right", no_wrap=title == "latency ms")
    whole = {name: size.macs for name, size in record.models.items()}
    _add_block(table, report, WHOLE, [NOTHING] * len(kinds), whole, run.network)
    for layer in dict.fromkeys([*run.layers, *report.layers]):
        kept = [_kept(report.layers.get(layer, {}).get(kind)) for kind in kinds]
        macs, timings = record.layer_macs.get(layer, {}), run.layers.get(layer, {})
        _add_block(table, report, layer, kept, macs, timings)
    return table


def print_report(
    path: str | Path, *, threads: int | None = None, console: Console | None = None
) -> None:
    """Show the comparison table of a report file, one table per number of threads.

    Args:
        path: file that :meth:`RunReport.save` wrote.
        threads: show only this run.
        console: where to print; standard output if None.

    Raises:
        ValueError: if the file is no report, or nothing was measured at that number of threads.
    """
    report = RunReport.load(path)
    if console is None:
        console = Console()
        console = console if console.width >= WIDTH else Console(width=WIDTH)
    shown = [run.threads for run in report.benchmark.runs] if threads is None else [threads]
    for count in shown:
        console.print(comparison_table(report, threads=count))


def short_count(number: int) -> str:
    """Write a count with three digits and a unit.

    Example:
        >>> [short_count(n) for n in (0, 999, 12345, 40_551_040, 724_406_816)]
        ['0', '999', '12.3k', '40.6M', '724M']
    """
    value = float(number)
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.4g}T"


def percent(part: float, whole: float) -> str:
    """Write a share in percent with three digits, ``-`` of nothing.

    Example:
        >>> percent(1, 8), percent(12, 12), percent(1, 0)
        ('12.5', '100', '-')
    """
    return f"{100 * part / whole:.3g}" if whole else NOTHING


def _caption(record: BenchmarkResult, run: Run) -> str:
    shape = "x".join(map(str, record.input_shape))
    plural = "" if run.threads == 1 else "s"
    return (
        f"{run.threads} thread{plural}, batch {record.batch_size}, input {shape} {record.dtype} "
        f"{record.memory_format}; {record.machine.processor}, {record.machine.num_cores} cores; "
        f"torch {record.machine.torch}, Python {record.machine.python}. "
        f"MACs of the batch. Latency: median ± interquartile range; ratio to {record.baseline}, "
        "measured in turns."
    )


def _add_block(
    table: Table,
    report: RunReport,
    name: str,
    kept: list[str],
    macs: dict[str, int],
    timings: dict[str, Timing],
) -> None:
    """Add one row per model; the name and the kept groups stand in the first."""
    models = list(report.benchmark.models)
    style = "bold" if name == WHOLE else None
    for i, model in enumerate(models):
        head = [name, *kept] if i == 0 else [""] * (1 + len(kept))
        error = _error(report, model) if name == WHOLE else ""
        cells = [*head, model, error, *_macs(macs, model, models[0])]
        cells += _latency(timings, model, models[0])
        table.add_row(*map(Text, cells), style=style, end_section=i == len(models) - 1)


def _error(report: RunReport, model: str) -> str:
    return f"{report.errors[model]:.2f}" if model in report.errors else NOTHING


def _macs(macs: dict[str, int], model: str, baseline: str) -> list[str]:
    if model not in macs:
        return [NOTHING, NOTHING]
    return [short_count(macs[model]), percent(macs[model], macs.get(baseline, 0))]


def _latency(timings: dict[str, Timing], model: str, baseline: str) -> list[str]:
    timing = timings.get(model)
    if timing is None:
        return [NOTHING, NOTHING]
    ratio = f"{timing.ratio:.2f}" if baseline in timings else NOTHING
    return [f"{_ms(timing.median_ms)} ± {_ms(timing.iqr_ms)}", ratio]


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _kept(counts: list[int] | None) -> str:
    return NOTHING if counts is None else f"{counts[0]}/{counts[1]}"
