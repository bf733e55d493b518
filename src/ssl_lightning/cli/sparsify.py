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

from lightning.pytorch import Callback, LightningModule, Trainer

from ssl_lightning.callbacks import Budget, SaveCompact
from ssl_lightning.callbacks.cycles import give_cycles
from ssl_lightning.callbacks.latest import RESUME, LatestCheckpoint
from ssl_lightning.cli.sources import NamedNetwork, named_network
from ssl_lightning.cli.tables import Rows, console, show_table
from ssl_lightning.cli.training import SSLCLI, ContinuedCLI, carry_out, quieten, resolved
from ssl_lightning.cli.ways import DENSE, GIVEN, LABELS, RESULT, ways
from ssl_lightning.export import export_model
from ssl_lightning.files import FolderLock, Traces, replacing
from ssl_lightning.measure import benchmark
from ssl_lightning.measure.engines import file_formats, find_engine, format_of
from ssl_lightning.module import is_trained
from ssl_lightning.publishing.agreeing import unequal
from ssl_lightning.report.ways import Way, is_error, ways_chart
from ssl_lightning.sweep.paths import set_at
from ssl_lightning.sweep.places import places

if TYPE_CHECKING:
    from ssl_lightning.measure import BenchmarkResult
    from ssl_lightning.measure.engine import Engine

INTERRUPTED = 130
"""Exit status of commands that the user stops."""
SETTINGS, LOCK = "sparsify.json", ".lock"
RUN, RESULT_FILE, PICTURE = "run.json", "result.json", "result.png"
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
        values: name -> value of all that is measured on the split, after the last epoch.
        has_weights: whether any training gave the network its weights.
    """

    name: str
    values: dict[str, float]
    has_weights: bool


class OneCycle(Callback):
    """Gives a run without a budget the learning-rate cycle that those with one have."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do so, unless the run has a scheduler of its own."""
        give_cycles(trainer, pl_module, 0, "sparsify")


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
        sys.exit(0)
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
    kind = checked_engine(config)
    folder = Path(own.output)
    traces = Traces([folder], [folder / SETTINGS, folder / LOCK])
    lock = FolderLock(folder, LOCK, "--output")
    try:
        agree(folder, {"split": own.split, "config": config})
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


def begun(folder: Path) -> bool:
    """Whether a run in a folder has something that the next one would take up."""
    return any([*folder.glob(f"*/{RUN}"), *folder.glob(f"*/{RESUME}")])


def agree(folder: Path, settings: Mapping[str, Any]) -> None:
    """Store what is run, or refuse the folder if another run was begun there.

    Raises:
        ValueError: naming what differs, with both values.
    """
    given, path = json.loads(json.dumps(settings)), folder / SETTINGS
    if not path.is_file() or not begun(folder):
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(given, indent=2))
    elif differing := unequal(json.loads(path.read_text()), given, "")[:3]:
        raise ValueError(
            f"--output: {folder} was begun with other settings: {', '.join(differing)}. Give what "
            "it was begun with, another --output, or remove the folder."
        )


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
    for name in sorted(runs, key=lambda name: name != RESULT):  # first what may be refused
        say(f"{LABELS[name]} ({folder / name})")
        found[name] = trained(name, runs[name], folder / name, own)
    return [found[name] for name in runs]


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
    config["trainer"] |= {"callbacks": others, "enable_model_summary": False}
    latest = LatestCheckpoint(folder)
    OneProcessCLI.checkpoint = latest.path if latest.path.is_file() else None
    callbacks: list[Callback] = [SaveCompact((folder / COMPACT).as_posix())]
    callbacks += [] if name == GIVEN else [latest]
    callbacks += [OneCycle()] if name == DENSE else []
    cli = carry_out("fit", [], OneProcessCLI, config, callbacks)
    has_weights = name != GIVEN or is_trained(config["model"])
    result = Trained(name, values_of(cli, own.split), has_weights)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(asdict(result)))
    shutil.rmtree(folder / RESUME, ignore_errors=True)
    return result


def values_of(cli: SSLCLI, split: str) -> dict[str, float]:
    """Return what is measured over the whole split."""
    trainer: Any = cli.trainer
    trainer.limit_val_batches = trainer.limit_test_batches = 1.0
    measure_split = trainer.validate if split == "val" else trainer.test
    found: list[Mapping[str, Any]] = measure_split(cli.model, cli.datamodule, verbose=False)
    return {name: float(value) for values in found[:1] for name, value in values.items()}


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


def say(line: str) -> None:
    """Print a line as it is."""
    console().print(line, highlight=False, markup=False, soft_wrap=True)
