"""Publishing runs: everything in a card is measured here, nothing is typed in."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors
from torch import Tensor, nn

from ssl_lightning.compaction.store import RECIPE, WEIGHTS, save_compact
from ssl_lightning.data import DATA_MODULES
from ssl_lightning.files import appearing, in_turn, restore
from ssl_lightning.measure.sparse_record import SparseRecord
from ssl_lightning.progress import steps, track
from ssl_lightning.publishing.controls import Place, measure_control
from ssl_lightning.publishing.evaluations import evaluated
from ssl_lightning.publishing.measuring import (
    groups_left,
    measure_layers,
    measure_size,
    outputs,
)
from ssl_lightning.publishing.pages import entry_page
from ssl_lightning.publishing.pictures import first_filters, write_curves, write_filters
from ssl_lightning.publishing.runs import (
    FinishedRun,
    as_stored,
    check_same_config,
    golden_images,
    measure_run,
    portable_config,
    read_run,
)
from ssl_lightning.publishing.settings import arguments_of, budget_of, in_json
from ssl_lightning.publishing.timing import (
    ROUNDS,
    check_layers,
    configuration_of,
    measure_latency,
    measure_speedups,
    measure_step_cost,
    zero_groups,
    zero_weights,
)
from ssl_lightning.report.training_log import read_log
from ssl_lightning.suggest import pick
from ssl_lightning.zoo.cards import CARD, CONFIG, CURVES, GOLDEN, PAGE, Card, check_name
from ssl_lightning.zoo.claims import check_paper
from ssl_lightning.zoo.entries import card as read_card
from ssl_lightning.zoo.entries import list_models
from ssl_lightning.zoo.listing import check_page, write_table
from ssl_lightning.zoo.records import (
    CONTROLS,
    DataSet,
    Latency,
    SeedResult,
    StepCost,
    StoredFile,
    Weights,
    median_result,
)

LICENCE = "Apache-2.0"
REASONS = {
    "training_seconds": "the run had no Timer callback",
    "step_cost": "the run has no penalties with a strength",
    "controls": "no finished runs of controls were given",
    "curves": "the run's folder has no metrics.csv with all epochs",
}
"""Field of a card -> why it is null or empty, if it is."""


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
    """Write a zoo entry from runs that differ in their seed alone, by measuring them.

    Published is the run with the median validation error; the card has the results of all. The
    data set must be where the runs' configs say (``$SSL_DATA_DIR`` for local data). The entry
    appears under its name once it is complete; the table of ``root`` is written anew.

    Args:
        runs: folder or folders of finished runs: ``config.yaml``, ``checkpoints/last.ckpt``,
            ``compact/``; ``metrics.csv`` of a CSV logger gives the curves.
        name: of the new entry.
        root: folder of entries, made if missing.
        paper: the published row to compare with, as plain values; with ``table4``, the number of
            a configuration in the paper's Table 4, the layers are timed beside that.
        controls: kind (:data:`~ssl_lightning.zoo.records.CONTROLS`) -> folders of finished runs.
        remark: what a reader must know, such as a goal that was missed.
        threads: to take timings with.
        dtype: to store weights in: float32, float16 or bfloat16 (loaded as float32); every figure
            is measured on what is stored.
        weights: whether to store weights; if not, the card has their hash.

    Raises:
        FileExistsError: if there is an entry of that name already.
        FileNotFoundError: if a part of a run, or its data set, is missing.
        ValueError: if the name is no plain name, or the runs, controls or ``table4`` do not fit;
            the message says how.
    """
    target, number = vacant(Path(root), name), table4_row(paper)
    check_before(root, paper, controls or {})
    with steps(f"publishing {name}", 2 + len(controls or {})) as part:
        run, seeds = median_run([runs] if isinstance(runs, (str, Path)) else runs, dtype, number)
        rows = []
        for kind, others in (controls or {}).items():
            part.advance()
            rows.append(measure_control(kind, others, described(run, str(run.folder)), run.config))
        part.advance()
        given: dict[str, Any] = {"paper": dict(paper) if paper else None, "remark": remark}
        given |= {"controls": tuple(rows), "seeds": seeds}
        given |= measured(run, threads, number)
        with in_turn(Path(root)):
            with appearing(target) as folder:
                stored = write_files(run, name, folder, Weights(dtype), weights)
                fields = {**described(run, name), **given, "weights": stored}
                write_card(new_card(fields, folder), folder)
            write_table(root)
    return target


def check_before(
    root: Place, paper: Mapping[str, Any] | None, controls: Mapping[str, Sequence[Place]]
) -> None:
    """Refuse what would be noticed only after everything was measured.

    Raises:
        FileExistsError: if the folder has a page that is not of a zoo.
        ValueError: if an entry there cannot be read, the paper's row is none, or a kind of control
            is unknown.
    """
    check_page(root)
    if Path(root).is_dir():
        with in_turn(Path(root)):
            restore(Path(root))
            for entry in list_models(root):
                read_card(entry, root)
    check_paper(paper)
    for kind in controls:
        pick("kind of control", kind, CONTROLS)


def vacant(root: Path, name: str) -> Path:
    """Return where a new entry will be.

    Raises:
        FileExistsError: if there is an entry of that name already.
        ValueError: if the name is no plain name.
    """
    target = root / check_name(name)
    if target.exists():
        raise FileExistsError(
            f"{target} exists already, and published entries are not overwritten. Choose another "
            "name, or remove the folder."
        )
    return target


def table4_row(paper: Mapping[str, Any] | None) -> int | None:
    """Return the number of the row of Table 4 to time layers beside; None if none is asked for.

    Raises:
        ValueError: if there is no such row.
    """
    if "table4" not in (paper or {}):
        return None
    number = (paper or {})["table4"]
    configuration_of(number)
    return int(number)


def median_run(
    folders: Sequence[Place], dtype: str, number: int | None
) -> tuple[FinishedRun, tuple[SeedResult, ...]]:
    """Return the run with the median validation error, and the results of all, by seed.

    Raises:
        FileNotFoundError, ValueError: as :func:`publish`.
    """
    finished = [as_stored(read_run(Path(folder)), dtype) for folder in folders]
    check_same_config(finished)
    if number is not None:
        check_layers(finished[0].backbone())
    results = map(measure_run, track(finished, "runs"))
    seeds = tuple(sorted(results, key=lambda result: result.seed))
    return next(run for run in finished if run.seed == median_result(seeds).seed), seeds


def write_files(run: FinishedRun, name: str, folder: Path, weights: Weights, keep: bool) -> Weights:
    """Write all files of an entry but its page and card; return how the weights are stored."""
    (folder / RECIPE).write_bytes((run.folder / "compact" / RECIPE).read_bytes())
    (folder / CONFIG).write_text(portable_config(run.config, run.folder, name))
    write_filters(first_filters(run), folder)
    write_curves(read_log(run.folder, run.epochs), name, folder)
    content = weights_file(run, weights.dtype)
    if not keep:
        return dataclasses.replace(weights, unstored=StoredFile.of(content))
    (folder / WEIGHTS).write_bytes(content)
    (folder / GOLDEN).write_bytes(golden(run.compact, golden_images(run)))
    return weights


def weights_file(run: FinishedRun, dtype: str) -> bytes:
    """Return the content of the file of weights; the run's own if it has this type."""
    content = (run.folder / "compact" / WEIGHTS).read_bytes()
    kinds = {t.dtype for t in parse_tensors(content).values() if t.is_floating_point()}
    if kinds == {getattr(torch, dtype)} == {torch.float32}:
        return content
    model, recipe = copy.deepcopy(run.compact).to(getattr(torch, dtype)), run.recipe
    with TemporaryDirectory() as folder:
        save_compact(folder, model, recipe.plans, recipe.backbone, recipe.arguments)
        return Path(folder, WEIGHTS).read_bytes()


