"""Data modules of the sets that fit into memory: MNIST, Fashion-MNIST, CIFAR-10, Imagenette."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch

from ssl_lightning.data import sets
from ssl_lightning.data.augment import (
    BatchTransform,
    CropFlip,
    Cutout,
    DeviceTransform,
    RandomResizedCrop,
    Resize,
)
from ssl_lightning.data.base import ImageDataModule, Split
from ssl_lightning.data.device import DeviceImages
from ssl_lightning.data.loading import MemoryImages, as_is
from ssl_lightning.data.packed import LabelledImages


class InMemoryDataModule(ImageDataModule):
    """A small set, decoded once and kept in memory as uint8; see :class:`ImageDataModule`.

    Args:
        source: ``"local"`` reads packed files or torchvision's layout under ``root``;
            ``"download"`` has torchvision fetch them there first.
        cutout: side in pixels of a square that is painted over with the mean colour in each
            training image (DeVries, Taylor, 2017), as a part of ``augment``; 0 for none.
        on_device: whether all images are kept and augmented on the trainer's device, for GPUs; the
            batches are the same, see :class:`ssl_lightning.data.device.DeviceImages`.

    Raises:
        ValueError: if ``source`` is unknown, a number is out of range, ``cutout`` is asked for
            without ``augment``, or ``on_device`` with workers.
    """

    image_set: ClassVar[sets.ImageSet]
    sources: ClassVar[tuple[str, ...]] = ("local", "download")
    collate = staticmethod(as_is)

    def __init__(
        self,
        source: Literal["local", "download"] = "local",
        root: str | None = None,
        batch_size: int = 128,
        num_validation: int = 5000,
        seed: int = 0,
        augment: bool = True,
        normalize: bool = True,
        eval_batch_size: int = 1000,
        num_workers: int = 0,
        cutout: int = 0,
        on_device: bool = False,
    ) -> None:
        super().__init__(
            root, batch_size, num_validation, seed, augment, normalize, eval_batch_size, num_workers
        )
        self._require("cutout", cutout, 0)
        if cutout and not augment:
            raise ValueError(
                f"{type(self).__name__}: expected `augment: true` with `cutout`, which is part of "
                f"augmentation, got augment={augment} and cutout={cutout}. Switch augmentation on, "
                "or leave `cutout` out."
            )
        self.cutout = cutout
        if on_device and num_workers:
            raise ValueError(
                f"{type(self).__name__}: expected `num_workers: 0` with `on_device`, whose batches "
                f"are made on the device, got {num_workers}. Leave one of the two out."
            )
        self.on_device = on_device
        if source not in self.sources:
            raise ValueError(
                f"{type(self).__name__}: expected `source` to be one of {', '.join(self.sources)}, "
                f"got {source!r}. Only MNIST ships with the package; other sets are read from "
                "`root` or downloaded to it."
            )
        self.source = str(source)
        num_train = self.image_set.num_train
        if self.source == "bundled":
            self.root, num_train = sets.BUNDLED, sets.NUM_BUNDLED_TRAIN
        self._require("num_validation", num_validation, 1, num_train - 1)
        self._decoded: dict[bool, LabelledImages] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return self.image_set.class_names

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image in a batch."""
        return self.image_set.shape

    def prepare_data(self) -> None:
        """Download the set if ``source`` says so; Lightning calls this on one process only."""
        if self.source == "download":
            self.image_set.download(self.root)

    def _make_dataset(self, split: Split) -> MemoryImages:
        data = self._decode(train=split != "test")
        number = len(data.labels)
        positions = np.arange(number) if split == "test" else self._split_train(number)[split]
        channels = self.image_set.shape[0]
        mean, std = (
            (self.image_set.mean, self.image_set.std)
            if self.normalize
            else ((0.0,) * channels, (1.0,) * channels)
        )
        transform = self._transform(augment=self.augment and split == "train")
        if not self.on_device:
            return MemoryImages(data, positions, transform, mean, std)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return DeviceImages(data, positions, cast(DeviceTransform, transform), mean, std, device)

    def _loader_options(self) -> dict[str, Any]:
        options = super()._loader_options()
        return options | {"pin_memory": False} if self.on_device else options

    def _decode(self, train: bool) -> LabelledImages:
        if train not in self._decoded:
            self._decoded[train] = self.image_set.read(self.root, train)
        return self._decoded[train]

    def _transform(self, augment: bool) -> BatchTransform:
        if not augment:
            return Resize(self.input_shape[1])
        moved = CropFlip(self.image_set.pad, self.image_set.flip, self.seed)
        if not self.cutout:
            return moved
        colour = tuple(round(255 * value) for value in self.image_set.mean)
        return Cutout(moved, self.cutout, colour, self.seed)


