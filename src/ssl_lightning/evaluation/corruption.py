"""Corrupted images, made by the library imagecorruptions or read from the files of CIFAR-10-C."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ssl_lightning.evaluation.corruption_record import (
    CORRUPTIONS,
    SEVERITIES,
    Corrupted,
)
from ssl_lightning.evaluation.estimates import digits
from ssl_lightning.measure.macs import evaluating
from ssl_lightning.suggest import first_line, pick, require

UInt8Array = npt.NDArray[np.uint8]
EXTRA, PACKAGE, DISTRIBUTION = "robustness", "imagecorruptions", "imagecorruptions-imaug"
SMALLEST = 32
"""Side in pixels of the smallest image that the library takes."""
OWN_SEED = ("impulse_noise", "glass_blur")
"""Corruptions that draw from a generator of their own, whose seed they take as an argument."""
IN_FILE = 10_000
"""Images of a severity in a file of CIFAR-10-C."""


class Source(Protocol):
    """Where corrupted images come from.

    Attributes:
        words: the same in words.
        seed: of what is random in them; None if nothing is drawn.
    """

    @property
    def words(self) -> str:
        """Say where they are from."""
        ...

    @property
    def seed(self) -> int | None:
        """The seed, if there is one."""
        ...

    def __call__(self, corruption: str, severity: int) -> tuple[UInt8Array, Tensor]:
        """Return the images ``(N, 3, H, W)`` and their classes ``(N,)``."""
        ...


def corrupted(images: UInt8Array, corruption: str, severity: int, seed: int = 0) -> UInt8Array:
    """Corrupt images by the library imagecorruptions.

    What is drawn for an image depends on the seed, its number, the corruption and the severity
    only; numpy's generator is set back afterwards.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        corruption: one of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: of what is random.

    Returns:
        Images of the same shape.

    Raises:
        ValueError: for an unknown corruption or severity, images that are no RGB of at least
            32 x 32 pixels, or if the library is missing.

    Reference:
        Hendrycks & Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations, ICLR 2019. Severities are those for ImageNet's 224 x 224 pixels.

    Example:
        >>> grey = np.full((2, 3, 32, 32), 128, np.uint8)
        >>> brighter = corrupted(grey, "brightness", 1)
        >>> brighter.shape, int(brighter[0, 0, 0, 0])
        ((2, 3, 32, 32), 153)
    """
    corrupt = library()
    check_images(images.shape[1:])
    pick("corruption", corruption, dict.fromkeys(CORRUPTIONS))
    if severity not in SEVERITIES:
        raise ValueError(f"corrupted: expected a severity of 1 to 5, got {severity}. Give one.")
    place = CORRUPTIONS.index(corruption), severity
    result = np.empty_like(images)
    with kept_generator(), redirect_stdout(StringIO()):  # it prints where zooming is inexact
        for number, image in enumerate(images):
            drawn = int(np.random.SeedSequence((seed, *place, number)).generate_state(1)[0])
            np.random.seed(drawn)  # noqa: NPY002 - the library draws from this generator
            own = {"seed": drawn} if corruption in OWN_SEED else {}
            pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
            found = corrupt(pixels, severity=severity, corruption_name=corruption, **own)
            result[number] = found.transpose(2, 0, 1)
    return result


def library() -> Callable[..., UInt8Array]:
    """Return the function of the library that corrupts one image ``(H, W, 3)``.

    Raises:
        ValueError: if it is not installed, or cannot be imported.
    """
    require("`evaluate corruption`", [PACKAGE], EXTRA)
    try:
        found: Callable[..., UInt8Array] = import_module(PACKAGE).corrupt
    except ImportError as error:  # OpenCV needs libraries of the system that bare machines lack
        raise ValueError(
            f"`evaluate corruption`: cannot import {PACKAGE}: {first_line(error)}. Where that is a "
            "library of the system for windows, install it, or opencv-python-headless in place of "
            "opencv-python."
        ) from error
    return found


@contextmanager
def kept_generator() -> Iterator[None]:
    """Set numpy's old generator back afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def check_images(shape: Sequence[int]) -> None:
    """Refuse images that the library cannot corrupt.

    Args:
        shape: of one image, ``(C, H, W)``.

    Raises:
        ValueError: saying what is needed.
    """
    channels, height, width = shape
    if channels != 3 or min(height, width) < SMALLEST:
        raise ValueError(
            f"evaluate corruption: expected RGB images of at least {SMALLEST} x {SMALLEST} pixels, "
            f"which is what {PACKAGE} takes, got {channels} x {height} x {width}. Measure "
            "networks of CIFAR-10 or Imagenette."
        )


