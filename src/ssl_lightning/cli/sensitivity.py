"""sensitivity: which layers of a network can be thinned, and what that saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ssl_lightning.cli.data import data_section, make_data
from ssl_lightning.cli.parse import call
from ssl_lightning.cli.prune import group_settings
from ssl_lightning.cli.sources import named_network, warn_of_fresh
from ssl_lightning.measure.sensitivity_record import Sensitivity
from ssl_lightning.measure.turns import several
from ssl_lightning.module.batches import split_batch
from ssl_lightning.prune import SHARES, sensitivity
from ssl_lightning.publishing.measuring import measure_error
from ssl_lightning.report import print_sensitivity, sensitivity_chart
from ssl_lightning.suggest import first_line

FILE = "sensitivity"
Batches = list[tuple[Tensor, Tensor]]


def run(name: str, arguments: list[str]) -> None:
    """Carry out the command."""
    call(measure_sensitivity, name, arguments)


def measure_sensitivity(
    network: str,
    data: str | None = None,
    shares: list[float] = list(SHARES),  # noqa: B006 - read only, for --help
    importance: str = "l2",
    images: int = 1000,
    kind: str | list[str] = "coupled",
    layers: str | list[str] = "*",
    seed: int = 0,
    output: str | None = None,
    backbone_args: dict[str, Any] | None = None,
    model: str | None = None,
    config: str | None = None,
) -> None:
    """Measure the error after removing shares of each layer's channels, one layer at a time.

    Nothing is trained, batch norms keep their statistics, and the test split is not read: this
    compares layers. It takes one pass over the images for each layer (or family of coupled layers)
    and share. Writes a record (JSON), its rows (CSV) and a picture (PNG).

    Args:
        network: checkpoint that ``fit`` wrote, folder that ``compact`` wrote, ``zoo:<name>``, or
            name of a backbone, such as ``timm:mobilenetv3_small_100``.
        data: config whose ``data`` names the images; default: the config.yaml that the network
            was trained with, if it lies beside it.
        shares: of the groups to remove from each set; one group is always retained.
        importance: which groups go first: those with the smallest l2 or l1 norm, or random ones.
        images: number of validation images to measure the error on, the first ones.
        kind: of the groups, or a list of several: coupled, filter, head, ffn, depth, ...
        layers: pattern of the layers to try, or a list of several.
        seed: of random importance, and of the weights of a backbone given by name.
        output: folder to write to; default: ``sensitivity`` in the folder above the checkpoint's,
            or, for a folder or a name, that with ``-sensitivity``.
        backbone_args: arguments of a backbone given by name, such as '{"pretrained": true}'.
        model: import path of the network's class, such as ``my_package.MyNetwork``, if it is your
            own.
        config: instead, the config that it was trained with, whose ``model.backbone`` is used.
    """
    torch.manual_seed(seed)
    named = named_network(network, model, config, backbone_args)
    warn_of_fresh(Console(), named)
    section = data_section(data, named.home, "")
    if section is None:
        raise ValueError(
            "sensitivity: expected data to measure errors on, got none. Give `--data CONFIG`, a "
            "config that `fit` takes."
        )
    batches = validation_images(make_data(section), images, named.model)
    example = torch.zeros_like(batches[0][0][:1])
    groups = group_settings(named.model, example, several(kind), several(layers))
    with progress_bar() as show:
        found = sensitivity(
            named.model,
            example,
            partial(measure_error, batches=batches),
            **groups,
            shares=shares,
            importance=importance,
            title=named.name,
            conditions=describe(batches, section),
            progress=show,
        )
    write(found, Path(output) if output else named.beside(FILE, f"-{FILE}"))


def validation_images(data: Any, number: int, model: nn.Module) -> Batches:
    """Return the first validation images of a data module with their labels.

    Args:
        data: the data module.
        number: of images; all if it has no more.
        model: the network that they are for, which is run on one of them.

    Raises:
        ValueError: if there are none, they have no labels of classes, or do not fit the network.
    """
    if number < 1:
        raise ValueError(f"sensitivity: expected images >= 1, got {number}. Give 1000, say.")
    data.setup("validate")
    loader = data.val_dataloader()
    batches = list(first_images(map(split_batch, loader), number))
    if not batches:
        raise ValueError(
            f"sensitivity: {type(data).__name__} holds out no validation images, and the test "
            "split is not for choices. Give it `num_validation`, such as 5000."
        )
    check_fit(model, batches[0])
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


def check_fit(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Make sure that a network classifies the images of a batch.

    Raises:
        ValueError: saying what does not fit.
    """
    x, target = batch
    advice = "Give the data that it was trained with."
    if target.dim() != 1 or target.is_floating_point():
        raise ValueError(
            "sensitivity: expected one class per image, whole numbers (N,), got targets of the "
            f"shape {tuple(target.shape)} and type {target.dtype}. In Python, "
            "`ssl_lightning.sensitivity(..., evaluate=...)` takes any measure."
        )
    try:
        with torch.inference_mode():
            output = model.eval()(x[:1])
    except Exception as error:  # what a network's code raises for inputs that do not fit
        raise ValueError(
            f"sensitivity: {type(model).__name__} cannot run on images of the shape "
            f"{tuple(x.shape[1:])}: {first_line(error)}. {advice}"
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] <= int(target.max()):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"sensitivity: expected {type(model).__name__} to give a score for each class, more "
            f"than {int(target.max())} of them, got {shape}. {advice}"
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


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Show on the terminal how many evaluations are done, of how many."""
    columns = TextColumn("evaluations"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def write(found: Sensitivity, folder: Path) -> None:
    """Print the table; write record, rows and picture, each whole or not at all."""
    print_sensitivity(found)
    writers: dict[str, Callable[[Path], None]] = {
        f"{FILE}.json": found.save,
        f"{FILE}.csv": found.save_csv,
        f"{FILE}.png": partial(sensitivity_chart, found),
    }
    for file, store in writers.items():
        store(folder / file)
    Console().print(f"Wrote {', '.join(writers)} in {folder}", soft_wrap=True)