class MNISTDataModule(InMemoryDataModule):
    """MNIST, grey 28 x 28; augmentation (off by default) shifts by up to 2 pixels.

    Args:
        source: ``"bundled"`` uses the 12,000 training images and the complete test split that ship
            with the package; the others give all 60,000, see :class:`InMemoryDataModule`.

    Example:
        >>> data = MNISTDataModule(batch_size=64)
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.dtype, data.num_classes
        (torch.Size([64, 1, 28, 28]), torch.int64, 10)
    """

    image_set = sets.MNIST
    sources = ("bundled", "local", "download")

    def __init__(
        self,
        source: Literal["bundled", "local", "download"] = "bundled",
        root: str | None = None,
        batch_size: int = 128,
        num_validation: int = 5000,
        seed: int = 0,
        augment: bool = False,
        normalize: bool = True,
        eval_batch_size: int = 1000,
        num_workers: int = 0,
        cutout: int = 0,
        on_device: bool = False,
    ) -> None:
        super().__init__(
            source,  # type: ignore[arg-type]  # one source more than other sets have
            root,
            batch_size,
            num_validation,
            seed,
            augment,
            normalize,
            eval_batch_size,
            num_workers,
            cutout,
            on_device,
        )


class FashionMNISTDataModule(InMemoryDataModule):
    """Fashion-MNIST, grey 28 x 28; augmentation (off by default) shifts by 2 pixels and mirrors."""

    image_set = sets.FASHION_MNIST

    def __init__(
        self,
        source: Literal["local", "download"] = "local",
        root: str | None = None,
        batch_size: int = 128,
        num_validation: int = 5000,
        seed: int = 0,
        augment: bool = False,
        normalize: bool = True,
        eval_batch_size: int = 1000,
        num_workers: int = 0,
        cutout: int = 0,
        on_device: bool = False,
    ) -> None:
        super().__init__(
            source,
            root,
            batch_size,
            num_validation,
            seed,
            augment,
            normalize,
            eval_batch_size,
            num_workers,
            cutout,
            on_device,
        )


class CIFAR10DataModule(InMemoryDataModule):
    """CIFAR-10, RGB 32 x 32; augmentation shifts by up to 4 pixels and mirrors."""

    image_set = sets.CIFAR10


class ImagenetteDataModule(InMemoryDataModule):
    """Imagenette, ten ImageNet classes, RGB; 10 % of the training images are for validation.

    Images are kept in memory at 160 x 160 (1 GB for all splits) and scaled to ``image_size`` batch
    by batch; augmentation crops a random box before and mirrors after. The official ``val`` split
    is the test split here.

    Args:
        image_size: side of the images in a batch, in pixels.
        training_sizes: epoch -> side of augmented training images from that epoch on, such as
            ``{0: 128, 40: 176, 52: 227}``: small images, which are faster, first.
    """

    image_set = sets.IMAGENETTE

    def __init__(
        self,
        source: Literal["local", "download"] = "local",
        root: str | None = None,
        batch_size: int = 64,
        num_validation: int = 946,
        seed: int = 0,
        augment: bool = True,
        normalize: bool = True,
        eval_batch_size: int = 250,
        num_workers: int = 0,
        image_size: int = 160,
        training_sizes: dict[int, int] | None = None,
    ) -> None:
        super().__init__(
            source,
            root,
            batch_size,
            num_validation,
            seed,
            augment,
            normalize,
            eval_batch_size,
            num_workers,
        )
        self._require("image_size", image_size, 8)
        self.image_size = image_size
        self.training_sizes = self._sizes_by_epoch(training_sizes)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image in a batch."""
        return (3, self.image_size, self.image_size)

    def _transform(self, augment: bool) -> BatchTransform:
        if augment:
            return RandomResizedCrop(self.image_size, self.seed, sizes=self.training_sizes)
        return Resize(self.image_size)
