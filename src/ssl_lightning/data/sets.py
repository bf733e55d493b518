"""The data sets as data: names, constants, and where their files lie under a root folder.

Each set can lie there in two layouts: packed (see :mod:`ssl_lightning.data.packed`) or as
torchvision's own downloader writes it. The packed one is read where both are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_lightning.data.packed import (
    DataFileError,
    DataNotFoundError,
    LabelledImages,
    decode_image,
    read_idx_split,
    read_packed,
    stack_images,
)

BUNDLED = Path(__file__).resolve().parent / "bundled"
NUM_BUNDLED_TRAIN = 12_000
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class ImageSet:
    """What is particular to one data set that fits into memory.

    Attributes:
        title: name for people, and of torchvision's class.
        packed: packed files of the training and the test split.
        folder: place of torchvision's layout, under the root.
        read_folder: reads a split (training: True) out of that folder.
        num_train: training images in the complete set, those held out for validation included.
        shape: channels, height, width as stored.
        mean: per channel, of the training pixels in [0, 1].
        std: per channel.
        class_names: indexed by label.
        pad: largest shift when augmented, in pixels.
        flip: whether a mirrored image has the same label.
    """

    title: str
    packed: tuple[str, str]
    folder: str
    read_folder: Callable[[Path, bool], LabelledImages]
    num_train: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    pad: int
    flip: bool
    otherwise: str = ""

    def read(self, root: Path, train: bool) -> LabelledImages:
        """Decode one split found under ``root``.

        Raises:
            DataNotFoundError: if it is there in neither layout.
            DataFileError: if a file is damaged, or its images or classes are not this set's.
        """
        packed = root / self.packed[0 if train else 1]
        folder = root / self.folder
        if packed.is_file():
            data = read_packed(packed, self.shape[0])
        elif folder.is_dir():
            data = self.read_folder(folder, train)
        else:
            raise DataNotFoundError(
                f"Cannot load {self.title}: looked for `{packed}` and for the folder `{folder}` "
                "(torchvision's layout), found neither. Set `root` or the environment variable "
                "SSL_DATA_DIR to the folder that holds one of them, or use source='download' "
                f"(`--data.source download`).{self.otherwise}"
            )
        self._check(data, packed if packed.is_file() else folder)
        return data

    def _check(self, data: LabelledImages, where: Path) -> None:
        classes = max(len(data.classes), int(data.labels.max(initial=-1)) + 1)
        if (
            len(data.labels)
            and data.images.shape[1:] == self.shape
            and classes <= len(self.class_names)
        ):
            self._check_order(data, where)
            return
        raise DataFileError(
            f"Cannot use `{where}` as {self.title}: expected images {self.shape} of "
            f"{len(self.class_names)} classes, but {len(data.labels)} images "
            f"{data.images.shape[1:]} of {classes} classes came. Point `root` to the right files."
        )

    def _check_order(self, data: LabelledImages, where: Path) -> None:
        """Refuse class names in another order than this set's: labels would mean others."""
        found, wanted = data.classes, self.class_names[: len(data.classes)]
        wrong = [i for i, name in enumerate(found) if name != wanted[i]]
        if wrong and sorted(found) == sorted(wanted):
            raise DataFileError(
                f"Cannot use `{where}` as {self.title}: expected the classes in the order of the "
                f"set, but class {wrong[0]} is {found[wrong[0]]!r} instead of "
                f"{wanted[wrong[0]]!r}, so that labels would mean others. Pack the data again."
            )

    def download(self, root: Path) -> None:
        """Fetch and unpack the set with torchvision, unless it is under ``root`` already.

        Raises:
            DataNotFoundError: if it cannot be fetched.
        """
        from torchvision import datasets

        options = {"size": "160px"} if self.title == "Imagenette" else {}
        try:
            getattr(datasets, self.title)(str(root), download=True, **options)
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            reason = " ".join(str(error).split())
            raise DataNotFoundError(
                f"Cannot download {self.title} to `{root}` with torchvision: "
                f"{type(error).__name__}: {reason}. Check the network, or copy the files there by "
                f"hand (as `{self.packed[0]}` and `{self.packed[1]}`, or the folder "
                f"`{self.folder}`) and use source='local'."
            ) from error


