"""Publishing runs: everything in a card is measured here, nothing is typed in."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save as serialise_tensors
from torch import Tensor, nn

from ssl_lightning.checkpoints import load_backbone, read_checkpoint
from ssl_lightning.compaction.store import RECIPE, WEIGHTS, save_compact
from ssl_lightning.data import DATA_MODULES
from ssl_lightning.files import appearing
from ssl_lightning.measure.sparse_record import SparseRecord
from ssl_lightning.report import curve_chart, filter_pictures
from ssl_lightning.suggest import pick
from ssl_lightning.zoo.cards import (
    CARD,
    CONFIG,
    CURVES,
    CURVES_PICTURE,
    FILTERS_PICTURE,
    GOLDEN,
    PAGE,
    Card,
    check_name,
)
from ssl_lightning.zoo.curves import parse_curves, read_log
from ssl_lightning.zoo.entries import checked_file
from ssl_lightning.zoo.listing import write_table
from ssl_lightning.zoo.measuring import groups_left, measure_layers, measure_size, outputs
from ssl_lightning.zoo.pages import entry_page
from ssl_lightning.zoo.records import (
    CONTROLS,
    Control,
    DataSet,
    Latency,
    SeedResult,
    StepCost,
    StoredFile,
    Weights,
    median_result,
)
from ssl_lightning.zoo.runs import (
    FinishedRun,
    as_stored,
    check_same_config,
    differences,
    golden_images,
    measure_run,
    portable_config,
    read_run,
)
from ssl_lightning.zoo.timing import (
    ROUNDS,
    configuration_of,
    measure_latency,
    measure_speedups,
    measure_step_cost,
    zero_groups,
    zero_weights,
)

LICENCE = "Apache-2.0"
Place = str | Path


def publish(
    runs: Place | Sequence[Place],
    name: str,
    root: Place,
    paper: Mapping[str, Any] | None = None,
    controls: Mapping[str, Sequence[Place]] | None = None,
    remark: str | None = None,
    threads: int = 1,
    dtype: str = "float32",
    weights: bool = True,
) -> Path:
    """Write a zoo entry from one or more runs, by measuring them.

    Of several runs, which differ in their seed alone, the one with the median validation error is
    published, and the results of all are in its card. The data set must be where the runs' configs
    say (``$SSL_DATA_DIR`` for local data). The entry appears under its name only once it is
    complete; the table in ``README.md`` of ``root`` is written anew.

    Args:
        runs: folder or folders of finished runs: ``config.yaml``, ``checkpoints/last.ckpt``,
            ``compact/``; ``metrics.csv`` of a CSV logger gives the curves.
        name: of the new entry.
        root: folder of entries, made if missing.
        paper: the published row to compare with, as plain values; ``table4`` is the configuration
            of the paper's Table 4 beside which AlexNet's layers are timed, 2 if it is not there.
        controls: kind of control (:data:`~ssl_lightning.zoo.records.CONTROLS`) -> folders of
            finished runs, one per seed.
        remark: what a reader must know, such as a goal that was missed.
        threads: to take timings with.
        dtype: to store weights in: float32, float16 or bfloat16. Half precision is turned into
            float32 when it is loaded; every figure is measured on what is stored.
        weights: whether to store weights at all. Without them an entry keeps config, curves,
            figures and the hash of what is not stored.

    Returns:
        The folder of the entry.

    Raises:
        FileExistsError: if there is an entry of that name already.
        FileNotFoundError: if a part of a run, or its data set, is missing.
        ValueError: if the name is no plain name; a run is not finished, holds a compact network
            of other weights, or was made with absolute paths outside its folder; ``table4`` is no
            configuration with timings; the runs differ in more than their seed; or a control is of
            an unknown kind or was measured on other data.
    """
    target = Path(root) / check_name(name)
    if target.exists():
        raise FileExistsError(
            f"{target} exists already, and published entries are not overwritten. Choose another "
            "name, or remove the folder."
        )
    number = (paper or {}).get("table4", 2)
    configuration_of(number)  # before anything is measured
    folders = [runs] if isinstance(runs, (str, Path)) else list(runs)
    finished = [as_stored(read_run(Path(folder)), dtype) for folder in folders]
    check_same_config(finished)
    results = {run.seed: measure_run(run) for run in finished}
    seeds = tuple(results[seed] for seed in sorted(results))
    run = next(run for run in finished if run.seed == median_result(seeds).seed)
    rows = tuple(
        measure_control(kind, given, run.config["data"], str(run.folder))
        for kind, given in (controls or {}).items()
    )
    with appearing(target) as folder:
        reasons, kept = write_files(run, name, folder, Weights(dtype), weights)
        card = measured_card(run, name, folder, seeds, rows, reasons, kept, threads)
        card = dataclasses.replace(
            card,
            paper=dict(paper) if paper else None,
            remark=remark,
            layer_speedups=speedups_of(card, int(number), run.masked),
        )
        write_card(card, folder)
    write_table(root)
    return target


def measure_control(
    kind: str, folders: Sequence[Place], data: Mapping[str, Any], of: str
) -> Control:
    """Measure the runs of a control.

    Args:
        kind: of control.
        folders: of the runs.
        data: section of the config of what they are compared with, which is called ``of``.
        of: its name.

    Raises:
        ValueError: if the kind is unknown, the runs differ in more than their seed, or they were
            trained on other data.
    """
    pick("kind of control", kind, CONTROLS)
    finished = [as_stored(read_run(Path(folder)), "float32") for folder in folders]
    check_same_config(finished)
    for control in finished:
        if found := differences(control.config, {"data": data}, "data"):
            raise ValueError(
                f"Cannot compare {control.folder} with {of}: their configs differ in {found}. "
                "Train the control on the same images."
            )
    return Control(kind, tuple(measure_run(control) for control in finished))


def write_files(
    run: FinishedRun, name: str, folder: Path, weights: Weights, keep: bool
) -> tuple[dict[str, str], Weights]:
    """Write all files of an entry but its page and card.

    Returns:
        Why others are not there, and how the weights are kept.
    """
    (folder / RECIPE).write_bytes((run.folder / "compact" / RECIPE).read_bytes())
    (folder / CONFIG).write_text(portable_config(run.config, run.folder, name))
    write_filters(first_filters(run), folder)
    content = weights_file(run, weights.dtype)
    if keep:
        (folder / WEIGHTS).write_bytes(content)
        (folder / GOLDEN).write_bytes(golden(run.compact, golden_images(run)))
    else:
        weights = dataclasses.replace(weights, unstored=StoredFile.of(content))
    return write_curves(read_log(run.folder, run.epochs), name, folder), weights


def weights_file(run: FinishedRun, dtype: str) -> bytes:
    """Return the content of the file of weights; in float32 the run's own."""
    if dtype == "float32":
        return (run.folder / "compact" / WEIGHTS).read_bytes()
    model, recipe = copy.deepcopy(run.compact).to(getattr(torch, dtype)), run.recipe
    with TemporaryDirectory() as folder:
        save_compact(folder, model, recipe.plans, recipe.backbone, recipe.arguments)
        return Path(folder, WEIGHTS).read_bytes()


