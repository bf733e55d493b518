"""sparsify: from a network and data to a compact, retrained, measured and exported network."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_lightning.callbacks import Budget
from ssl_lightning.cli.examples import program, shown
from ssl_lightning.cli.one_run import (
    COMPACT,
    CONFIG,
    INTERRUPTED,
    RUN,
    Trained,
    agree,
    begun,
    trained,
)
from ssl_lightning.cli.parser_errors import refuse_misspelt
from ssl_lightning.cli.short_help import PlainHelp
from ssl_lightning.cli.sources import NamedNetwork, named_network
from ssl_lightning.cli.tables import Rows, say, show_table
from ssl_lightning.cli.training import quieten, resolved
from ssl_lightning.cli.ways import GIVEN, LABELS, RESULT, ways
from ssl_lightning.export import export_model
from ssl_lightning.files import FolderLock, Traces, replacing
from ssl_lightning.measure import benchmark
from ssl_lightning.measure.engines import file_formats, find_engine, format_of
from ssl_lightning.report.ways import Way, is_error, ways_chart

if TYPE_CHECKING:
    from ssl_lightning.measure import BenchmarkResult
    from ssl_lightning.measure.engine import Engine

SETTINGS, LOCK = "sparsify.json", ".lock"
RESULT_FILE, PICTURE = "result.json", "result.png"
USAGE = "%(prog)s --budget.TARGET NUMBER --epochs N [options of fit]"
MORE = """Every option of `fit` may be given too: `fit --help`. The targets are
--budget.macs, parameters, size, depth, latency and latency_ms; --budget.method
says how they are reached.
"""


def run(name: str, arguments: list[str]) -> int | None:
    """Carry out the command."""
    parser = make_parser()
    own, others = parser.parse_known_args(arguments)
    if own.help:
        sys.stdout.write(f"{parser.format_help()}\n{MORE}{shown(name)}")
        sys.exit(0)
    refuse_misspelt(others, vars(own))
    quieten()
    try:
        sparsify(own, [*others, *fit_options(own)])  # after the configs, so that they count
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning makes the first the second
        if not isinstance(error.__context__ or error, KeyboardInterrupt):
            raise
        say("Stopped. The same command continues where this one was.")
        return INTERRUPTED
    return None


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options that `fit` does not have."""
    parser = argparse.ArgumentParser(
        prog=f"{program()} sparsify",
        usage=USAGE,
        add_help=False,
        allow_abbrev=False,
        formatter_class=PlainHelp,
        description="Train a network down to a budget, compact, measure and export it.",
    )
    add = parser.add_argument
    add("-h", "--help", action="store_true", help="show this")
    add("--epochs", type=int, help="of each run; default: trainer.max_epochs of the config")
    add("--engine", help="where the network will run: it is measured and exported for it")
    add("--controls", action="store_true", help="also train what the result is to be compared with")
    add("--output", default="runs/sparsify", help="folder to write to")
    add("--split", choices=("val", "test"), default="val", help="of the data, for the errors")
    add("--metric", help="what to compare; default: error, or loss where there is none")
    add("--repeats", type=int, default=30, help="interleaved samples of each latency")
    return parser


def fit_options(own: argparse.Namespace) -> list[str]:
    """Return the options of `fit` that stand for those of this command."""
    given = {"trainer.max_epochs": own.epochs, "budget.engine": own.engine}
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def sparsify(own: argparse.Namespace, options: list[str]) -> None:
    """Train all runs, measure their networks side by side, export the result; show and store it.

    Raises:
        ValueError: if there is no budget, the folder is of other runs, or a run is refused.
    """
    config, _ = resolved("fit", options)
    kind = checked_engine(config)
    check_epochs("sparsify", config["trainer"]["max_epochs"])
    folder = Path(own.output)
    traces = Traces([folder], [folder / SETTINGS, folder / LOCK])
    lock = FolderLock(folder, LOCK, "--output")
    try:
        agree(folder, SETTINGS, {"split": own.split, "config": config})
        carry_through(config, kind, folder, own)
    except BaseException:
        if not begun(folder):
            traces.remove()
        raise
    finally:
        lock.release()


def carry_through(
    config: dict[str, Any], kind: Engine | None, folder: Path, own: argparse.Namespace
) -> None:
    """Train, measure, show and export."""
    engine = "eager" if kind is None else kind.name
    found = train_all(config, folder, own)
    metric = metric_of(found, own.metric)
    networks = {each.name: network_of(folder / each.name, config) for each in found}
    rows = rows_of(found, metric, measure(networks, engine, own.repeats), engine)
    with replacing(folder / RESULT_FILE) as temporary:
        temporary.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    show(rows, engine)
    ways_chart(rows, folder / PICTURE, title=networks[GIVEN].name, engine=engine)
    say(f"Wrote {folder / RESULT_FILE}, {folder / PICTURE} and {folder / RESULT / COMPACT}.")
    export(networks[RESULT], folder, None if kind is None else format_of(kind))


def check_epochs(command: str, epochs: int | None) -> None:
    """Refuse to train without an end, or not at all.

    Raises:
        ValueError: if there is no number of epochs above zero.
    """
    if epochs is None or epochs < 1:
        got = "none" if epochs is None else epochs
        raise ValueError(
            f"{command}: expected a number of epochs, got {got}. Give --epochs 20, say."
        )


