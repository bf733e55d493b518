"""Data modules of sets that fit into memory: a user's own, MNIST, CIFAR-10, Imagenette."""

from __future__ import annotations

from dataclasses import dataclass, field
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
from ssl_lightning.suggest import shortened


@dataclass(kw_only=True, eq=False)
class ArrayDataModule(ImageDataModule):
    """Images and targets held in memory as arrays; a subclass says in :meth:`read` what they are.

    Splits, order, augmentation, normalisation and resuming are the same as for all data modules;
    see :class:`ImageDataModule`, also for the other arguments. Targets are of any kind, such as
    int64 ``(N,)`` for classes, float32 ``(N, K)`` for several labels per image or for regression,
    int64 ``(N, H, W)`` for a class per pixel (without ``augment``, which moves images only).

    Args:
        eval_batch_size: samples per evaluation step and process.
        cutout: side in pixels of a square that is painted over with the mean colour in each
            training image (DeVries, Taylor, 2017), as a part of ``augment``; 0 for none.
        on_device: whether all images are held and augmented on the trainer's device, for GPUs; the
            batches are the same, see :class:`ssl_lightning.data.device.DeviceImages`.

    Attributes:
        mean: per channel, of pixels in [0, 1]; empty: pixels are not normalised.
        std: per channel.
        pad: largest shift when augmented, in pixels.
        flip: whether augmentation mirrors images.

    Raises:
        ValueError: if a number is out of range, ``cutout`` is asked for without ``augment``, or
            ``on_device`` with workers.

    Example:
        >>> import numpy as np
        >>> class Stripes(ArrayDataModule):
        ...     class_names, input_shape = ("across", "down"), (1, 4, 4)
        ...     mean, std, pad = (0.5,), (0.5,), 1
        ...
        ...     def read(self, train):
        ...         across = np.tile(np.uint8([[0], [255]]), (2, 4))
        ...         images = np.stack([across, across.T] * 6)[:, None]
        ...         return LabelledImages(images, np.arange(12) % 2, self.class_names)
        >>> data = Stripes(batch_size=3, num_validation=3)
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels
        (torch.Size([3, 1, 4, 4]), tensor([1, 0, 1]))
    """

    eval_batch_size: int = 1000
    cutout: int = 0
    on_device: bool = False

    mean: tuple[float, ...] = field(default=(), init=False, repr=False)
    std: tuple[float, ...] = field(default=(), init=False, repr=False)
    pad: int = field(default=0, init=False, repr=False)
    flip: bool = field(default=False, init=False, repr=False)
    collate: ClassVar[Any] = staticmethod(as_is)

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self._require("cutout", self.cutout, 0)
        if self.cutout and not self.augment:
            raise ValueError(
                f"{type(self).__name__}: expected `augment: true` with `cutout`, which is part of "
                f"augmentation, got augment={self.augment} and cutout={self.cutout}. Switch "
                "augmentation on, or omit `cutout`."
            )
        if self.on_device and self.num_workers:
            raise ValueError(
                f"{type(self).__name__}: expected `num_workers: 0` with `on_device`, whose batches "
                f"are made on the device, got {self.num_workers}. Omit one of the two."
            )
        self._read: dict[bool, LabelledImages] = {}

    def read(self, train: bool) -> LabelledImages:
        """Return all training or all test images with their targets; subclasses define this.

        Images are uint8 ``(N, C, H, W)`` with the channels of ``input_shape``; of another height
        and width than there, they are scaled.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no `read`.")

    def transform(self, augment: bool) -> BatchTransform:
        """Return what is done to the uint8 images of a batch, before ``cutout``."""
        height, width = self.input_shape[1:]
        if augment:
            return CropFlip(self.pad, self.flip, self.seed, (height, width))
        return Resize((height, width))

    def make_dataset(self, split: Split) -> MemoryImages:
        """Return the images of one split; each file is read once for all splits.

        Raises:
            ValueError: for ``augment`` with targets per pixel, or ``on_device`` with a transform
                that works on the CPU only.
        """
        train = split != "test"
        if train not in self._read:
            data = checked(type(self).__name__, self.read(train), self.input_shape[0])
            self._check_classes(data)
            self._read[train] = data
        data = self._read[train]
        augment = self.augment and split == "train"
        if augment and data.labels.ndim > 2:
            raise ValueError(
                f"{type(self).__name__}: expected `augment: false` with targets of the shape "
                f"{data.labels.shape}, because augmentation moves images and not their targets."
            )
        channels, *size = self.input_shape
        if data.labels.ndim > 2 and data.images.shape[2:] != tuple(size):
            raise ValueError(
                f"{type(self).__name__}: expected images of the height and width of `input_shape`, "
                f"{size[0]} x {size[1]}, with targets of the shape {data.labels.shape}, got images "
                f"of {data.images.shape[2]} x {data.images.shape[3]}, which would be scaled "
                "without their targets. Scale both in `read`, or correct `input_shape`."
            )
        plain = not (self.normalize and self.mean)
        if not plain and not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"{type(self).__name__}: expected `mean` and `std` of {channels} channels, as "
                f"`input_shape` says, got {self.mean} and {self.std}. Give one number per channel."
            )
        mean, std = ((0.0,) * channels, (1.0,) * channels) if plain else (self.mean, self.std)
        transform = self.transform(augment)
        if augment and self.cutout:
            colour = tuple(round(255 * value) for value in self.mean or (0.0,) * channels)
            transform = Cutout(transform, self.cutout, colour, self.seed)
        positions = self.positions(split, len(data.labels))
        if not self.on_device:
            return MemoryImages(data, positions, transform, mean, std)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return DeviceImages(data, positions, cast(DeviceTransform, transform), mean, std, device)

    def _check_classes(self, data: LabelledImages) -> None:
        """Refuse labels that number other classes than the module or its other images do.

        Raises:
            ValueError: saying which.
        """
        try:
            names = tuple(self.class_names)
        except NotImplementedError:  # a module may say `num_classes` instead
            names = next((tuple(other.classes or ()) for other in self._read.values()), ())
        found = tuple(data.classes or ())
        for label, name in enumerate(found):  # but names that several classes have
            if names.count(name) == found.count(name) == 1 and names.index(name) != label:
                raise ValueError(
                    f"{type(self).__name__}: expected `read` to number classes as `class_names`, "
                    f"or as it numbers those of the other images, where {shortened(name)} is "
                    f"{names.index(name)}, got {label}. Use one order of names for all images."
                )

    def _loader_options(self) -> dict[str, Any]:
        options = super()._loader_options()
        return options | {"pin_memory": False} if self.on_device else options


def checked(where: str, given: Any, channels: int) -> LabelledImages:
    """Return what the ``read`` of a data module returned.

    Raises:
        ValueError: if those are no images and targets.
    """
    if not isinstance(given, LabelledImages):
        raise ValueError(
            f"{where}: expected `read` to return LabelledImages, got a {type(given).__name__}. "
            "Return LabelledImages(images, targets, class_names)."
        )
    images, targets = given.images, given.labels
    array = isinstance(images, np.ndarray)
    if (
        not array
        or images.dtype != np.uint8
        or images.shape[1:2] != (channels,)
        or images.ndim != 4
    ):
        found = f"{images.dtype} {images.shape}" if array else f"a {type(images).__name__}"
        raise ValueError(
            f"{where}: expected an array of uint8 images of the shape (N, {channels}, H, W), "
            f"whose channels `input_shape` says, got {found}. Correct `read`."
        )
    if not isinstance(targets, np.ndarray):
        raise ValueError(
            f"{where}: expected an array of targets, got a {type(targets).__name__}. Correct "
            "`read`."
        )
    if len(targets) != len(images):
        raise ValueError(
            f"{where}: expected a target for each of the {len(images)} images, got "
            f"{len(targets)}. Correct `read`."
        )
    return given


@dataclass(kw_only=True, eq=False)
class InMemoryDataModule(ArrayDataModule):
    """A published set that fits into memory; a subclass names its :attr:`image_set`.

    Args:
        source: ``"local"`` reads packed files or torchvision's layout under ``root``;
            ``"download"`` has torchvision fetch them there first.

    Raises:
        ValueError: if ``source`` is unknown.
    """

    source: Literal["bundled", "local", "download"] = "local"
    num_validation: int = 5000

    image_set: ClassVar[sets.ImageSet]
    sources: ClassVar[tuple[str, ...]] = ("local", "download")

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.source not in self.sources:
            raise ValueError(
                f"{type(self).__name__}: expected `source` to be one of {', '.join(self.sources)}, "
                f"got {self.source!r}. Only MNIST ships with the package; other sets are read from "
                "`root` or downloaded to it."
            )
        image_set, num_train = self.image_set, self.image_set.num_train
        if self.source == "bundled":
            self.folder, num_train = sets.BUNDLED, sets.NUM_BUNDLED_TRAIN
        self._require("num_validation", self.num_validation, 1, num_train - 1)
        self.mean, self.std = image_set.mean, image_set.std
        self.pad, self.flip = image_set.pad, image_set.flip

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
            self.image_set.download(self.folder)

    def read(self, train: bool) -> LabelledImages:
        """Return all training or all test images with their labels."""
        return self.image_set.read(self.folder, train)


@dataclass(kw_only=True, eq=False)
class MNISTDataModule(InMemoryDataModule):
    """MNIST, grey 28 x 28; augmentation (off by default) shifts by up to 2 pixels.

    Args:
        source: ``"bundled"`` uses the 12,000 training images and the complete test split that ship
            with the package; ``"local"`` reads all 60,000 from packed files or torchvision's
            layout under ``root``; ``"download"`` has torchvision fetch them there first.

    The other arguments are those of :class:`ArrayDataModule` and :class:`ImageDataModule`.

    Raises:
        DataFileError: in ``setup``, if files are missing or damaged, saying how to get them.

    Example:
        >>> data = MNISTDataModule(batch_size=64)
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.dtype, data.num_classes
        (torch.Size([64, 1, 28, 28]), torch.int64, 10)
    """

    source: Literal["bundled", "local", "download"] = "bundled"
    augment: bool = False

    image_set = sets.MNIST
    sources = ("bundled", "local", "download")


@dataclass(kw_only=True, eq=False)
class FashionMNISTDataModule(InMemoryDataModule):
    """Fashion-MNIST, grey 28 x 28; augmentation (off by default) shifts by 2 pixels and mirrors.

    Args:
        source: ``"local"`` reads packed files or torchvision's layout under ``root``;
            ``"download"`` has torchvision fetch them there first.

    The other arguments are those of :class:`ArrayDataModule` and :class:`ImageDataModule`.

    Raises:
        DataFileError: in ``setup``, if files are missing or damaged, saying how to get them.

    Example:
        >>> FashionMNISTDataModule(root="my-data").class_names[:2]
        ('T-shirt/top', 'Trouser')
    """

    source: Literal["local", "download"] = "local"
    augment: bool = False

    image_set = sets.FASHION_MNIST


@dataclass(kw_only=True, eq=False)
class CIFAR10DataModule(InMemoryDataModule):
    """CIFAR-10, RGB 32 x 32; augmentation shifts by up to 4 pixels and mirrors.

    Args:
        source: ``"local"`` reads packed files or torchvision's layout under ``root``;
            ``"download"`` has torchvision fetch them there first.

    The other arguments are those of :class:`ArrayDataModule` and :class:`ImageDataModule`.

    Raises:
        DataFileError: in ``setup``, if files are missing or damaged, saying how to get them.

    Example:
        >>> CIFAR10DataModule(root="my-data").input_shape
        (3, 32, 32)
    """

    source: Literal["local", "download"] = "local"

    image_set = sets.CIFAR10


@dataclass(kw_only=True, eq=False)
class ImagenetteDataModule(InMemoryDataModule):
    """Imagenette, ten ImageNet classes, RGB; 10 % of the training images are for validation.

    Images are held in memory at 160 x 160 (1 GB for all splits) and scaled to ``image_size`` batch
    by batch; augmentation crops a random box before and mirrors after. The official ``val`` split
    is the test split here.

    Args:
        image_size: side of the images in a batch, in pixels.
        training_sizes: epoch -> side of augmented training images from that epoch on, such as
            ``{0: 128, 40: 176, 52: 227}``: small images, which are faster, first.

    The other arguments are those of :class:`ArrayDataModule` and :class:`ImageDataModule`.

    Raises:
        DataFileError: in ``setup``, if files are missing or damaged, saying how to get them.

    Example:
        >>> ImagenetteDataModule(root="my-data", image_size=227).input_shape
        (3, 227, 227)
    """

    source: Literal["local", "download"] = "local"
    batch_size: int = 64
    num_validation: int = 946
    eval_batch_size: int = 250
    image_size: int = 160
    training_sizes: dict[int, int] | None = None

    image_set = sets.IMAGENETTE

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self._require("image_size", self.image_size, 8)
        self.training_sizes = self._sizes_by_epoch(self.training_sizes)
        if self.on_device:
            raise ValueError(
                "ImagenetteDataModule: expected `on_device: false`, because the CPU crops and "
                "scales these images, got true. Set it to false."
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image in a batch."""
        return (3, self.image_size, self.image_size)

    def transform(self, augment: bool) -> BatchTransform:
        """Return what is done to the images of a batch: a random box, or the whole, is scaled."""
        if augment:
            sizes = self.training_sizes or {}
            return RandomResizedCrop(self.image_size, self.seed, sizes=sizes)
        return Resize(self.image_size)
