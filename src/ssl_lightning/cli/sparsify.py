"""sparsify: from a network and data to a compact, retrained, measured and exported network."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_lightning.callbacks import SaveCompact
from ssl_lightning.callbacks.latest import RESUME, LatestCheckpoint
from ssl_lightning.cli.sources import NamedNetwork, named_network
from ssl_lightning.cli.tables import Rows, console, show_table
from ssl_lightning.cli.training import SSLCLI, ContinuedCLI, carry_out, quieten, resolved
from ssl_lightning.cli.ways import GIVEN, LABELS, RESULT, is_trained, ways
from ssl_lightning.export import export_model
from ssl_lightning.files import replacing
from ssl_lightning.measure import benchmark
from ssl_lightning.measure.engines import file_formats, find_engine, format_of
from ssl_lightning.publishing.agreeing import unequal
from ssl_lightning.report.ways import Way, ways_chart
from ssl_lightning.sweep.paths import set_at
from ssl_lightning.sweep.places import places

if TYPE_CHECKING:
    from ssl_lightning.measure import BenchmarkResult

INTERRUPTED = 130
"""Exit status of commands that the user stops."""
SETTINGS, RUN, RESULT_FILE, PICTURE = "sparsify.json", "run.json", "result.json", "result.png"
CONFIG, COMPACT = "config.yaml", "compact"
USAGE = "sparsify --budget.TARGET NUMBER --epochs N [options] [options of fit]"
EXAMPLE = """example:
  ssl-lightning sparsify --model.backbone zoo:resnet20_cifar10_dense --data CIFAR10DataModule \\
      --data.batch_size 128 --budget.macs 0.5 --epochs 20 --controls

