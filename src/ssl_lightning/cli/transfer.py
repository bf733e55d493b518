"""evaluate transfer: how well networks, or their features, do on other data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ssl_lightning.cli.compared import (
    Compared,
    as_bytes,
    compared_networks,
    data_name,
    images_of,
    pixel_statistics,
)
from ssl_lightning.cli.data import data_section, known_data, make_data, named_section
from ssl_lightning.cli.records import check_output, continued, finish
from ssl_lightning.data import ArrayDataModule
from ssl_lightning.evaluation.estimates import digits
from ssl_lightning.evaluation.predictions import predict
from ssl_lightning.evaluation.transfer import (
    HELD_OUT,
    WEIGHT_DECAYS,
    FineTuning,
    Labelled,
    features,
    fine_tuned,
    fitted_images,
    last_linear,
    linear_probe,
)
from ssl_lightning.evaluation.transfer_record import TransferRecord, TransferRow
from ssl_lightning.progress import steps, track
from ssl_lightning.report.generalisation import TABLE_WIDTH
from ssl_lightning.report.transfer import METHODS, transfer_chart, transfer_table
from ssl_lightning.suggest import pick

WHERE = "evaluate transfer"
MOST_SEEDS = 9
CHUNK = 1000
"""Images that are decoded at a time."""


@dataclass(frozen=True)
class Task:
    """The other data, in bytes, at the size of its own files or at that of a network.

    Attributes:
        name: of the data set.
        num_classes: number of its classes.
        train: all training images, uint8 ``(N, C, H, W)``, and classes.
        held_out: the same of the images that errors are measured on.
        flip: whether a mirrored image has the same class.
    """

    name: str
    num_classes: int
    train: Labelled
    held_out: Labelled
    flip: bool


def transfer(
    networks: list[str],
    to: str,
    dense: str | None = None,
    method: str = "probe",
    num_train: int = 5000,
    seeds: list[int] = [0, 1, 2],  # noqa: B006 - read only, for --help
    split: str = "validation",
    limit: int | None = None,
    batch_size: int = 250,
    epochs: int = FineTuning.epochs,
    lr: float = FineTuning.lr,
    data: str | None = None,
    title: str | None = None,
    output: str | None = None,
    model: str | None = None,
    config: str | None = None,
) -> None:
    """Measure networks on other data: a linear probe of their features, or fine-tuning.

    All networks get the same training images, in the same order, with the same settings. With
    `--output`, the same command continues after a stop, with the next network.

    Args:
        networks: checkpoints, compact folders or zoo:<name>.
        to: the other data: name of a data module, or a config whose ``data`` names one.
        dense: the network that the others are compared with.
        method: probe (logistic regression on standardised features before the last linear layer;
            each fifth training image chooses the weight decay) or finetune (all layers, SGD with
            momentum 0.9, batches of 64, half a cosine).
        num_train: training images, drawn anew for each seed.
        seeds: of that, and of order and fresh layer in fine-tuning; 9 at most.
        split: validation or test, of the other data.
        limit: number of images to measure errors on, the first ones; default: all.
        batch_size: images per forward pass.
        epochs: of fine-tuning.
        lr: learning rate of fine-tuning.
        data: config whose ``data`` tells how the networks' images were normalised, or a data set
            such as mnist; default: that which each was trained with.
        title: heading.
        output: JSON file to write; the picture is drawn beside it as a PNG.
        model: import path of the class of networks that are your own.
        config: instead, a config whose ``model.backbone`` is used.
    """
    check_output(output)
    words = pick("method", method, METHODS)
    check_seeds(seeds)
    found = compared_networks(WHERE, networks, dense, data, model, config)
    tasks = Tasks(to, split, limit)
    task = tasks.of(found[0])
    check_number(num_train, task)
    tuning = FineTuning(epochs=epochs, lr=lr, flip=task.flip)
    record = TransferRecord(
        title=title or f"{words.capitalize()} on {task.name}",
        method=method,
        data=task.name,
        split=split,
        trained=num_train,
        images=len(task.held_out.labels),
        seeds=tuple(seeds),
        settings=settings_of(method, tuning),
        dense=None if dense is None else found[0].name,
        rows=(),
    )
    keys = {network.name: network.key(tasks.section, split, limit) for network in found}
    record = continued(record, output, keys)
    for network in track(found, WHERE):
        if all(row.network != network.name for row in record.rows):
            Console().print(f"{words}: {network.name}", highlight=False)
            row = transferred(network, tasks.of(network), record, tuning, batch_size)
            record = replace(record, rows=(*record.rows, replace(row, key=keys[network.name])))
            if output is not None:
                record.save(output)
    rows = (row for network in found for row in record.rows if row.network == network.name)
    record = replace(record, rows=tuple(rows))
    finish(record, transfer_table(record), transfer_chart, output, TABLE_WIDTH)


def settings_of(method: str, tuning: FineTuning) -> dict[str, Any]:
    """Return the settings of a method, in words and numbers."""
    if method == "finetune":
        return {**asdict(tuning), "optimizer": "SGD, Nesterov momentum 0.9, half a cosine"}
    return {"weight_decays": list(WEIGHT_DECAYS), "held_out": f"each {HELD_OUT}th training image"}


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that cannot be compared.

    Raises:
        ValueError: for none, too many, or one that is given twice or below 0.
    """
    if not 1 <= len(seeds) <= MOST_SEEDS or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(
            f"--seeds: expected 1 to {MOST_SEEDS} different numbers from 0, got {seeds}. Give "
            "'[0, 1, 2]', say."
        )