def default_root(root: str | None) -> Path:
    """The folder data sets are looked for in: ``root``, else ``$SSL_DATA_DIR``, else ``./data``."""
    return Path(root or os.environ.get("SSL_DATA_DIR") or "data").expanduser()


def _read_mnist(folder: Path, train: bool) -> LabelledImages:
    return read_idx_split(folder, "train" if train else "t10k")


def _read_cifar10(folder: Path, train: bool) -> LabelledImages:
    from torchvision.datasets import CIFAR10

    try:  # verifies the checksums before it unpickles
        data = CIFAR10(str(folder.parent), train=train, download=False)
    except RuntimeError as error:
        raise DataFileError(
            f"Cannot read `{folder}`: expected CIFAR-10's python batches with torchvision's "
            f"checksums, but {error} Fetch them again with source='download'."
        ) from error
    images = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))
    return LabelledImages(images, np.asarray(data.targets, np.int64), tuple(data.classes))


WNIDS = (
    "n01440764",
    "n02102040",
    "n02979186",
    "n03000684",
    "n03028079",
    "n03394916",
    "n03417042",
    "n03425413",
    "n03445777",
    "n03888257",
)
"""Folders of Imagenette's classes, in the order of their labels."""


def _read_imagenette(folder: Path, train: bool) -> LabelledImages:
    split = folder / ("train" if train else "val")
    unknown = sorted({path.name for path in split.glob("n*") if path.is_dir()} - {*WNIDS})
    if unknown:
        raise DataFileError(
            f"Cannot use `{split}` as Imagenette: expected the ten folders {WNIDS[0]} to "
            f"{WNIDS[-1]}, got also {', '.join(unknown[:5])}. ImageFolderDataModule reads other "
            "classes."
        )
    samples = [
        (path, label)
        for label, wnid in enumerate(WNIDS)  # also where a folder is missing
        for path in sorted((split / wnid).glob("*.JPEG"))
    ]
    if not samples:
        raise DataNotFoundError(
            f"Cannot load Imagenette: looked for `{split}/n*/*.JPEG`, found no image. Unpack the "
            "160 px archive there, or use source='download'."
        )
    try:
        images = stack_images((decode_image(path, 3, 160) for path, _ in samples), len(samples))
    except (OSError, ValueError) as error:
        raise DataFileError(
            f"Cannot read `{split}`: expected JPEG images, but {error}. Unpack the archive again."
        ) from error
    return LabelledImages(images, np.array([label for _, label in samples]), WNIDS)


MNIST = ImageSet(
    title="MNIST",
    packed=("mnist-train.npz", "mnist-test.npz"),
    folder="MNIST/raw",
    read_folder=_read_mnist,
    num_train=60_000,
    shape=(1, 28, 28),
    mean=(0.1307,),
    std=(0.3081,),
    class_names=DIGITS,
    pad=2,
    flip=False,
    otherwise=" source='bundled' takes 12,000 training images and the test split, which ship with "
    "the package (`--data mnist` of commands that measure).",
)
FASHION_MNIST = ImageSet(
    title="FashionMNIST",
    packed=("fashion-mnist-train.npz", "fashion-mnist-test.npz"),
    folder="FashionMNIST/raw",
    read_folder=_read_mnist,
    num_train=60_000,
    shape=(1, 28, 28),
    mean=(0.2860,),
    std=(0.3530,),
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    pad=2,
    flip=True,
)
CIFAR10 = ImageSet(
    title="CIFAR10",
    packed=("cifar10-train.npz", "cifar10-test.npz"),
    folder="cifar-10-batches-py",
    read_folder=_read_cifar10,
    num_train=50_000,
    shape=(3, 32, 32),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    class_names=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    pad=4,
    flip=True,
)
IMAGENETTE = ImageSet(
    title="Imagenette",
    packed=("imagenette160-train.npz", "imagenette160-val.npz"),
    folder="imagenette2-160",
    read_folder=_read_imagenette,
    num_train=9_469,
    shape=(3, 160, 160),
    mean=(0.4624, 0.4579, 0.4303),
    std=(0.2799, 0.2772, 0.2990),
    class_names=(
        "tench",
        "English springer",
        "cassette player",
        "chain saw",
        "church",
        "French horn",
        "garbage truck",
        "gas pump",
        "golf ball",
        "parachute",
    ),
    pad=0,
    flip=True,
)
