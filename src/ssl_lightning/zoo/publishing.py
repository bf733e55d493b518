"""Publishing a run: everything in its card is measured here, nothing is typed in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from safetensors.torch import save as serialise_tensors
from torch import Tensor, nn

from ssl_lightning.checkpoints import load_backbone, read_checkpoint
from ssl_lightning.compaction.store import RECIPE, WEIGHTS, load_compact
from ssl_lightning.data import DATA_MODULES, InMemoryDataModule
from ssl_lightning.zoo.cards import CARD, CONFIG, GOLDEN, Card, DataSet, StoredFile, check_name
from ssl_lightning.zoo.measuring import (
    difference,
    groups_left,
    measure_error,
    measure_size,
    outputs,
)

LICENCE = "Apache-2.0"
NUM_GOLDEN = 8
SAME_FUNCTION = 1e-4
"""Largest relative difference between the outputs of the masked and the compact network."""


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder holds.

    ``dense`` is the backbone that the run started with, ``trained`` the masked network of the last
    checkpoint.
    """

    folder: Path
    config: dict[str, Any]
    epochs: int
    dense: nn.Module
    trained: nn.Module
    compact: nn.Module
    data: Any


def publish(
    run_folder: str | Path, name: str, root: str | Path, paper: Mapping[str, Any] | None = None
) -> Path:
    """Write a zoo entry from a run, by measuring it.

    The data set must be where the run's config says (``$SSL_DATA_DIR`` for local data). The entry
    appears under its name only once it is complete.

    Args:
        run_folder: folder of a finished run: ``config.yaml``, ``checkpoints/last.ckpt``,
            ``compact/``.
        name: of the new entry.
        root: folder of entries, made if missing.
        paper: the published row to compare with, as plain values.

    Returns:
        The folder of the entry.

    Raises:
        FileExistsError: if there is an entry of that name already.
        FileNotFoundError: if a part of the run, or its data set, is missing.
        ValueError: if the name is no plain name; the run is not finished, holds a compact network
            of other weights, or was made with absolute paths outside its folder.
    """
    target = Path(root) / check_name(name)
    if target.exists():
        raise FileExistsError(
            f"{target} exists already, and published entries are not overwritten. Choose another "
            "name, or remove the folder."
        )
    run = read_run(Path(run_folder))
    with appearing(target) as folder:
        for file in (WEIGHTS, RECIPE):
            (folder / file).write_bytes((run.folder / "compact" / file).read_bytes())
        (folder / CONFIG).write_text(portable_config(run.config, run.folder, name))
        images = next(iter(run.data.test_dataloader()))[0][:NUM_GOLDEN]
        (folder / GOLDEN).write_bytes(golden(run, images))
        files = {path.name: StoredFile.of(path.read_bytes()) for path in sorted(folder.iterdir())}
        card = measured_card(run, name, dict(paper) if paper else None, files)
        (folder / CARD).write_bytes(card.to_bytes())
    return target


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``target``; rename it to ``target`` if the block succeeds."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_run(folder: Path) -> FinishedRun:
    """Read a run folder and open its data.

    Raises:
        FileNotFoundError, ValueError: as :func:`publish`.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"No {CONFIG} in {folder}: a run folder is what `fit` wrote to "
            f"`trainer.default_root_dir`, with {CONFIG}, checkpoints/last.ckpt and compact/."
        )
    checkpoint = folder / "checkpoints" / "last.ckpt"
    trained, loops = load_backbone(checkpoint), read_checkpoint(checkpoint).get("loops", {})
    try:
        config = yaml.safe_load(path.read_text())
        done = int(loops["fit_loop"]["epoch_progress"]["current"]["processed"])
        seed, epochs = config["seed_everything"], config["trainer"]["max_epochs"]
        data = open_data(config["data"])
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} or {checkpoint} is not what `fit` writes: {type(error).__name__}: {error}."
        ) from error
    if type(seed) is not int or epochs != done:
        raise ValueError(
            f"Cannot publish {folder}: expected a run with a seed that trained all its epochs, "
            f"got seed {seed} and {done} of {epochs} epochs. Resume it with `fit --ckpt_path`."
        )
    small = load_compact(folder / "compact")
    return FinishedRun(folder, config, done, trained.original(), trained.model, small, data)


def open_data(section: Mapping[str, Any]) -> Any:
    """Return the data module of a config's ``data`` section."""
    class_name = section["class_path"].rpartition(".")[2]
    for kind in DATA_MODULES.values():
        if kind.__name__ == class_name and issubclass(kind, InMemoryDataModule):
            return kind(**(section.get("init_args") or {}))
    raise ValueError(
        f"Cannot publish a run on {section['class_path']}: the zoo measures on this library's data "
        "modules of sets held in memory."
    )


