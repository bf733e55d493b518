"""What is measured of a run as tables of its page."""

from __future__ import annotations

from collections.abc import Mapping

from ssl_lightning.measure.record import BenchmarkResult, Run, Timing
from ssl_lightning.report.engines import has_engines, setting
from ssl_lightning.report.html.page import Cell, Table, Value
from ssl_lightning.report.run_report import GROUP_KINDS, RunReport
from ssl_lightning.report.table import TITLES, milliseconds, percent

UNKNOWN_ERROR = "not measured: no trained network of this form, or no data, was given"
NOT_TIMED = "not timed"
REMOVED = "removed"
NO_GROUPS = "no groups of this kind"


def summary_table(report: RunReport, run: Run) -> Table:
    """Return errors, multiply-adds, size and latency of all models."""
    record = report.benchmark
    base = record.models[record.baseline]
    rows: list[list[Cell]] = []
    for model, size in record.models.items():
        timing = run.network.get(model)
        rows.append(
            [
                model,
                f"{report.errors[model]:.2f}" if model in report.errors else UNKNOWN_ERROR,
                f"{size.macs:,}",
                f"{percent(size.macs, base.macs)} %",
                f"{size.num_parameters:,}",
                f"{size.num_bytes / 1e6:.3g}",
                latency(timing) or reason_of(run, model, next(iter(run.engines))),
                ratio(timing) or NOT_TIMED,
            ]
        )
    head = (
        "network",
        "error, %",
        "multiply-adds",
        f"of {record.baseline}",
        "parameters",
        "size, MB",
        "latency, ms ± IQR",
        f"ratio to {record.baseline} ± IQR",
    )
    return Table(
        f"The whole network, {next(iter(run.engines))}, {setting(run)}",
        head,
        rows,
        numeric=range(1, len(head)),
    )


def engines_table(record: BenchmarkResult) -> Table | None:
    """Return the latency of all models in all engines and settings, if there are several."""
    if not has_engines(record):
        return None
    rows: list[list[Cell]] = []
    for run in record.runs:
        for engine in dict.fromkeys([*run.engines, *left_out_engines(run)]):
            for model in record.models:
                timing = run.engines.get(engine, {}).get(model)
                best = run.fastest.get(model)
                is_best = best is not None and best.engine == engine
                rows.append(
                    [
                        engine,
                        setting(run),
                        model,
                        Value(
                            latency(timing) or reason_of(run, model, engine),
                            None if timing is None else timing.median_ms,
                        ),
                        Value(ratio(timing) or NOT_TIMED, None if timing is None else timing.ratio),
                        f"yes: {1 / best.ratio:.2f} times as fast"
                        if best is not None and is_best and best.ratio
                        else "no",
                    ]
                )
    head = (
        "engine",
        "setting",
        "network",
        "latency, ms ± IQR",
        f"ratio to {record.baseline} in {next(iter(record.runs[0].engines))} ± IQR",
        f"fastest engine of this network: against {record.baseline} in its own",
    )
    return Table("All engines and settings", head, rows, "engines", can_sort=True, numeric=(3, 4))


def left_out_engines(run: Run) -> list[str]:
    """Return the engines in which something could not be timed."""
    return [what.rpartition(", ")[2] for what in run.left_out if ", " in what]


def layers_table(report: RunReport, run: Run) -> Table | None:
    """Return retained groups, multiply-adds and time of all layers, if any layer is known."""
    record = report.benchmark
    layers = list(dict.fromkeys([*record.layer_macs, *run.layers, *report.layers]))
    if not layers:
        return None
    known = [report.layers.get(layer, {}) for layer in layers]
    kinds = [kind for kind in GROUP_KINDS if any(kind in counts for counts in known)]
    models = list(record.models)
    rows: list[list[Cell]] = []
    for layer in layers:
        groups = [groups_cell(report.layers.get(layer, {}).get(kind)) for kind in kinds]
        macs = record.layer_macs.get(layer, {})
        timed = run.layers.get(layer, {})
        counts = [macs_cell(macs.get(model), bool(macs)) for model in models]
        times = [time_cell(timed.get(model), model in macs or not macs) for model in models]
        rows.append([layer, *groups, *counts, *times])
    head = (
        "layer",
        *(f"{TITLES[kind]} left" for kind in kinds),
        *(f"multiply-adds, {model}" for model in models),
        *(f"ms, {model}" for model in models),
    )
    caption = f"Layers, eager, {setting(run)}"
    return Table(caption, head, rows, "layers", can_sort=True, numeric=range(1, len(head)))


