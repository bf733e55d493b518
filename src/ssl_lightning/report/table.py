"""The comparison as a table in the terminal: the whole network, then its layers."""

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ssl_lightning.measure.record import BenchmarkResult, Run, Timing
from ssl_lightning.report.run_report import RunReport

NOTHING = "-"
WHOLE = "whole network"
TITLES = {"filters": "filters", "channels": "channels", "columns": "filter size"}


def comparison_table(report: RunReport, run: Run | None = None) -> Table:
    """Lay out errors, retained groups, multiply-adds and latency of all models below each other.

    One block for the whole network and one per layer, with one row per model, so that it fits a
    terminal whatever the number of models. Retained groups as ``retained/of`` (filter size is the
    number of retained columns). Per model: error %, multiply-adds and their share of the first
    model's, latency (median and interquartile range) and its ratio to the first model's. What is
    not known, or not there in a model, is ``-``. Layers have rows only if one was timed.

    Args:
        report: what to show.
        run: which of its runs to show, in eager; the first if None.
    """
    record, run = report.benchmark, run or report.benchmark.run()
    layers = dict.fromkeys([*run.layers, *report.layers]) if run.layers else {}
    known = [report.layers.get(layer, {}) for layer in layers]
    kinds = [kind for kind in TITLES if any(kind in counts for counts in known)]
    table = Table(title=report.title, caption=_caption(record, run), box=SIMPLE_HEAD)
    table.add_column("layer", overflow="fold")
    for title in (TITLES[kind] for kind in kinds):
        table.add_column(title, justify="right")
    table.add_column("model", overflow="fold")
    for title in ("error %", "MACs", f"% of {record.baseline}", "latency ms", "ratio"):
        table.add_column(Text(title), justify="right", no_wrap=title == "latency ms")
    whole = {name: size.macs for name, size in record.models.items()}
    _add_block(table, report, WHOLE, [NOTHING] * len(kinds), whole, run.network)
    for layer in layers:
        retained = [_retained(report.layers.get(layer, {}).get(kind)) for kind in kinds]
        macs, timings = record.layer_macs.get(layer, {}), run.layers.get(layer, {})
        _add_block(table, report, layer, retained, macs, timings)
    return table


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
    return (
        f"{plural(run.threads, 'thread')}, batch {run.batch_size}, input {shape} {run.dtype} "
        f"{record.memory_format}; {record.machine.processor}, {record.machine.num_cores} cores; "
        f"torch {record.machine.torch}, Python {record.machine.python}. "
        "MACs of one image. Latency in eager: median ± interquartile range; ratio to "
        f"{record.baseline}, measured in turns."
    )


def _add_block(
    table: Table,
    report: RunReport,
    name: str,
    retained: list[str],
    macs: dict[str, int],
    timings: dict[str, Timing],
) -> None:
    """Add one row per model, one for all if there is nothing but the name and the groups."""
    if not macs and not timings:
        table.add_row(*map(Text, [name, *retained]), end_section=True)
        return
    models = list(report.benchmark.models)
    style = "bold" if name == WHOLE else None
    for i, model in enumerate(models):
        head = [name, *retained] if i == 0 else [""] * (1 + len(retained))
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
    return [f"{milliseconds(timing.median_ms)} ± {milliseconds(timing.iqr_ms)}", ratio]


def milliseconds(value: float) -> str:
    """Write a duration, shorter where it is long.

    Example:
        >>> [milliseconds(value) for value in (0.0123, 12.34)]
        ['0.012', '12.3']
    """
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def plural(number: int, noun: str) -> str:
    """Write a number and what it counts.

    Example:
        >>> plural(1, "thread"), plural(2, "thread")
        ('1 thread', '2 threads')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _retained(counts: list[int] | None) -> str:
    return NOTHING if counts is None else f"{counts[0]}/{counts[1]}"
