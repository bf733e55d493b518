"""Data that commands measure errors on, as the ``data`` section of a config names it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import Tensor, nn

from ssl_lightning.data import DATA_MODULES, ImageDataModule, named_class
from ssl_lightning.module.batches import split_batch
from ssl_lightning.suggest import first_line, nearest

PACKAGE = "ssl_lightning.data"
Batches = list[tuple[Tensor, Tensor]]


def data_section(config: str | None, folder: Path | None, otherwise: str) -> dict[str, Any] | None:
    """Return the ``data`` section of a config, or None if there is nothing to measure on.

    A data set may be named instead of a config: its module's class, or short, such as ``"mnist"``.
    A config that the user did not name, which lies beside the network, may only name the library's
    data modules: no code is imported because a file names it.

    Args:
        config: that the user names, or a data set; ``"none"`` for no data.
        folder: that may hold a ``config.yaml``, which is taken if the user names none.
        otherwise: what else the user may do, for the message.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no such section.
    """
    beside = None if folder is None else folder / "config.yaml"
    path = beside if config is None else Path(config)
    if config == "none" or path is None or (config is None and not path.is_file()):
        return None
    if not path.is_file() and (named := named_section(str(config))):
        return named
    if not path.is_file():
        raise FileNotFoundError(f"--data: no file {path}. {known_data(str(config))}")
    content = yaml.safe_load(path.read_text())
    if not isinstance(content, dict) or "class_path" not in (content.get("data") or {}):
        raise ValueError(
            f"{path} has no `data: {{class_path: ...}}` section. Give a config that `fit` takes"
            f"{otherwise}."
        )
    section: dict[str, Any] = content["data"]
    if config is None and named_class(str(section["class_path"])) is None:
        Console().print(
            f"Errors are not measured: {path} names the data module {section['class_path']}. To "
            f"import it, give `--data {path}`."
        )
        return None
    return section


def named_section(name: str) -> dict[str, Any] | None:
    """Return the ``data`` section that the name of a data set stands for; None if unknown.

    Example:
        >>> named_section("mnist")
        {'class_path': 'ssl_lightning.data.MNISTDataModule', 'init_args': {}}
        >>> named_section("FashionMNISTDataModule") == named_section("fashion_mnist")
        True
    """
    for short, kind in DATA_MODULES.items():
        if name in (short, kind.__name__):
            return {"class_path": f"{PACKAGE}.{kind.__name__}", "init_args": {}}
    return None


def known_data(name: str) -> str:
    """Say what may be given instead of an unknown name."""
    known = [*DATA_MODULES, *(kind.__name__ for kind in DATA_MODULES.values())]
    hint = nearest(name, known)
    said = f"{hint} " if hint.startswith("Did") else ""
    return f"{said}Give a config with a `data` section, or a data set: {', '.join(DATA_MODULES)}."


def make_data(section: dict[str, Any]) -> Any:
    """Return the data module that a config's ``data`` section names, with its data at hand."""
    package, _, name = section["class_path"].rpartition(".")
    module = import_module(package or PACKAGE)
    data = getattr(module, name)(**section.get("init_args", {}))
    data.prepare_data()
    return data


def needed_section(where: str, config: str | None, folder: Path | None) -> dict[str, Any]:
    """As :func:`data_section`, of commands that cannot do without.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is nothing to measure on.
    """
    section = data_section(config, folder, "")
    if section is None:
        raise ValueError(
            f"{where}: expected data to measure errors on, got none. Give `--data CONFIG`, a "
            "config that `fit` takes, or a data set: `--data mnist` is of images that ship with "
            "the package."
        )
    return section


def validation_images(where: str, data: Any, number: int, model: nn.Module) -> Batches:
    """Return the first validation images of a data module with their labels.

    Args:
        where: the command, for messages.
        data: the data module.
        number: of images; all if it has no more.
        model: the network that they are for, which is run on one of them.

    Raises:
        ValueError: if there are none, they have no labels of classes, or do not fit the network.
    """
    if number < 1:
        raise ValueError(f"{where}: expected images >= 1, got {number}. Give 1000, say.")
    data.setup("validate")
    loader = data.val_dataloader()
    batches = list(first_images(map(split_batch, loader), number))
    if not batches:
        raise ValueError(
            f"{where}: {type(data).__name__} holds out no validation images, and the test "
            "split is not for choices. Give it `num_validation`, such as 5000."
        )
    check_fit(where, model, batches[0])
    return batches


