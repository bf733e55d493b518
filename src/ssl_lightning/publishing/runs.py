"""Finished runs: what their folders hold, read and checked before anything is published."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ssl_lightning.checkpoints import load_backbone, read_checkpoint
from ssl_lightning.compaction.equality import difference
from ssl_lightning.compaction.expanding import expand
from ssl_lightning.compaction.store import RECIPE, OwnNetworkError, Recipe, load_compact
from ssl_lightning.data import InMemoryDataModule, named_class
from ssl_lightning.publishing.agreeing import check_agreement, unequal
from ssl_lightning.publishing.measuring import measure_seed, outputs
from ssl_lightning.suggest import shortened
from ssl_lightning.zoo.cards import CONFIG
from ssl_lightning.zoo.records import SeedResult, Weights

NUM_GOLDEN = 8
SAME_FUNCTION = 1e-4
"""Largest relative difference between the outputs of the masked and the compact network."""
MAY_DIFFER = (
    "seed_everything",
    "ckpt_path",
    "root",
    "dirpath",
    "folder",
    "init_from",
    "like",
    "teacher",
    "on_device",
    "default_root_dir",
    "logger",
    "enable_progress_bar",
    "enable_model_summary",
)
"""Keys of a config in which runs that differ in their seed alone may differ: places and looks.

Among them the run of the same seed that weights, or numbers of groups, were taken from."""


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder holds; ``trained`` is the masked network of the last checkpoint."""

    folder: Path
    config: dict[str, Any]
    epochs: int
    seconds: float | None
    trained: nn.Module
    compact: nn.Module
    recipe: Recipe
    data: Any

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.config["seed_everything"])

    def backbone(self) -> nn.Module:
        """Return the dense network that it was compacted from, with fresh weights."""
        return self.recipe.create_dense()

    def stepped(self) -> nn.Module:
        """Return the network of the first training step, with fresh weights."""
        return first_stepped(self.recipe)

    def masked(self) -> nn.Module:
        """Return the compact network's weights in the dense network, all others zero."""
        return expand(self.compact, self.backbone(), self.recipe.plans).eval()


