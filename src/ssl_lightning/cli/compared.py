"""Several networks, each with the images that it is measured on: what `evaluate` begins with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from ssl_lightning.cli.data import check_fit, make_data, needed_section
from ssl_lightning.cli.network import not_needed
from ssl_lightning.cli.sources import (
    NamedNetwork,
    in_form,
    named_network,
    sizes_of,
    warn_of_fresh,
)
from ssl_lightning.compaction.store import OwnNetworkError
from ssl_lightning.data import ImageDataModule, ImageFolderDataModule, InMemoryDataModule
from ssl_lightning.module.batches import split_batch
from ssl_lightning.progress import track
from ssl_lightning.suggest import pick

STAGES = {"validation": "validate", "test": "test"}
"""Split that errors are measured on -> stage of the data module that loads it."""
FORM = (
    "batch_size",
    "eval_batch_size",
    "num_workers",
    "augment",
    "cutout",
    "training_sizes",
    "normalize",
    "image_size",
    "on_device",
    "cache_dir",
)
"""Arguments of data modules that do not decide which images are measured on."""
OF_SPLIT = ("num_validation", "split_seed")
"""Arguments that decide which training images are held out."""
Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Compared:
    """A network and the data that it was trained with.

    Attributes:
        name: in tables.
        model: the network, compacted if it is a checkpoint's.
        example: zeros in the shape of one input, ``(1, ...)``.
        data: its data module.
    """

    name: str
    model: nn.Module
    example: Tensor
    data: Any

    def sizes(self) -> dict[str, int]:
        """Return its ``"parameters"`` and ``"MACs"``."""
        return sizes_of(self.model, self.example)

    def key(self, *images: Any) -> str:
        """Return a text that is equal for the same weights, form of inputs, and images.

        Args:
            images: which these are, in plain values.
        """
        form = [getattr(self.data, name, None) for name in ("normalize", "mean", "std")]
        text = json.dumps([tuple(self.example.shape), form, images], default=str)
        found = hashlib.sha256(text.encode())
        for name, value in self.model.state_dict().items():
            found.update(name.encode())
            if isinstance(value, Tensor):
                plain = value.detach().cpu().contiguous()
                found.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
                found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
            else:  # a module's extra state
                found.update(repr(value).encode())
        return found.hexdigest()[:16]

    def batches(self, where: str, split: str, limit: int | None, batch_size: int) -> Batches:
        """Yield the first images of a split with their classes.

        Raises:
            ValueError: if there are none, or they do not fit the network.
        """
        batches = images_of(where, self.data, split, limit, batch_size)
        first = next(batches)
        check_fit(where, self.model, first)
        yield first
        yield from batches


def images_of(where: str, data: Any, split: str, limit: int | None, batch_size: int) -> Batches:
    """Yield the first images of a split of a data module with their targets.

    Args:
        where: the command, for messages.
        data: the data module.
        split: ``"validation"`` or ``"test"``.
        limit: number of images; all if None.
        batch_size: images of a batch, at most.

    Raises:
        ValueError: if there are none, or an argument is out of range.
    """
    stage = pick("split", split, STAGES)
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{where}: expected {name} >= 1, got {value}. Give 1000, say.")
    data.setup(stage)
    loader = data.val_dataloader() if split == "validation" else data.test_dataloader()
    taken = 0
    for x, target in map(split_batch, track(() if loader is None else loader)):
        left = len(x) if limit is None else min(limit - taken, len(x))
        if left > 0:
            parts = x[:left].split(batch_size), target[:left].split(batch_size)
            yield from zip(*parts, strict=True)
        taken += left
        if taken == limit:
            return
    if not taken:
        raise ValueError(
            f"{where}: {type(data).__name__} has no {split} images. Give it `num_validation`, such "
            "as 5000, or choose the other `--split`."
        )


def compared_networks(
    where: str,
    networks: Sequence[str],
    dense: str | None,
    data: str | None,
    model: str | None,
    config: str | None,
) -> list[Compared]:
    """Return the networks that the user names, the dense one first, each with its data.

    Args:
        where: the command, for messages.
        networks: as :func:`named_network` takes them.
        dense: the one that others are compared with; it need not be among them.
        data: config whose ``data`` is used for all; None: that which each was trained with.
        model: import path of the class of those networks that are the user's own.
        config: file whose ``model.backbone`` names that class.

    Raises:
        FileNotFoundError, ValueError: as :func:`named_network`; if there is no data for one; if the
            class is given though none needs it; or if a network is given twice.
    """
    order = [*([dense] if dense is not None else []), *(n for n in networks if n != dense)]
    found: dict[str, Compared] = {}
    loaded: dict[str, Any] = {}
    used = False
    for source in order:
        named, own = one_network(source, model, config)
        used = used or own
        name = source if named.path is not None else named.name
        if name in found:
            raise ValueError(f"{where}: expected each network once, got {name} twice. Omit one.")
        warn_of_fresh(Console(), named)
        module = make_data(needed_section(where, data, named.home))
        module = loaded.setdefault(images_key(module), module)
        found[name] = Compared(name, in_form(named, masked=False), named.example(), module)
    if not used and (model is not None or config is not None):
        raise not_needed(f"{where}: none of these networks is your own", config)
    return list(found.values())


def one_network(source: str, model: str | None, config: str | None) -> tuple[NamedNetwork, bool]:
    """Return a network, and whether it needed the class that the user names."""
    try:
        return named_network(source), False
    except OwnNetworkError:
        if model is None and config is None:
            raise
        return named_network(source, model, config), True


def images_key(data: Any) -> str:
    """Return a text that is equal for data modules whose evaluation images are equal."""
    shape = data.input_shape if isinstance(data, ImageDataModule) else None
    normalize = getattr(data, "normalize", None)
    return json.dumps([split_key(data, "validation"), shape, normalize], default=str)


def split_key(data: Any, split: str) -> str:
    """Return a text that is equal for data modules whose splits hold the same images.

    Their size and normalisation may differ. The test split of a published set is its own, whatever
    the seed; of other classes, all that they are made with counts.

    Example:
        >>> from ssl_lightning.data import MNISTDataModule
        >>> one, other = MNISTDataModule(), MNISTDataModule(seed=1)
        >>> [split_key(one, s) == split_key(other, s) for s in ("validation", "test")]
        [False, True]
    """
    kind = f"{type(data).__module__}.{type(data).__qualname__}"
    if not isinstance(data, ImageDataModule):
        return json.dumps([kind, {k: str(v) for k, v in vars(data).items() if k[0] != "_"}])
    given = {f.name: getattr(data, f.name) for f in fields(data) if f.init}
    given |= {"root": str(data.folder), "split_seed": split_seed(data)}
    published = isinstance(data, InMemoryDataModule)
    without = {*FORM, *(OF_SPLIT if split == "test" and published else ())}
    files = published or isinstance(data, ImageFolderDataModule)
    without |= {"seed"} if files else set()  # `split_seed` has it; elsewhere it may make images
    return json.dumps([kind, {k: str(v) for k, v in given.items() if k not in without}])


def split_seed(data: ImageDataModule) -> int:
    """Return the seed by which validation images are held out."""
    return data.seed if data.split_seed is None else data.split_seed


def check_same_images(where: str, networks: Sequence[Compared], split: str) -> None:
    """Make sure that all networks are measured on the same images, none of them trained on.

    Raises:
        ValueError: naming two whose images differ.
    """
    first = networks[0]
    for other in networks[1:]:
        if split_key(first.data, split) == split_key(other.data, split):
            continue
        same_set = split_key(first.data, "test") == split_key(other.data, "test")
        advice = (
            "Some of one's validation images are training images of the other. Give --split test."
            if same_set
            else "Give networks of one data set, or --data CONFIG for all."
        )
        raise ValueError(
            f"{where}: expected networks with the same {split} images, got {first.name} "
            f"({described(first.data)}) and {other.name} ({described(other.data)}). {advice}"
        )


def described(data: Any) -> str:
    """Return data set and split in words.

    Example:
        >>> from ssl_lightning.data import MNISTDataModule
        >>> described(MNISTDataModule(num_validation=2000, seed=3))
        'MNIST, 2000 validation images, split seed 3'
    """
    name = data_name(data)
    if not isinstance(data, ImageDataModule):
        return name
    return f"{name}, {data.num_validation} validation images, split seed {split_seed(data)}"


def data_name(data: Any) -> str:
    """Return the name of a data set.

    Example:
        >>> from ssl_lightning.data import CIFAR10DataModule
        >>> data_name(CIFAR10DataModule())
        'CIFAR10'
    """
    return type(data).__name__.removesuffix("DataModule")


def class_names(data: Any, outputs: int) -> list[str]:
    """Return the name of each class; numbers where the data module has none."""
    names = getattr(data, "class_names", None) if isinstance(data, ImageDataModule) else None
    given = list(names or ())
    return given if len(given) >= outputs else [str(number) for number in range(outputs)]


def pixel_statistics(where: str, data: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel by which a network's images are scaled.

    Raises:
        ValueError: if the data module is none that tells them.
    """
    mean, std = getattr(data, "mean", None), getattr(data, "std", None)
    if not isinstance(data, ImageDataModule) or mean is None or std is None:
        raise ValueError(
            f"{where}: expected a data module that tells how pixels are normalised, such as an "
            f"ArrayDataModule with `mean` and `std`, got {type(data).__name__}. Give `--data` with "
            "one."
        )
    channels = data.input_shape[0]
    if not (data.normalize and mean):
        return (0.0,) * channels, (1.0,) * channels
    return tuple(mean), tuple(std)


def as_bytes(batch: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return normalised images as uint8, as they were before.

    Example:
        >>> as_bytes(torch.tensor([[[[-1.0, 1.0]]]]), (0.5,), (0.5,))
        tensor([[[[  0, 255]]]], dtype=torch.uint8)
    """
    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (255 * (batch * scale + shift)).round().clamp(0, 255).to(torch.uint8)