def golden(run: FinishedRun, images: Tensor) -> bytes:
    """Return images and the compact network's outputs, once it computes what was trained.

    Raises:
        ValueError: if the compact network is not that of the checkpoint.
    """
    found = outputs(run.compact, images)
    wrong = difference(found, outputs(run.trained, images))
    if not wrong <= SAME_FUNCTION:
        raise ValueError(
            f"{run.folder / 'compact'} does not compute what checkpoints/last.ckpt does (relative "
            f"difference {wrong:.2g}). Make it again: `ssl-lightning compact "
            f"{run.folder / 'checkpoints' / 'last.ckpt'}`."
        )
    return serialise_tensors({"input": images.contiguous(), "output": found.contiguous()})


def measured_card(
    run: FinishedRun, name: str, paper: dict[str, Any] | None, files: dict[str, StoredFile]
) -> Card:
    """Measure the compact network of a run."""
    recipe = json.loads((run.folder / "compact" / RECIPE).read_text())
    splits = [len(run.data.dataset(split)) for split in ("train", "validation", "test")]
    set_name = next(key for key, kind in DATA_MODULES.items() if kind is type(run.data))
    return Card(
        name=name,
        backbone=recipe["backbone"],
        arguments=recipe["arguments"],
        data=DataSet(set_name, run.data.normalize, *splits),
        validation_error=measure_error(run.compact, run.data.val_dataloader()),
        test_error=measure_error(run.compact, run.data.test_dataloader()),
        seed=run.config["seed_everything"],
        epochs=run.epochs,
        penalties=tuple(run.config["model"].get("penalties") or ()),
        groups=groups_left(run.dense, run.compact),
        dense=measure_size(run.dense),
        compact=measure_size(run.compact),
        licence=LICENCE,
        paper=paper,
        files=files,
    )


def portable_config(config: dict[str, Any], folder: Path, name: str) -> str:
    r"""Return a config as YAML without this machine's paths.

    The run's folder becomes ``runs/<name>``, the root of the data null (``$SSL_DATA_DIR`` then).

    Raises:
        ValueError: if another absolute path is in it.

    Example:
        >>> portable_config({"dirpath": "/a/run/checkpoints"}, Path("/a/run"), "small")
        'dirpath: runs/small/checkpoints\n'
    """
    places = sorted({str(folder.absolute()), str(folder.resolve())}, key=len, reverse=True)
    clean = portable(config, "", dict.fromkeys(places, f"runs/{name}"))
    return yaml.safe_dump(clean, sort_keys=False)


def portable(value: Any, where: str, places: Mapping[str, str]) -> Any:
    """Return a part of a config, found at ``where``, with other names for ``places``.

    Raises:
        ValueError: if another absolute path is in it.
    """
    if isinstance(value, dict):
        return {key: portable(item, f"{where}.{key}", places) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item, f"{where}[{i}]", places) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    for place, other in places.items():
        if value == place or value.startswith(f"{place}{os.sep}"):
            return other + value[len(place) :]
    if not (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return value
    if where == ".data.init_args.root":
        return None
    raise ValueError(
        f"Cannot publish: `{where[1:]}` of the config is a path of this machine, {value}. Make it "
        "relative in the run's config.yaml."
    )