def first_stepped(recipe: Recipe) -> nn.Module:
    """Return the network of a run's first training step: dense, or with low rank factors.

    Penalties may name factors that were made before the first epoch.
    """
    early = list(takewhile(lambda plan: plan.factors, recipe.plans))
    return replace(recipe, plans=tuple(early)).create()


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
    try:
        trained, stored = load_backbone(checkpoint), read_checkpoint(checkpoint)
    except OwnNetworkError as error:
        raise ValueError(
            f"Cannot publish {folder}: its network is of your own class {shortened(error.name)}, "
            "and an entry is made by its name wherever it is read. Call `register_backbone` with "
            "that name in a module of your own, and import it (on the command line: `--import`)."
        ) from error
    try:
        config = yaml.safe_load(path.read_text())
        done = int(stored["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
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
    compact = load_compact(folder / "compact").float()  # as the checkpoint's; cards say float32
    recipe = Recipe.from_json((folder / "compact" / RECIPE).read_text(), RECIPE)
    seconds = training_seconds(stored)
    check_agreement(folder, config, stored, trained, recipe, len(data.train_dataloader()))
    return FinishedRun(folder, config, done, seconds, trained.model, compact, recipe, data)


def training_seconds(checkpoint: Mapping[str, Any]) -> float | None:
    """Return what Lightning's ``Timer`` measured, over all parts of a resumed run; None if absent.

    Example:
        >>> training_seconds({"callbacks": {"Timer": {"time_elapsed": {"train": 12.34}}}})
        12.3
    """
    for name, state in checkpoint.get("callbacks", {}).items():
        if name.startswith("Timer"):
            return round(float(state["time_elapsed"]["train"]), 1)
    return None


def open_data(section: Mapping[str, Any]) -> Any:
    """Return the data module of a config's ``data`` section."""
    return data_class(section)(**(section.get("init_args") or {}))


def data_class(section: Mapping[str, Any]) -> type[InMemoryDataModule]:
    """Return the class of a config's ``data`` section.

    Raises:
        ValueError: if the zoo cannot measure on it.
    """
    kind = named_class(section["class_path"])
    if kind is None or not issubclass(kind, InMemoryDataModule):
        raise ValueError(
            f"Cannot publish a run on {section['class_path']}: the zoo measures on this library's "
            "data modules of sets held in memory, such as MNISTDataModule. Share another network "
            "as the folder that `compact` writes."
        )
    return kind


def check_same_config(runs: Sequence[FinishedRun]) -> None:
    """Make sure that runs differ in seeds and places alone.

    Raises:
        ValueError: if there is none, a seed is there twice, or model, data or epochs differ.
    """
    seeds = [run.seed for run in runs]
    if not runs or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"Cannot publish: expected runs of different seeds, got the seeds {seeds}. Give each "
            "run once."
        )
    first = runs[0]
    for run in runs[1:]:
        for section in first.config.keys() | run.config.keys():
            if found := differences(first.config, run.config, section):
                raise ValueError(
                    f"Cannot publish {first.folder} and {run.folder} together: their configs "
                    f"differ in {found}. Only seeds and places may."
                )
        if run.epochs != first.epochs:
            raise ValueError(
                f"Cannot publish {first.folder} and {run.folder} together: they trained "
                f"{first.epochs} and {run.epochs} epochs. Train them equally long."
            )


def differences(first: Mapping[str, Any], second: Mapping[str, Any], section: str) -> str:
    """Return in what a section of two configs differs, with both values; what may differ aside.

    Options of the data module that a config does not have, since they are younger than it, have
    their default. Its seed may differ where the same images are held out by a seed of their own.

    Example:
        >>> differences({"model": {"lr": 1, "a": 0}}, {"model": {"lr": 2, "a": 0}}, "model")
        '`model.lr` (1 and 2)'
    """
    contents = [config.get(section) for config in (first, second)]
    if section == "data":
        contents = [without_own_seed(with_defaults(c["data"])) for c in (first, second)]
    one, other = (without(MAY_DIFFER, {section: content}).get(section) for content in contents)
    return ", ".join(unequal(one, other, section))


def without_own_seed(section: dict[str, Any]) -> dict[str, Any]:
    """Return a data section without the seed of the order, if the split has a seed of its own.

    Example:
        >>> without_own_seed({"init_args": {"seed": 3, "split_seed": 0}})
        {'init_args': {'split_seed': 0}}
        >>> without_own_seed({"init_args": {"seed": 3, "split_seed": None}})
        {'init_args': {'seed': 3, 'split_seed': None}}
    """
    arguments = section["init_args"]
    if arguments.get("split_seed") is None:
        return section
    return {**section, "init_args": {k: v for k, v in arguments.items() if k != "seed"}}


def with_defaults(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's ``data`` section with all options of its data module.

    Example:
        >>> section = {"class_path": "ssl_lightning.data.CIFAR10DataModule"}
        >>> with_defaults(section)["init_args"]["batch_size"]
        128
    """
    parameters = inspect.signature(data_class(section)).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters}
    return {**section, "init_args": defaults | (section.get("init_args") or {})}


def without(keys: Sequence[str], content: Any) -> Any:
    """Return plain values without some keys, at any depth.

    Example:
        >>> without(["root"], {"a": [{"root": "x", "b": 1}]})
        {'a': [{'b': 1}]}
    """
    if isinstance(content, dict):
        return {key: without(keys, value) for key, value in content.items() if key not in keys}
    return [without(keys, item) for item in content] if isinstance(content, list) else content


def measure_run(run: FinishedRun) -> SeedResult:
    """Measure a run's compact network.

    Raises:
        ValueError: if its images are not of the size that the network is made for.
    """
    wanted, found = run.compact.input_shape, run.data.input_shape
    if tuple(wanted) != tuple(found):  # type: ignore[arg-type]
        raise ValueError(
            f"Cannot publish {run.folder}: its network is made for images {wanted}, its data has "
            f"{found}. Validate at the network's size (`image_size`)."
        )
    return measure_seed(run.seed, run.compact, run.data)


def as_stored(run: FinishedRun, dtype: str) -> FinishedRun:
    """Return a run whose compact network has its weights as they are after storing in a type.

    Raises:
        ValueError: if the type is unknown, or the compact network is not that of the checkpoint.
    """
    check_same_function(run, golden_images(run))
    kind: torch.dtype = getattr(torch, Weights(dtype).dtype)
    return replace(run, compact=copy.deepcopy(run.compact).to(kind).float().eval())


def golden_images(run: FinishedRun) -> Tensor:
    """Return the first images of the test split."""
    images: Tensor = next(iter(run.data.test_dataloader()))[0][:NUM_GOLDEN]
    return images


def check_same_function(run: FinishedRun, images: Tensor) -> None:
    """Make sure that a run's compact network is that of its checkpoint.

    Raises:
        ValueError: if their outputs differ.
    """
    wrong = difference(outputs(run.trained, images), outputs(run.compact, images))
    if not wrong <= SAME_FUNCTION:
        raise ValueError(
            f"{run.folder / 'compact'} does not compute what checkpoints/last.ckpt does (relative "
            f"difference {wrong:.2g}). Make it again: `ssl-lightning compact "
            f"{run.folder / 'checkpoints' / 'last.ckpt'}`."
        )


def portable_config(config: dict[str, Any], folder: Path, name: str) -> str:
    r"""Return a config as YAML without this machine's paths.

    The run's folder becomes ``runs/<name>``, the root of the data null (``$SSL_DATA_DIR`` then).
    The checkpoint that the run was resumed from is removed: it is not published, and a resumed
    run is the same as an uninterrupted one.

    Raises:
        ValueError: if another absolute path is in it.

    Example:
        >>> portable_config({"dirpath": "/a/run/checkpoints"}, Path("/a/run"), "small")
        'dirpath: runs/small/checkpoints\n'
        >>> portable_config({"ckpt_path": "/a/run/checkpoints/last.ckpt"}, Path("/a/run"), "small")
        '{}\n'
    """
    places = sorted({str(folder.absolute()), str(folder.resolve())}, key=len, reverse=True)
    others = {key: value for key, value in config.items() if key != "ckpt_path"}
    clean = portable(others, "", dict.fromkeys(places, f"runs/{name}"))
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