def check_number(number: int, task: Task) -> None:
    """Refuse a number of training images that the data does not have.

    Raises:
        ValueError: if so.
    """
    there, low = len(task.train.labels), 2 * task.num_classes
    if not low <= number <= there:
        raise ValueError(
            f"--num_train: expected {low} to {there} training images of {task.name}, got {number}. "
            "Give another number."
        )


class Tasks:
    """The other data at the size that each network takes; the last one is held.

    Args:
        to: name of a data module, or a config whose ``data`` names one.
        split: that errors are measured on.
        limit: images of it; all if None.
    """

    def __init__(self, to: str, split: str, limit: int | None) -> None:
        self.section = other_section(to)
        self.split, self.limit = split, limit
        self._shape: tuple[int, ...] = ()
        self._task: Task | None = None

    def of(self, network: Compared) -> Task:
        """Return the data for a network.

        Raises:
            FileNotFoundError: if the data is not there.
            ValueError: if it is none of images in memory with one class each.
        """
        shape = tuple(network.example.shape[1:])
        if self._task is None or shape != self._shape:
            self._task, self._shape = None, shape
            self._task = read_task(self.section, shape, self.split, self.limit)
        return self._task


def other_section(to: str) -> dict[str, Any]:
    """Return the ``data`` section of the other data.

    Raises:
        FileNotFoundError: if a config is not there.
        ValueError: if the name is unknown.

    Example:
        >>> other_section("cifar10")
        {'class_path': 'ssl_lightning.data.CIFAR10DataModule', 'init_args': {}}
    """
    if Path(to).suffix in (".yaml", ".yml"):
        section = data_section(to, None, "")
        assert section is not None
        return section
    named = named_section(to)
    if named is None:
        raise ValueError(f"--to: unknown data {to!r}. {known_data(to)}")
    return named


def read_task(
    section: dict[str, Any], shape: tuple[int, ...], split: str, limit: int | None
) -> Task:
    """Read the other data: neither augmented nor normalised, scaled by its module if it can.

    Raises:
        FileNotFoundError, ValueError: as :meth:`Tasks.of`.
    """
    kind = type(make_data(section))
    if not issubclass(kind, ArrayDataModule):
        raise ValueError(
            f"--to: expected a data module that holds images in memory (an ArrayDataModule), got "
            f"{kind.__name__}. Give another."
        )
    plain = {"normalize": False, "augment": False, "cutout": 0}
    sized = {"image_size": shape[-1]} if "image_size" in signature(kind).parameters else {}
    arguments = {**section.get("init_args", {}), **plain, **sized}
    data = make_data({**section, "init_args": arguments})
    data.setup("fit")
    dataset = data.dataset("train")
    chunks = torch.arange(len(dataset)).split(CHUNK)
    batches = (dataset.__getitems__(chunk.tolist()) for chunk in chunks)
    task = Task(
        data_name(data),
        data.num_classes,
        gathered(batches),
        gathered(images_of(WHERE, data, split, limit, CHUNK)),
        bool(data.flip),
    )
    check_classes(task)
    return task