def speedups_of(
    card: Card, configuration: int, masked: Callable[[], nn.Module]
) -> SparseRecord | None:
    """Time AlexNet's layers as the paper's Table 4 does; None for other networks.

    Args:
        card: with the groups that are left.
        configuration: of the table, to compare with. For one of single zeros, those of the masked
            network are counted.
        masked: returns the weights in the dense network.
    """
    if card.backbone != "alexnet" or card.arguments.get("geometry", "caffenet") != "caffenet":
        return None
    single = configuration_of(configuration).form == "csr"
    shares = zero_weights(masked()) if single else zero_groups(card.groups)
    return measure_speedups(shares, configuration)


def write_curves(text: str | None, name: str, folder: Path) -> dict[str, str]:
    """Write the curves of a run and their picture; return why they are not there."""
    if text is None:
        return {"curves": "the run's folder has no metrics.csv with all epochs"}
    (folder / CURVES).write_text(text)
    curve_chart(parse_curves(text), folder / CURVES_PICTURE, name)
    return {}


def write_filters(panels: Mapping[str, nn.Module | Tensor], folder: Path) -> None:
    """Draw filters side by side: weights, or the first convolutions of networks."""
    weights = {
        title: weight.detach().float().numpy()
        for title, panel in panels.items()
        if (weight := panel if isinstance(panel, Tensor) else first_weight(panel)) is not None
    }
    if weights:
        filter_pictures(weights, folder / FILTERS_PICTURE)


def first_weight(model: nn.Module) -> Tensor | None:
    """Return the weight of the first convolution."""
    return next((m.weight for m in model.modules() if isinstance(m, nn.Conv2d)), None)


def first_filters(run: FinishedRun) -> dict[str, nn.Module | Tensor]:
    """Return what to draw: filters before, of FilterPictures or a checkpoint, and the masked."""
    callbacks = read_checkpoint(run.folder / "checkpoints" / "last.ckpt").get("callbacks", {})
    for name, state in callbacks.items():
        if name.startswith("FilterPictures") and state["before"] is not None:
            return {"before": state["before"], "compact": run.masked()}
    stored = sorted(run.folder.glob("checkpoints/epoch-*.ckpt"), key=epoch_of)
    early = {f"after epoch {epoch_of(p) + 1}": load_backbone(p).model for p in stored[:1]}
    return {**early, "compact": run.masked()}