def first_images(batches: Iterable[tuple[Tensor, Tensor]], number: int) -> Batches:
    """Return the first images of several batches.

    Example:
        >>> batches = [(torch.zeros(4, 1), torch.zeros(4)), (torch.zeros(4, 1), torch.zeros(4))]
        >>> [len(targets) for _, targets in first_images(batches, 6)]
        [4, 2]
    """
    found: Batches = []
    for x, target in batches:
        if number <= 0:
            break
        found.append((x[:number], target[:number]))
        number -= len(target)
    return found


def check_fit(where: str, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Make sure that a network classifies the images of a batch.

    Raises:
        ValueError: saying what does not fit.
    """
    x, target = batch
    advice = "Give the data that it was trained with."
    if target.dim() != 1 or target.is_floating_point():
        raise ValueError(
            f"{where}: expected one class per image, whole numbers (N,), got targets of the "
            f"shape {tuple(target.shape)} and type {target.dtype}. In Python, "
            "the argument `evaluate` of the function takes any measure."
        )
    try:
        with torch.inference_mode():
            output = model.eval()(x[:1])
    except Exception as error:  # what a network's code raises for inputs that do not fit
        raise ValueError(
            f"{where}: {type(model).__name__} cannot run on images of the shape "
            f"{tuple(x.shape[1:])}: {first_line(error)}. {advice}"
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] <= int(target.max()):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"{where}: expected {type(model).__name__} to give a score for each class, more "
            f"than {int(target.max())} of them, got {shape}. {advice}"
        )


def check_channels(network: Any, data: Any) -> None:
    """Make sure that a network takes images with as many channels as the data has.

    Raises:
        ValueError: if both tell their shapes, and these differ in that.

    Example:
        >>> from types import SimpleNamespace as Shaped
        >>> grey, coloured = Shaped(input_shape=(1, 28, 28)), Shaped(input_shape=(3, 32, 32))
        >>> check_channels(grey, grey)
        >>> check_channels(coloured, grey)
        Traceback (most recent call last):
        ...
        ValueError: SimpleNamespace takes images (3, 32, 32), the data has (1, 28, 28). They...
    """
    taken, found = (getattr(each, "input_shape", None) for each in (network, data))
    if taken and found and len(taken) == len(found) == 3 and taken[0] != found[0]:
        raise ValueError(
            f"{type(network).__name__} takes images {tuple(taken)}, the data has {tuple(found)}. "
            f"They differ in channels, {taken[0]} and {found[0]}. Give another --model.backbone or "
            "other --data (some have --data.channels), or for a backbone of timm "
            f"--model.backbone_args '{{in_chans: {found[0]}}}'."
        )


def describe(batches: Batches, section: dict[str, Any]) -> str:
    """Return what errors were measured on, in words.

    Example:
        >>> describe([(torch.zeros(4, 1), torch.zeros(4))], {"class_path": "mine.Images"})
        'percent of 4 validation images of Images'
    """
    number = sum(len(target) for _, target in batches)
    name = str(section["class_path"]).rpartition(".")[2].removesuffix("DataModule")
    return f"percent of {number:,} validation images of {name}"


def calibration_images(where: str, data: Any, number: int) -> list[Tensor]:
    """Return the first training images of a data module, in batches.

    They are not augmented if it is one of the library's that holds no images yet.

    Raises:
        ValueError: for a number below 1, or if there are none.
    """
    if number < 1:
        raise ValueError(f"{where}: expected images >= 1, got {number}. Give 300, say.")
    if isinstance(data, ImageDataModule):
        data.augment = False
    data.setup("fit")
    images = first_images(map(split_batch, data.train_dataloader()), number)
    if not images:
        raise ValueError(f"{where}: {type(data).__name__} has no training images. Give other data.")
    return [x for x, _ in images]