def described(run: FinishedRun, name: str) -> dict[str, Any]:
    """Return the fields of a card that say what the run was."""
    splits = [len(run.data.dataset(split)) for split in ("train", "validation", "test")]
    set_name = next(key for key, kind in DATA_MODULES.items() if kind is type(run.data))
    settings = run.config["model"]
    return {
        "name": name,
        "backbone": run.recipe.backbone,
        "arguments": run.recipe.arguments,
        "data": DataSet(set_name, run.data.normalize, *splits),
        "epochs": run.epochs,
        "training_seconds": run.seconds,
        "optimizer": in_json(settings.get("optimizer")),
        "lr_scheduler": in_json(settings.get("lr_scheduler")),
        "penalties": tuple(in_json(settings.get("penalties") or [])),
        "budget": in_json(budget_of(run.config)),
        "teacher": (arguments_of(run.config, "Distill") or {}).get("teacher"),
        "licence": LICENCE,
    }


def measured(run: FinishedRun, threads: int, number: int | None) -> dict[str, Any]:
    """Measure the compact network of a run beside the dense and the masked one."""
    dense, masked = run.backbone(), run.masked()
    groups = groups_left(dense, run.compact, masked)
    timed: dict[str, Callable[[], Any]] = {
        "latency": lambda: latency_of(dense, masked, run.compact, threads),
        "step_cost": lambda: step_cost_of(run.config, run.stepped, run.data, threads),
        "layer_speedups": lambda: speedups_of(groups, masked, number),
    }
    return {
        "groups": groups,
        "layer_macs": measure_layers(dense, run.compact),
        "dense": measure_size(dense),
        "compact": measure_size(run.compact),
        **{field: measure() for field, measure in track(timed.items(), "timings")},
    }