def checked_engine(config: Mapping[str, Any]) -> Engine | None:
    """Return the engine that a config's budget names, if any; refuse what no run could be made of.

    Raises:
        ValueError: if there is no budget, a target is out of range, or the engine is not there.
    """
    budget = config.get("budget")
    if budget is None:
        raise ValueError(
            "sparsify: expected a budget, got none. Give one, such as --budget.macs 0.5 or "
            "--budget.latency 0.5 --engine openvino."
        )
    engine = budget["init_args"].get("engine")
    if budget["class_path"].endswith(f".{Budget.__name__}"):
        Budget(**budget["init_args"])
    return None if engine is None else find_engine(engine)


def train_all(config: dict[str, Any], folder: Path, own: argparse.Namespace) -> list[Trained]:
    """Make all runs that are not there yet; controls that were made before are shown again."""
    done = {path.parent.name for path in folder.glob(f"*/{RUN}")}
    controls = own.controls or bool(done - {GIVEN, RESULT})
    runs = {
        name: each
        for name, each in ways(config, controls).items()
        if own.controls or name in done | {GIVEN, RESULT}
    }
    found = {}
    first = sorted(runs, key=lambda name: name != RESULT)  # what may be refused
    for number, name in enumerate(first, 1):
        say(f"run {number} of {len(first)}: {LABELS[name]} ({folder / name})")
        found[name] = trained(name, runs[name], folder / name, own.split, "sparsify")
    return [found[name] for name in runs]


def metric_of(found: list[Trained], wanted: str | None) -> str:
    """Return what is compared: the error, or where there is none the loss, if nothing is asked for.

    Raises:
        ValueError: if it is not measured.
    """
    known = found[0].values
    usual = [name for name in known if name.endswith(("/error", "/loss"))]
    name = wanted or min(usual, default="error")
    if name not in known:
        raise ValueError(
            f"--metric: no metric {name!r} is measured on this split. Known: "
            f"{', '.join(known) or 'none'}. Give one of them; nothing is trained again."
        )
    return name


def network_of(folder: Path, config: Mapping[str, Any]) -> NamedNetwork:
    """Return the network that a run left."""
    own = isinstance(config["model"]["backbone"], dict)
    return named_network(str(folder / COMPACT), config=str(folder / CONFIG) if own else None)


def measure(networks: Mapping[str, NamedNetwork], engine: str, repeats: int) -> BenchmarkResult:
    """Measure all networks side by side, one input at a time."""
    models = {name: each.model for name, each in networks.items()}
    example = networks[GIVEN].example()
    settings: dict[str, Any] = {"batch_size": 1, "repeats": repeats, "per_layer": False}
    return benchmark(models, example, engines=engine, **settings)


def rows_of(found: list[Trained], metric: str, measured: BenchmarkResult, engine: str) -> list[Way]:
    """Return what is shown of each run: the error, and the costs beside those of the dense."""
    timings = measured.run().engines[engine]
    dense = measured.models[GIVEN]
    return [
        Way(
            name=each.name,
            label=LABELS[each.name],
            metric=metric,
            value=each.values[metric] if each.has_weights else None,
            macs=size.macs,
            macs_left=100.0 * size.macs / dense.macs,
            parameters=size.num_parameters,
            latency_ms=timings[each.name].median_ms,
            latency_left=100.0 * timings[each.name].ratio / timings[GIVEN].ratio,
            latency_spread=50.0 * timings[each.name].ratio_iqr / timings[GIVEN].ratio,
        )
        for each in found
        for size in [measured.models[each.name]]
    ]


def show(rows: list[Way], engine: str) -> None:
    """Print the table."""
    million = max(row.macs for row in rows) >= 1e7
    scale, unit = (1e6, "million MACs") if million else (1e3, "thousand MACs")
    cells: Rows = [
        (
            row.label,
            value_text(row),
            f"{row.macs / scale:,.1f} ({row.macs_left:.1f} %)",
            f"{row.parameters:,}",
            f"{row.latency_ms:.3g} ({row.latency_left:.0f} ± {row.latency_spread:.0f} %)",
        )
        for row in rows
    ]
    what = f"{rows[0].metric}{', %' if is_error(rows[0]) else ''}"
    columns = ("network", what, unit, "parameters", f"ms in {engine}, batch 1")
    show_table("", columns, cells)


def value_text(row: Way) -> str:
    """Write what was measured: an error with two decimals, others with four digits."""
    if row.value is None:
        return "-"
    return f"{row.value:.2f}" if is_error(row) else f"{row.value:.4g}"


def export(network: NamedNetwork, folder: Path, format: str | None) -> None:  # noqa: A002
    """Write the result for another runtime: the engine's own, or ONNX where that is installed."""
    formats = file_formats()
    asked = format in formats
    name = format if format in formats else "onnx"
    if not asked and not formats[name].available:
        say("Not exported: no engine was given, and ONNX Runtime is not installed.")
        return
    path = folder / f"model{formats[name].suffix}"
    takes: dict[str, Any] = {"batch": 1, "size": "fixed"} if asked else {}
    result = export_model(network.model, network.example(), path, name, **takes)
    size = "one input at a time, as it was measured" if asked else "any batch size"
    say(f"Wrote {result.path}, which takes {size}; outputs differ by {result.difference:.1e}.")