Every option of `fit` may be given too: `ssl-lightning fit --help`. The targets are --budget.macs,
parameters, size, depth, latency and latency_ms; --budget.method says how they are reached.
"""


@dataclass(frozen=True)
class Trained:
    """What one run came to.

    Attributes:
        name: of the run.
        metric: what is measured of it, such as ``"val/error"``.
        value: after the last epoch; None for a network that no training gave its weights.
    """

    name: str
    metric: str
    value: float | None


class OneProcessCLI(ContinuedCLI):
    """Refuses several processes: each of them would run the whole command."""

    def before_fit(self) -> None:
        """Refuse, before processes are started."""
        if self.trainer.world_size > 1:
            raise ValueError(
                f"sparsify: expected one process, and `trainer.devices` gives "
                f"{self.trainer.world_size}. Give --trainer.devices 1, or train with `fit`, which "
                "takes the same --budget."
            )
        super().before_fit()


def run(name: str, arguments: list[str]) -> int | None:
    """Carry out the command."""
    parser = make_parser()
    own, others = parser.parse_known_args(arguments)
    if own.help:
        sys.stdout.write(f"{parser.format_help()}\n{EXAMPLE}")
        return None
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
        prog="ssl-lightning sparsify",
        usage=USAGE,
        add_help=False,
        allow_abbrev=False,
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
    if config.get("budget") is None:
        raise ValueError(
            "sparsify: expected a budget, got none. Give one, such as --budget.macs 0.5 or "
            "--budget.latency 0.5 --engine openvino."
        )
    engine = config["budget"]["init_args"].get("engine")
    kind = None if engine is None else find_engine(engine)  # which says what is missing
    folder, runs = Path(own.output), ways(config, own.controls)
    agree(folder / SETTINGS, {"split": own.split, "metric": own.metric, "config": config})
    found = []
    for name in sorted(runs, key=lambda name: name != RESULT):  # first what may be refused
        say(f"{LABELS[name]} ({folder / name})")
        found.append(trained(name, runs[name], folder / name, own))
    found.sort(key=lambda each: list(runs).index(each.name))
    networks = {each.name: network_of(folder / each.name, config) for each in found}
    measured = measure(networks, engine or "eager", own.repeats)
    rows = rows_of(found, measured, engine or "eager")
    with replacing(folder / RESULT_FILE) as temporary:
        temporary.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    show(rows, engine or "eager")
    ways_chart(rows, folder / PICTURE, title=f"{networks[GIVEN].name}", engine=engine)
    say(f"Wrote {folder / RESULT_FILE}, {folder / PICTURE} and {folder / RESULT / COMPACT}.")
    export(networks[RESULT], folder, None if kind is None else format_of(kind))


def agree(path: Path, settings: Mapping[str, Any]) -> None:
    """Store what is run, or refuse the folder if another run was begun there.

    Raises:
        ValueError: naming what differs, with both values.
    """
    given = json.loads(json.dumps(settings))
    begun = [*path.parent.glob(f"*/{RUN}"), *path.parent.glob(f"*/{RESUME}")]
    if not path.is_file() or not begun:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(given, indent=2))
    elif differing := unequal(json.loads(path.read_text()), given, "")[:3]:
        raise ValueError(
            f"--output: {path.parent} was begun with other settings: {', '.join(differing)}. Give "
            "what it was begun with, another --output, or remove the folder."
        )


def trained(name: str, config: dict[str, Any], folder: Path, own: argparse.Namespace) -> Trained:
    """Train as a config says, unless that was done before, and measure the error."""
    path = folder / RUN
    if path.is_file():
        return Trained(**json.loads(path.read_text()))
    config = json.loads(json.dumps(config))
    for where, value in places(config, folder.as_posix()).items():
        set_at(config, where, value)
    given = config["trainer"]["callbacks"] or []
    others = [c for c in given if not c["class_path"].endswith(SaveCompact.__name__)]
    config["trainer"]["callbacks"] = others
    latest = LatestCheckpoint(folder)
    OneProcessCLI.checkpoint = latest.path if latest.path.is_file() else None
    callbacks = [SaveCompact((folder / COMPACT).as_posix()), *([] if name == GIVEN else [latest])]
    cli = carry_out("fit", [], OneProcessCLI, config, callbacks)
    has_weights = name != GIVEN or is_trained(config["model"])
    metric, value = error_of(cli, own.split, own.metric)
    result = Trained(name, metric, value if has_weights else None)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(asdict(result)))
    shutil.rmtree(folder / RESUME, ignore_errors=True)
    return result


def error_of(cli: SSLCLI, split: str, metric: str | None) -> tuple[str, float]:
    """Return name and value of what is compared, over the whole split.

    Raises:
        ValueError: if it is not measured.
    """
    trainer: Any = cli.trainer
    trainer.limit_val_batches = trainer.limit_test_batches = 1.0
    measure_split = trainer.validate if split == "val" else trainer.test
    (values,) = measure_split(cli.model, cli.datamodule, verbose=False)[:1] or [{}]
    usual = f"{split}/error" if f"{split}/error" in values else f"{split}/loss"
    name = metric or usual
    if name not in values:
        raise ValueError(
            f"--metric: no metric {name!r} is measured on this split. Known: "
            f"{', '.join(values) or 'none'}."
        )
    return name, float(values[name])


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


def rows_of(found: list[Trained], measured: BenchmarkResult, engine: str) -> list[Way]:
    """Return what is shown of each run: the error, and the costs beside those of the dense."""
    timings = measured.run().engines[engine]
    dense = measured.models[GIVEN]
    return [
        Way(
            name=each.name,
            label=LABELS[each.name],
            metric=each.metric,
            value=each.value,
            macs=size.macs,
            macs_left=100.0 * size.macs / dense.macs,
            parameters=size.num_parameters,
            latency_ms=timings[each.name].median_ms,
            latency_left=100.0 * timings[each.name].ratio / timings[GIVEN].ratio,
        )
        for each in found
        for size in [measured.models[each.name]]
    ]


def show(rows: list[Way], engine: str) -> None:
    """Print the table."""
    cells: Rows = [
        (
            row.label,
            "-" if row.value is None else f"{row.value:.2f}",
            f"{row.macs / 1e6:,.2f} ({row.macs_left:.1f} %)",
            f"{row.parameters:,}",
            f"{row.latency_ms:.3g} ({row.latency_left:.0f} %)",
        )
        for row in rows
    ]
    what = f"{rows[0].metric}{', %' if rows[0].metric.endswith('error') else ''}"
    columns = ("network", what, "million MACs", "parameters", f"ms in {engine}, batch 1")
    show_table("", columns, cells)


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


def say(line: str) -> None:
    """Print a line as it is."""
    console().print(line, highlight=False, markup=False, soft_wrap=True)
