"""Data modules of image folders: one sub-folder per class, images decoded when they are used."""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ssl_lightning.data.augment import Int64Array
from ssl_lightning.data.base import ImageDataModule, Split
from ssl_lightning.data.loading import SeededFolder
from ssl_lightning.data.packed import DataFileError, DataNotFoundError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


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
        return ImageFolder(str(split))
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
        short_side = round(image_size * 8 / 7)
        geometry = [v2.Resize(short_side, antialias=True), v2.CenterCrop(image_size)]
    tail = [v2.Normalize(MEAN, STD)] if normalize else []
    return v2.Compose([*geometry, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), *tail])


def view(
    folder: ImageFolder, positions: Int64Array | None, how: v2.Compose, seed: int
) -> SeededFolder:
    """Part of a scanned folder (None: all of it) under a transform of its own."""
    shallow: Any = copy.copy(folder)
    shallow.transform = how
    if positions is None:
        positions = np.arange(len(folder))
    return SeededFolder(shallow, positions, seed)


class ImageFolderDataModule(ImageDataModule):
    """Images under ``root/train/<class>/`` and ``root/val/<class>/``, decoded when used.

    Which images are which:

    * ``num_validation=0``: validation is ``root/val``, test is ``root/test``.
    * ``num_validation=n``: validation is n images held out of ``root/train``; test is ``root/test``
      if it exists, else ``root/val``.

    Args:
        root: the folder that holds ``train`` and ``val``.
        image_size: side of the images in a batch, in pixels.

    Raises:
        DataNotFoundError: in ``setup``, if a folder is missing or has no images.
        DataFileError: in ``setup``, if a split has other classes than ``root/train``.
    """

    def __init__(
        self,
        root: str | None = None,
        source: Literal["local"] = "local",
        batch_size: int = 128,
        num_validation: int = 0,
        seed: int = 0,
        augment: bool = True,
        normalize: bool = True,
        eval_batch_size: int = 250,
        num_workers: int = 0,
        image_size: int = 224,
    ) -> None:
        super().__init__(
            root, batch_size, num_validation, seed, augment, normalize, eval_batch_size, num_workers
        )
        if source != "local":
            raise ValueError(
                f"{type(self).__name__}: expected `source` to be local, got {source!r}. Image "
                "folders are neither bundled nor downloaded; put them under `root`."
            )
        self._require("num_validation", num_validation, 0)
        self._require("image_size", image_size, 8)
        self.image_size = image_size

    @cached_property
    def _class_names(self) -> tuple[str, ...]:
        return class_folders(self.root / "train")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the folders under ``root/train``, sorted."""
        return self._class_names

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image in a batch."""
        return (3, self.image_size, self.image_size)

    def _folder_of(self, split: Split) -> Path:
        if split == "train" or (split == "validation" and self.num_validation):
            return self.root / "train"
        if split == "validation":
            return self.root / "val"
        test = self.root / "test"
        if test.is_dir() or not self.num_validation:
            return test
        return self.root / "val"

    def _make_dataset(self, split: Split) -> Dataset[Any]:
        where = self._folder_of(split)
        if where == self.root / "test" and not where.is_dir():
            raise DataNotFoundError(
                f"Cannot test: looked for `{where}`, found no such folder, and `{self.root}/val` "
                "is what models are selected on. Add a `test` folder, or hold images out of "
                "`train` with num_validation > 0, so that `val` is left for the test."
            )
        scanned = scan(where)
        self._check_classes(where, tuple(scanned.classes))
        held = where.name == "train"
        positions = self._split_train(len(scanned))[split] if held else None
        how = transform(self.image_size, self.augment and split == "train", self.normalize)
        return view(scanned, positions, how, self.seed)

    def _check_classes(self, where: Path, found: tuple[str, ...]) -> None:
        if found == self.class_names:
            return
        odd = sorted(set(found) ^ set(self.class_names))
        raise DataFileError(
            f"Cannot use `{where}`: expected the {self.num_classes} classes of `{self.root}/train`,"
            f" got {len(found)}; not in both: {', '.join(odd[:5])}. Make the folders agree."
        )


class ImageNetDataModule(ImageFolderDataModule):
    """ImageNet-1k under ``root/train/<wnid>/`` and ``root/val/<wnid>/``, as torchvision has it.

    10,000 training images are held out for validation; the official validation images are the test
    split. The 1,000 classes are sorted by WordNet id, which is the usual class index.

    Raises:
        DataFileError: in ``setup``, if there are not 1,000 classes.
    """

    def __init__(
        self,
        root: str | None = None,
        source: Literal["local"] = "local",
        batch_size: int = 256,
        num_validation: int = 10_000,
        seed: int = 0,
        augment: bool = True,
        normalize: bool = True,
        eval_batch_size: int = 250,
        num_workers: int = 4,
        image_size: int = 224,
    ) -> None:
        super().__init__(
            root,
            source,
            batch_size,
            num_validation,
            seed,
            augment,
            normalize,
            eval_batch_size,
            num_workers,
            image_size,
        )

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
