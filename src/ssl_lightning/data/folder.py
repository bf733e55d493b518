"""Data modules of image folders: one sub-folder per class, decoded when used, or once for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ssl_lightning.data.augment import Int64Array, RandomResizedCrop, Resize, UInt8Array
from ssl_lightning.data.base import ImageDataModule, Split
from ssl_lightning.data.cache import cached_images
from ssl_lightning.data.loading import MemoryImages, SeededDataset, as_is
from ssl_lightning.data.packed import (
    DataFileError,
    DataNotFoundError,
    LabelledImages,
    decode_image,
    open_image,
)
from ssl_lightning.files import cache_folder

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MIDDLE = 7 / 8
"""Share of the short side that validation and test look at."""


def class_folders(split: Path) -> tuple[str, ...]:
    """Names of the class folders under ``split``, sorted; a label is a position in them.

    Raises:
        DataNotFoundError: if there are none.
    """
    names = sorted(path.name for path in split.iterdir() if path.is_dir()) if split.is_dir() else []
    if not names:
        raise DataNotFoundError(
            f"Cannot load images from `{split}`: looked for one sub-folder per class, found none. "
            "Set `root` or the environment variable SSL_DATA_DIR to the folder that holds `train` "
            "and `val`."
        )
    return tuple(names)


def scan(split: Path) -> ImageFolder:
    """List the images under ``split``, without decoding them.

    Raises:
        DataNotFoundError: if there is no class folder, or one without images.
    """
    class_folders(split)
    try:
        return ImageFolder(str(split), loader=load_image)
    except FileNotFoundError as error:
        raise DataNotFoundError(
            f"Cannot load images from `{split}`: looked for at least one image per class folder, "
            f"but {error} Add images or remove the empty folders."
        ) from error


def transform(image_size: int, augment: bool, normalize: bool) -> v2.Compose:
    """ImageNet's usual transform to float32 ``(3, image_size, image_size)``.

    Augmented: a random box of 8 % to 100 % of the area, scaled, mirrored half of the time.
    Otherwise: short side to 8/7 of ``image_size`` (256 for 224), centre crop.
    """
    if augment:
        geometry = [v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()]
    else:
        short_side = round(image_size / MIDDLE)
        geometry = [v2.Resize(short_side, antialias=True), v2.CenterCrop(image_size)]
    tail = [v2.Normalize(MEAN, STD)] if normalize else []
    return v2.Compose([*geometry, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), *tail])


def load_image(path: str) -> Image.Image:
    """Decode an image in RGB.

    Raises:
        DataFileError: if the file cannot be read as an image.
    """
    with naming(path):
        return open_image(Path(path), "RGB")


def decode(path: Path, size: int) -> UInt8Array:
    """Decode the largest square in the middle of an image, scaled to ``size`` pixels.

    Raises:
        DataFileError: if the file cannot be read as an image.
    """
    with naming(path):
        return decode_image(path, 3, size)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Name the file that cannot be decoded."""
    try:
        yield
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's, of a damaged PNG
        raise DataFileError(
            f"Cannot read `{path}`: expected an image, but {error}. Replace or remove the file."
        ) from error