def gathered(batches: Iterator[tuple[Tensor, Tensor]]) -> Labelled:
    """Return batches of images in [0, 1] as bytes, in one piece."""
    pairs = [(as_bytes(x, (0.0,), (1.0,)), labels) for x, labels in batches]
    images, labels = zip(*pairs, strict=True)
    return Labelled(torch.cat(images), torch.cat(labels))


def check_classes(task: Task) -> None:
    """Refuse targets that are no classes.

    Raises:
        ValueError: if so.
    """
    labels = task.train.labels
    if labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(
            f"--to: expected one class per image, got targets of the shape {tuple(labels.shape)} "
            f"and type {labels.dtype} from {task.name}. Give data for classification."
        )


def transferred(
    network: Compared, task: Task, record: TransferRecord, tuning: FineTuning, batch_size: int
) -> TransferRow:
    """Return what one network does on the other data, with each seed."""
    layer = last_linear(network.model, network.example)
    prepare = preparation(network)
    draws = {seed: drawn(len(task.train.labels), record.trained, seed) for seed in record.seeds}
    decays: list[float] = []
    wrong = []
    if record.method == "probe":
        used = torch.cat(list(draws.values())).unique()  # in order
        with steps(network.name, 3) as part:
            chosen = in_batches(task.train.at(used), prepare, batch_size)
            train = features(network.model, layer, chosen)
            part.advance()
            rest = in_batches(task.held_out, prepare, batch_size)
            held_out = Labelled(features(network.model, layer, rest), task.held_out.labels)
            part.advance()
            for draw in track(draws.values()):
                here = Labelled(train[torch.searchsorted(used, draw)], task.train.labels[draw])
                probe = linear_probe(here, held_out, task.num_classes)
                decays.append(probe.weight_decay)
                wrong.append(probe.wrong)
    else:
        for seed, draw in track(draws.items(), network.name):
            here = task.train.at(draw)
            net = fine_tuned(network.model, layer, here, task.num_classes, tuning, seed, prepare)
            images = in_batches(task.held_out, prepare, batch_size)
            labels = task.held_out.labels.split(batch_size)
            wrong.append(predict(net, zip(images, labels, strict=True)).wrong())
    sizes = network.sizes()
    inner: Any = network.model.get_submodule(layer)
    return TransferRow(
        network=network.name,
        macs=sizes["MACs"],
        parameters=sizes["parameters"],
        features=inner.in_features,
        errors=tuple(100 * float(one.double().mean()) for one in wrong),
        weight_decays=tuple(decays),
        wrong=digits(torch.stack(wrong).sum(0).tolist()),
    )


def drawn(number: int, wanted: int, seed: int) -> Tensor:
    """Return which training images a seed draws, in a random order.

    Example:
        >>> len(drawn(10, 4, 0).unique()), drawn(10, 4, 0).equal(drawn(10, 4, 0))
        (4, True)
    """
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:wanted]


def preparation(network: Compared) -> Callable[[Tensor], Tensor]:
    """Return what makes images of bytes into a network's inputs: its size, and normalised."""
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) for values in pixel_statistics(WHERE, network.data)
    )
    shape = tuple(network.example.shape[1:])

    def prepare(images: Tensor) -> Tensor:
        return (fitted_images(images.float() / 255, shape) - mean) / std

    return prepare


def in_batches(
    data: Labelled, prepare: Callable[[Tensor], Tensor], batch_size: int
) -> Iterator[Tensor]:
    """Yield a network's inputs, so many at a time."""
    return (prepare(images) for images in track(data.inputs.split(batch_size)))