def epoch_of(checkpoint: Path) -> int:
    """Return the number in the name of a checkpoint, -1 if there is none.

    Example:
        >>> epoch_of(Path("epoch-4.ckpt"))
        4
    """
    digits = checkpoint.stem.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1


def write_card(card: Card, folder: Path) -> None:
    """Write the page, then the card with the hashes of all files that are there."""
    present = {path.name for path in folder.iterdir()} - {CARD} | {PAGE}
    card = dataclasses.replace(card, files=dict.fromkeys(present, StoredFile("", 0)))
    (folder / PAGE).write_text(entry_page(card))
    files = {path.name: StoredFile.of(path.read_bytes()) for path in sorted(folder.iterdir())}
    files.pop(CARD, None)
    (folder / CARD).write_bytes(dataclasses.replace(card, files=files).to_bytes())


def rewrite(target: Path, card: Card) -> None:
    """Write an entry's page and card anew; its other files, which are checked, stay as they are.

    Raises:
        ValueError: if a file is not what was published.
    """
    with rewriting(target, card.files) as (folder, _):
        write_card(card, folder)


@contextmanager
def rewriting(
    target: Path, files: Mapping[str, StoredFile]
) -> Iterator[tuple[Path, dict[str, bytes]]]:
    """Give the folder that replaces ``target``, with its checked files but the page; and these."""
    kept = {file: checked_file(target / file, files[file]) for file in files if file != PAGE}
    with appearing(target, replace=True) as folder:
        for file, content in kept.items():
            (folder / file).write_bytes(content)
        yield folder, kept


def golden(compact: nn.Module, images: Tensor) -> bytes:
    """Return images and the network's outputs as the content of a safetensors file."""
    found = outputs(compact, images)
    return serialise_tensors({"input": images.contiguous(), "output": found.contiguous()})


def measured_card(
    run: FinishedRun,
    name: str,
    folder: Path,
    seeds: tuple[SeedResult, ...],
    controls: tuple[Control, ...],
    reasons: Mapping[str, str],
    weights: Weights,
    threads: int,
) -> Card:
    """Measure the compact network of a run whose files lie in ``folder``."""
    dense, published = run.backbone(), median_result(seeds)
    splits = [len(run.data.dataset(split)) for split in ("train", "validation", "test")]
    set_name = next(key for key, kind in DATA_MODULES.items() if kind is type(run.data))
    settings = run.config["model"]
    step_cost, why_not = step_cost_of(run.config, run.backbone, run.data, threads)
    unmeasured = dict(reasons)
    if run.seconds is None:
        unmeasured["training_seconds"] = "the run had no Timer callback"
    if why_not:
        unmeasured["step_cost"] = why_not
    if not controls:
        unmeasured["controls"] = "no finished runs of controls were given"
    return Card(
        name=name,
        backbone=run.recipe.backbone,
        arguments=run.recipe.arguments,
        data=DataSet(set_name, run.data.normalize, *splits),
        validation_error=published.validation_error,
        test_error=published.test_error,
        seed=published.seed,
        seeds=seeds,
        epochs=run.epochs,
        training_seconds=run.seconds,
        optimizer=settings.get("optimizer"),
        lr_scheduler=settings.get("lr_scheduler"),
        penalties=tuple(settings.get("penalties") or ()),
        groups=groups_left(dense, run.compact),
        layer_macs=measure_layers(dense, run.compact),
        dense=measure_size(dense),
        compact=measure_size(run.compact),
        latency=latency_of(dense, run.masked(), run.compact, threads),
        step_cost=step_cost,
        controls=controls,
        layer_speedups=None,
        weights=weights,
        licence=LICENCE,
        paper=None,
        remark=None,
        unmeasured=unmeasured,
        files={path.name: StoredFile("", 0) for path in (*folder.iterdir(), Path(PAGE))},
    )


def latency_of(
    dense: nn.Module, masked: nn.Module, compact: nn.Module, threads: int
) -> tuple[Latency, ...]:
    """Time the three networks at each batch size of the zoo."""
    models = {"dense": dense, "masked": masked, "compact": compact}
    return tuple(measure_latency(models, size, threads, rounds) for size, rounds in ROUNDS.items())


def step_cost_of(
    config: Mapping[str, Any], backbone: Callable[[], nn.Module], data: Any, threads: int
) -> tuple[StepCost | None, str]:
    """Time the penalties of a config on a training batch; if it has none, say so instead."""
    if not config["model"].get("penalties"):
        return None, "the run has no penalties"
    batch = next(iter(data.train_dataloader()))
    precision = config["trainer"].get("precision")
    return measure_step_cost(config["model"], backbone, batch, precision, threads), ""