@dataclass(frozen=True)
class Made:
    """Clean images that are corrupted here.

    Attributes:
        images: uint8 ``(N, 3, H, W)``.
        labels: int64 ``(N,)``.
        seed: of what is random.
    """

    images: UInt8Array
    labels: Tensor
    seed: int = 0

    def __post_init__(self) -> None:
        library()
        check_images(self.images.shape[1:])

    @property
    def words(self) -> str:
        """Say where the images are from."""
        return f"made here by {DISTRIBUTION} {version(DISTRIBUTION)}"

    def __call__(self, corruption: str, severity: int) -> tuple[UInt8Array, Tensor]:
        """Return the corrupted images and their classes."""
        return corrupted(self.images, corruption, severity, self.seed), self.labels


@dataclass(frozen=True)
class Stored:
    """The files of CIFAR-10-C: ``labels.npy``, and one for each corruption.

    Each holds five times the 10,000 test images, one severity after another, as uint8
    ``(50000, 32, 32, 3)``.

    Attributes:
        folder: that they are in.
        number: of images to take of each severity, the first ones; None for all.

    Raises:
        FileNotFoundError: if files are missing.
        ValueError: when read, if one holds something else.
    """

    folder: Path
    number: int | None = None

    def __post_init__(self) -> None:
        names = [f"{name}.npy" for name in ("labels", *CORRUPTIONS)]
        if missing := [name for name in names if not (self.folder / name).is_file()]:
            raise FileNotFoundError(
                f"--files: expected the files of CIFAR-10-C in {self.folder}, missing: "
                f"{', '.join(missing)}. Unpack all of its archive there."
            )

    @property
    def words(self) -> str:
        """Say where the images are from."""
        return "the published files of CIFAR-10-C"

    @property
    def seed(self) -> int | None:
        """Nothing is drawn."""
        return None

    def __call__(self, corruption: str, severity: int) -> tuple[UInt8Array, Tensor]:
        """Return the images of a severity and their classes.

        Raises:
            ValueError: if the file holds something else.
        """
        images = self.read(corruption, np.dtype(np.uint8), (32, 32, 3))
        labels = self.read("labels", None, ())
        each = len(labels) // len(SEVERITIES)
        first = (severity - 1) * each
        here = slice(first, first + (each if self.number is None else min(each, self.number)))
        pixels: UInt8Array = np.ascontiguousarray(images[here].transpose(0, 3, 1, 2))
        return pixels, torch.from_numpy(labels[here].astype(np.int64))

    def read(
        self, name: str, dtype: np.dtype[np.uint8] | None, shape: tuple[int, ...]
    ) -> npt.NDArray[np.uint8]:
        """Return what a file holds.

        Raises:
            ValueError: if that is no array of so many images.
        """
        path = self.folder / f"{name}.npy"
        try:
            array: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"--files: {path} is damaged: {error}. Unpack it again.") from error
        wanted = (len(SEVERITIES) * IN_FILE, *shape)
        whole = dtype == array.dtype if dtype is not None else array.dtype.kind in "iu"
        if array.shape != wanted or not whole:
            kind = dtype or "whole numbers"
            raise ValueError(
                f"--files: expected {kind} of the shape {wanted} in {path}, got {array.dtype} "
                f"{array.shape}. Give the folder of CIFAR-10-C."
            )
        return array


@torch.no_grad()
def wrong_on(
    model: nn.Module,
    images: UInt8Array,
    labels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 250,
) -> Tensor:
    """Return which images a classifier gets wrong, bool ``(N,)``.

    Args:
        model: takes images normalised by mean and standard deviation.
        images: uint8 ``(N, C, H, W)``.
        labels: int64 ``(N,)``.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        batch_size: images per forward pass.

    Example:
        >>> images = np.zeros((2, 2, 1, 1), np.uint8)
        >>> images[:, 1] = 255
        >>> wrong_on(nn.Flatten(), images, torch.tensor([1, 0]), (0.0,) * 2, (1.0,) * 2).tolist()
        [False, True]
    """
    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    found = []
    with evaluating(model):
        for pixels, right in zip(
            torch.from_numpy(images).split(batch_size), labels.split(batch_size), strict=True
        ):
            answers = model((pixels.float() / 255 - shift) / scale).argmax(1)
            found.append(answers != right)
    return torch.cat(found)


def summed(wrong: Sequence[Tensor]) -> Corrupted:
    """Return the errors at each severity, and how often each image was wrong.

    Args:
        wrong: bool ``(N,)``, one for each severity.

    Example:
        >>> summed([torch.tensor([True, False])] * 5)
        Corrupted(errors=(50.0, 50.0, 50.0, 50.0, 50.0), wrong='50')
    """
    errors = tuple(100 * float(one.double().mean()) for one in wrong)
    return Corrupted(errors, digits(torch.stack(list(wrong)).sum(0).tolist()))