@dataclass(kw_only=True, eq=False)
class ImageFolderDataModule(ImageDataModule):
    """Images under ``root/train/<class>/`` and ``root/val/<class>/``.

    Which images are which:

    * ``num_validation=0``: validation is ``root/val``, test is ``root/test``.
    * ``num_validation=n``: validation is n images held out of ``root/train``; test is ``root/test``
      if it exists, else ``root/val``.

    Decoding is what a CPU spends most time on; with ``cache_size`` it happens once. The middle
    square of every image is then stored on disk as pixels, and batches are cut out of it.

    Args:
        root: the folder that holds ``train`` and ``val``.
        source: always ``"local"``: image folders are not downloaded.
        image_size: side of the images in a batch, in pixels.
        cache_size: side of the decoded images that are stored on disk, such as 256 (0.2 MB each);
            None decodes images anew each time.
        cache_dir: folder of these images; default: ``ssl_lightning`` in the user's cache folder.
        training_sizes: epoch -> side of augmented training images from that epoch on, such as
            ``{0: 128, 40: 176, 52: 227}``: small images, which are faster, first. Needs
            ``cache_size``.

    The other arguments are those of :class:`ImageDataModule`.

    Raises:
        DataNotFoundError: in ``setup``, if a folder is missing or has no images.
        DataFileError: in ``setup``, if a split has other classes than ``root/train``.

    Example:
        >>> ImageFolderDataModule(root="my-data", image_size=96).input_shape
        (3, 96, 96)
    """

    mean: ClassVar[tuple[float, ...]] = MEAN
    std: ClassVar[tuple[float, ...]] = STD

    source: Literal["local"] = "local"
    image_size: int = 224
    cache_size: int | None = None
    cache_dir: str | None = None
    training_sizes: dict[int, int] | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.source != "local":
            raise ValueError(
                f"{type(self).__name__}: expected `source` to be local, got {self.source!r}. Image "
                "folders are neither bundled nor downloaded; put them under `root`."
            )
        self._require("image_size", self.image_size, 8)
        self.training_sizes = self._sizes_by_epoch(self.training_sizes)
        if self.cache_size is None and self.training_sizes:
            raise ValueError(
                f"{type(self).__name__}: `training_sizes` needs images that are decoded once. Set "
                "`cache_size`, such as 256."
            )
        self._require("cache_size", 8 if self.cache_size is None else self.cache_size, 8)

    @cached_property
    def _class_names(self) -> tuple[str, ...]:
        return class_folders(self.folder / "train")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the folders under ``root/train``, sorted."""
        return self._class_names

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image in a batch."""
        return (3, self.image_size, self.image_size)

    def _loader_options(self) -> dict[str, Any]:
        whole = {} if self.cache_size is None else {"collate_fn": as_is}
        return {**super()._loader_options(), **whole}

    def _folder_of(self, split: Split) -> Path:
        if split == "train" or (split == "validation" and self.num_validation):
            return self.folder / "train"
        if split == "validation":
            return self.folder / "val"
        test = self.folder / "test"
        if test.is_dir() or not self.num_validation:
            return test
        return self.folder / "val"

    def make_dataset(self, split: Split) -> Dataset[Any]:
        """Return the images of one split, decoded when used unless there is a ``cache_size``.

        Raises:
            DataNotFoundError: if the folder is missing or has no images.
            DataFileError: if it has other classes than ``root/train``.
        """
        where = self._folder_of(split)
        if where == self.folder / "test" and not where.is_dir():
            raise DataNotFoundError(
                f"Cannot test: looked for `{where}`, found no such folder, and `{self.folder}/val` "
                "is what models are selected on. Add a `test` folder, or hold images out of "
                "`train` with num_validation > 0, so that `val` is the test split."
            )
        if split == "validation" and not where.is_dir() and (self.folder / "train").is_dir():
            raise DataNotFoundError(
                f"Cannot validate: looked for `{where}`, found no such folder. Add it, or hold "
                "images out of `train` with num_validation > 0."
            )
        scanned = scan(where)
        self._check_classes(where, tuple(scanned.classes))
        positions = self.positions(split if where.name == "train" else "test", len(scanned))
        if self.cache_size is not None:
            return self._decoded(scanned, self.cache_size, positions, split == "train")
        augment = self.augment and split == "train"
        scanned.transform = transform(self.image_size, augment, self.normalize)
        return SeededDataset(scanned, positions, self.seed)

    def _decoded(
        self, scanned: ImageFolder, size: int, positions: Int64Array, train: bool
    ) -> MemoryImages:
        files, labels = zip(*scanned.samples, strict=True)
        images = cached_images(
            [Path(file) for file in files],
            size,
            partial(decode, size=size),
            cache_folder(self.cache_dir),
        )
        crop = RandomResizedCrop(self.image_size, self.seed, 0.08, self.training_sizes or {})
        return MemoryImages(
            LabelledImages(images, np.array(labels, np.int64), tuple(scanned.classes)),
            positions,
            crop if train and self.augment else Resize(self.image_size, MIDDLE),
            MEAN if self.normalize else (0.0,) * 3,
            STD if self.normalize else (1.0,) * 3,
        )

    def _check_classes(self, where: Path, found: tuple[str, ...]) -> None:
        if found == self.class_names:
            return
        odd = sorted(set(found) ^ set(self.class_names))
        raise DataFileError(
            f"Cannot use `{where}`: expected the {self.num_classes} classes of "
            f"`{self.folder}/train`, got {len(found)}; not in both: {', '.join(odd[:5])}. Make the "
            "folders agree."
        )


@dataclass(kw_only=True, eq=False)
class ImageNetDataModule(ImageFolderDataModule):
    """ImageNet-1k under ``root/train/<wnid>/`` and ``root/val/<wnid>/``, as torchvision has it.

    10,000 training images are held out for validation; the official validation images are the test
    split. The 1,000 classes are sorted by WordNet id, which is the usual class index.
    The other arguments are those of :class:`ImageFolderDataModule`.

    Raises:
        DataFileError: in ``setup``, if there are not 1,000 classes.

    Example:
        >>> ImageNetDataModule(root="my-data").num_classes
        1000
    """

    batch_size: int = 256
    num_validation: int = 10_000
    num_workers: int = 4

    @property
    def num_classes(self) -> int:
        """Number of labels; known without the data."""
        return 1000

    def _check_classes(self, where: Path, found: tuple[str, ...]) -> None:
        if len(found) != self.num_classes:
            raise DataFileError(
                f"Cannot use `{where}` as ImageNet: expected 1000 class folders, got {len(found)}. "
                "Use ImageFolderDataModule for subsets."
            )
        super()._check_classes(where, found)