def latency_of(
    dense: nn.Module, masked: nn.Module, compact: nn.Module, threads: int
) -> tuple[Latency, ...]:
    """Time the three networks at each batch size of the zoo."""
    models = {"dense": dense, "masked": masked, "compact": compact}
    sizes = track(ROUNDS.items())
    return tuple(measure_latency(models, size, threads, rounds) for size, rounds in sizes)


def step_cost_of(
    config: Mapping[str, Any], backbone: Callable[[], nn.Module], data: Any, threads: int
) -> StepCost | None:
    """Time the penalties of a config on a training batch; None if none has a strength."""
    if not any(p.get("strength") is not None for p in config["model"].get("penalties") or ()):
        return None
    batch = next(iter(data.train_dataloader()))
    precision = config["trainer"].get("precision")
    return measure_step_cost(config["model"], backbone, batch, precision, threads)


def speedups_of(
    groups: Mapping[str, Any], masked: nn.Module, number: int | None
) -> SparseRecord | None:
    """Time the layers beside a row of the paper's Table 4, if one is asked for.

    Args:
        groups: of each layer, as in a card.
        masked: the weights in the dense network: beside a row of single zeros, those are counted.
        number: of the row.
    """
    if number is None:
        return None
    single = configuration_of(number).form == "csr"
    return measure_speedups(zero_weights(masked) if single else zero_groups(groups), number)


def new_card(fields: Mapping[str, Any], folder: Path) -> Card:
    """Return the card of a run whose files lie in ``folder``, with reasons for what is missing."""
    files = {path.name: StoredFile("", 0) for path in (*folder.iterdir(), Path(PAGE))}
    there = {**fields, "curves": files.get(CURVES)}
    best = median_result(fields["seeds"])
    return Card(
        **fields,
        validation_error=best.validation_error,
        test_error=best.test_error,
        seed=best.seed,
        unmeasured={field: why for field, why in REASONS.items() if there[field] in (None, ())},
        files=files,
    )


def write_card(card: Card, folder: Path) -> None:
    """Write the page, then the card with the hashes of all files that are there."""
    present = {path.name for path in folder.iterdir()} - {CARD} | {PAGE}
    card = dataclasses.replace(card, files=dict.fromkeys(present, StoredFile("", 0)))
    (folder / PAGE).write_text(entry_page(card, evaluated(card, folder)))
    files = {path.name: StoredFile.of(path.read_bytes()) for path in sorted(folder.iterdir())}
    files.pop(CARD, None)
    (folder / CARD).write_bytes(dataclasses.replace(card, files=files).to_bytes())


def golden(compact: nn.Module, images: Tensor) -> bytes:
    """Return images and the network's outputs as the content of a safetensors file."""
    found = outputs(compact, images)
    return serialise_tensors({"input": images.contiguous(), "output": found.contiguous()})