def groups_cell(counts: list[int] | None) -> Value:
    """Write retained groups, sorted by their share."""
    if counts is None:
        return Value(NO_GROUPS, None)
    return Value(f"{counts[0]} of {counts[1]}", counts[0] / max(counts[1], 1))


def macs_cell(macs: int | None, counted: bool) -> Value:
    """Write the multiply-adds of a layer in one model."""
    if macs is None:
        return Value(REMOVED if counted else "not counted", 0.0 if counted else None)
    return Value(f"{macs:,}", macs)


def time_cell(timing: Timing | None, is_there: bool) -> Value:
    """Write the time of a layer in one model."""
    if timing is None:
        return Value(NOT_TIMED if is_there else REMOVED, None if is_there else 0.0)
    return Value(milliseconds(timing.median_ms), timing.median_ms)


def latency(timing: Timing | None) -> str:
    """Write median and interquartile range; nothing if it was not timed."""
    if timing is None:
        return ""
    return f"{milliseconds(timing.median_ms)} ± {milliseconds(timing.iqr_ms)}"


def ratio(timing: Timing | None) -> str:
    """Write the ratio to the first model; nothing if it was not timed."""
    return "" if timing is None else f"{timing.ratio:.3f} ± {timing.ratio_iqr:.3f}"


def reason_of(run: Run, model: str, engine: str) -> str:
    """Say why a model has no time in an engine."""
    return f"not timed: {run.left_out.get(f'{model}, {engine}', 'it was not asked for')}"


def conditions_table(record: BenchmarkResult) -> Table:
    """Return where and on what it was measured."""
    machine = record.machine
    found = record.versions | {"torch": machine.torch}
    versions: list[list[Cell]] = [[name, version] for name, version in found.items()]
    rows: list[list[Cell]] = [
        ["processor", f"{machine.processor}, {machine.num_cores} logical cores"],
        ["device", machine.device],
        ["settings", "; ".join(dict.fromkeys(setting(run) for run in record.runs))],
        ["input of one image", " x ".join(map(str, record.input_shape)) or "one number"],
        ["memory format", record.memory_format],
        ["Python", machine.python],
        *versions,
        ["rounds", rounds(record)],
    ]
    return Table(
        "Processor, settings and versions", ("what", "value"), [[*map(said, row)] for row in rows]
    )


def said(cell: Cell) -> Cell:
    """Return a cell; one that would be empty says so."""
    return cell if str(cell).strip() else "not recorded"


def rounds(record: BenchmarkResult) -> str:
    """Say how often networks were timed."""
    found = {t.num_samples for run in record.runs for e in run.engines.values() for t in e.values()}
    counts = " and ".join(map(str, sorted(found)))
    return f"{counts} in which all networks took turns" if counts else "none"


def epochs_table(curves: Mapping[str, list[float]], names: Mapping[str, str]) -> Table:
    """Return the values of some figures per epoch.

    Args:
        curves: figure -> value per epoch.
        names: figures to show -> their heads.
    """
    count = max((len(curves[name]) for name in names), default=0)
    rows: list[list[Cell]] = [
        [str(epoch + 1), *(epoch_cell(curves[name][epoch]) for name in names)]
        for epoch in range(count)
    ]
    head = ("epoch", *names.values())
    return Table("The same figures as a table", head, rows, numeric=range(len(head)))


def epoch_cell(value: float) -> str:
    """Write a figure of an epoch.

    Example:
        >>> epoch_cell(0.12345), epoch_cell(float("nan"))
        ('0.1235', 'not logged')
    """
    return f"{value:.4g}" if value == value else "not logged"
