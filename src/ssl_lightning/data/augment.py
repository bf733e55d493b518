"""Random crops, flips and cutouts as pure functions of (seed, epoch, sample index), batch by batch.

The random numbers come from a counter-based hash instead of a generator with a state. So what
happens to a sample does not depend on which batch, process or worker it is in, nor on where a run
was interrupted, nor on the version of torch or numpy.

Reference:
    Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (splitmix64).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
Float64Array = npt.NDArray[np.float64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# What a random number is for; each purpose draws from a stream of its own.
ORDER, SPLIT, TOP, LEFT, FLIP, AREA, ASPECT, TORCH, ROW, COLUMN = range(10)


def hash_uint64(seed: int, epoch: Int64Array | int, index: Int64Array, stream: int) -> UInt64Array:
    """Hash (seed, stream, epoch, index) to 64 uniform bits.

    Args:
        seed: any integer; used modulo 2**64.
        epoch: one epoch, or one for each index.
        index: sample indices ``(N,)``.
        stream: what the number is for, e.g. :data:`FLIP`.

    Returns:
        uint64 ``(N,)``.

    Example:
        >>> hash_uint64(0, 3, np.arange(2), FLIP) == hash_uint64(0, 3, np.array([0, 7]), FLIP)
        array([ True, False])
    """
    state = np.zeros(np.shape(index), np.uint64)
    for value in (np.uint64(seed % 2**64), stream, epoch, index):
        state = _mix(state + GOLDEN * (np.atleast_1d(value).astype(np.uint64) + np.uint64(1)))
    return state


def uniform(seed: int, epoch: Int64Array | int, index: Int64Array, stream: int) -> Float64Array:
    """Uniform numbers in [0, 1), one for each index; see :func:`hash_uint64`."""
    bits = hash_uint64(seed, epoch, index, stream) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, number: int, stream: int = ORDER) -> Int64Array:
    """Shuffle ``0 .. number - 1``: a function of the seed and the epoch only.

    Example:
        >>> sorted(permutation(seed=0, epoch=1, number=5).tolist())
        [0, 1, 2, 3, 4]
    """
    keys = hash_uint64(seed, epoch, np.arange(number), stream)
    return np.argsort(keys, kind="stable").astype(np.int64)


def _mix(state: UInt64Array) -> UInt64Array:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def crop_and_flip(
    images: UInt8Array, top: Int64Array, left: Int64Array, flip: npt.NDArray[np.bool_], pad: int
) -> UInt8Array:
    """Pad images with black, cut windows of the old size out of them, and mirror some.

    Args:
        images: uint8 ``(B, C, H, W)``.
        top: first row of each window in the padded image, 0 .. ``2 * pad``.
        left: first column, likewise.
        flip: which to mirror left to right, after the crop.
        pad: pixels added on each side.

    Returns:
        New array, same shape.

    Example:
        >>> image = np.array([[[[1, 2], [3, 4]]]], np.uint8)
        >>> crop_and_flip(image, np.array([2]), np.array([1]), np.array([True]), pad=1)[0, 0]
        array([[4, 3],
               [0, 0]], dtype=uint8)
    """
    number, channels, height, width = images.shape
    if pad:
        padded = np.zeros((number, channels, height + 2 * pad, width + 2 * pad), np.uint8)
        padded[:, :, pad : pad + height, pad : pad + width] = images
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        images = windows[np.arange(number), :, top, left]  # a copy
    else:
        images = images.copy()
    images[flip] = images[flip][..., ::-1]
    return images


def crop_and_flip_tensor(
    images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int
) -> Tensor:
    """Do as :func:`crop_and_flip` does where the images are, without a wait for the device.

    Args:
        images: uint8 ``(B, C, H, W)``.
        top: int64 ``(B,)``.
        left: int64 ``(B,)``.
        flip: bool ``(B,)``.
        pad: pixels added on each side.

    Returns:
        New tensor, same shape.
    """
    _, channels, height, width = images.shape
    place = torch.arange(width, device=images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - place, place)
    padded = F.pad(images, (pad, pad, pad, pad))
    rows = rows[:, None, :, None].expand(-1, channels, -1, padded.shape[3])
    columns = columns[:, None, None, :].expand(-1, channels, height, -1)
    return padded.gather(2, rows).gather(3, columns)


class BatchTransform(Protocol):
    """Maps a uint8 batch ``(B, C, H, W)`` and its samples' epochs and indices to another one."""

    def __call__(self, images: UInt8Array, epoch: Int64Array, index: Int64Array) -> UInt8Array:
        """Return the transformed batch; the input is not changed."""


class DeviceTransform(BatchTransform, Protocol):
    """One that also works where the images are: numbers drawn on the CPU, pixels moved there."""

    def draw(self, size: tuple[int, int], epoch: Int64Array, index: Int64Array) -> Int64Array:
        """Return the numbers ``(B, K)`` that say what happens to images of ``size`` pixels."""

    def on_device(self, images: Tensor, draws: Tensor) -> Tensor:
        """Transform uint8 ``(B, C, H, W)`` by draws ``(B, K)``, both on one device, likewise."""


@dataclass(frozen=True)
class CropFlip:
    """Shift each image by up to ``pad`` pixels (black comes in), then mirror half of them.

    Args:
        pad: largest shift in pixels, in either direction.
        flip: whether to mirror at all.
        seed: makes the choice repeatable, together with epoch and sample index.
        size: height and width that images are scaled to before; None: they are as they come.
    """

    pad: int
    flip: bool
    seed: int = 0
    size: tuple[int, int] | None = None

    def __call__(self, images: UInt8Array, epoch: Int64Array, index: Int64Array) -> UInt8Array:
        """Transform a batch; shape, unless ``size`` says it, and dtype are those of the input."""
        images = images if self.size is None else resize(images, self.size)
        top, left, flip = self.draw((images.shape[2], images.shape[3]), epoch, index).T
        return crop_and_flip(images, top, left, flip.astype(bool), self.pad)

    def draw(self, size: tuple[int, int], epoch: Int64Array, index: Int64Array) -> Int64Array:
        """Return each sample's top and left, 0 .. ``2 * pad``, and 1 where it is mirrored."""
        del size
        top, left = (
            (uniform(self.seed, epoch, index, stream) * (2 * self.pad + 1)).astype(np.int64)
            for stream in (TOP, LEFT)
        )
        flip = uniform(self.seed, epoch, index, FLIP) < (0.5 if self.flip else 0.0)
        return np.stack([top, left, flip], axis=1)

    def on_device(self, images: Tensor, draws: Tensor) -> Tensor:
        """Transform a batch where it is, by what :meth:`draw` returned."""
        images = images if self.size is None else Resize(self.size).on_device(images, draws)
        top, left, flip = draws.unbind(1)
        return crop_and_flip_tensor(images, top, left, flip.bool(), self.pad)


@dataclass(frozen=True)
class Cutout:
    """Paint over a square of each image, after another transform.

    The square's middle is anywhere in the image with equal chance, so that part of it may lie
    outside.

    Args:
        before: makes the images to paint on.
        side: of the square, in pixels.
        colour: per channel, 0 .. 255; the mean of the data, to be zero when normalised.
        seed: makes the choice repeatable, together with epoch and sample index.

    Reference:
        DeVries, Taylor, Improved regularization of convolutional neural networks with cutout,
        2017; 16 pixels for CIFAR-10.

    Example:
        >>> cutout = Cutout(Resize(4), side=9, colour=(5,))  # covers all, wherever its middle is
        >>> cutout(np.zeros((1, 1, 4, 4), np.uint8), np.array([0]), np.array([0])).min()
        np.uint8(5)
    """

    before: BatchTransform
    side: int
    colour: tuple[int, ...]
    seed: int = 0

    def __call__(self, images: UInt8Array, epoch: Int64Array, index: Int64Array) -> UInt8Array:
        """Transform a batch as ``before`` does, and paint on it."""
        images = self.before(images, epoch, index).copy()
        height, width = images.shape[2:]
        top, left = self._corners((height, width), epoch, index).T[:, :, None]
        rows, columns = np.arange(height), np.arange(width)
        in_rows = (top <= rows) & (rows < top + self.side)
        in_columns = (left <= columns) & (columns < left + self.side)
        square = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        np.copyto(images, np.array(self.colour, np.uint8)[:, None, None], where=square)
        return images

    def draw(self, size: tuple[int, int], epoch: Int64Array, index: Int64Array) -> Int64Array:
        """Return the draws of ``before``, then top and left of each square, maybe outside."""
        drawn = cast(DeviceTransform, self.before).draw(size, epoch, index)
        return np.concatenate([drawn, self._corners(size, epoch, index)], axis=1)

    def on_device(self, images: Tensor, draws: Tensor) -> Tensor:
        """Transform a batch where it is, by what :meth:`draw` returned."""
        images = cast(DeviceTransform, self.before).on_device(images, draws[:, :-2])
        inside = []
        for first, length in zip(draws[:, -2:].unbind(1), images.shape[2:], strict=True):
            offset = torch.arange(length, device=images.device) - first[:, None]
            inside.append((offset >= 0) & (offset < self.side))
        square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        for channel, value in enumerate(self.colour):  # a number needs no copy to the device
            images[:, channel : channel + 1].masked_fill_(square, value)
        return images

    def _corners(self, size: tuple[int, int], epoch: Int64Array, index: Int64Array) -> Int64Array:
        """Return top and left of each sample's square, ``(B, 2)``."""
        middle = [
            (uniform(self.seed, epoch, index, stream) * length).astype(np.int64)
            for stream, length in zip((ROW, COLUMN), size, strict=True)
        ]
        return np.stack(middle, axis=1) - self.side // 2


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut a random box out of each image, scale it to ``size`` pixels, mirror half of them.

    The box has ``smallest`` to 100 % of the image's area and a side ratio of 3/4 to 4/3, clipped
    to the image. Scaling is bilinear with antialiasing.

    Args:
        size: side of the result in pixels.
        seed: makes the choice repeatable, together with epoch and sample index.
        smallest: share of the image's area that the smallest box has.
        sizes: epoch -> side from that epoch on, instead of ``size``: small images first.

    Reference:
        Szegedy et al., Going deeper with convolutions, 2015; 35 % instead of 8 % as is usual for
        small subsets of ImageNet.
    """

    size: int
    seed: int = 0
    smallest: float = 0.35
    sizes: Mapping[int, int] = field(default_factory=dict)

    def size_at(self, epoch: int) -> int:
        """Side of the images of an epoch, in pixels.

        Example:
            >>> crop = RandomResizedCrop(227, sizes={0: 128, 2: 176})
            >>> [crop.size_at(epoch) for epoch in range(4)], RandomResizedCrop(227).size_at(0)
            ([128, 128, 176, 176], 227)
        """
        begun = [start for start in self.sizes if start <= epoch]
        return self.sizes[max(begun)] if begun else self.size

    def boxes(
        self, height: int, width: int, epoch: Int64Array, index: Int64Array
    ) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array]:
        """Top, left, height and width of each sample's box, in pixels."""
        draw = {s: uniform(self.seed, epoch, index, s) for s in (AREA, ASPECT, TOP, LEFT)}
        area = height * width * (self.smallest + (1 - self.smallest) * draw[AREA])
        aspect = np.exp((2 * draw[ASPECT] - 1) * np.log(4 / 3))
        rows = np.clip(np.rint(np.sqrt(area / aspect)), 1, height).astype(np.int64)
        columns = np.clip(np.rint(np.sqrt(area * aspect)), 1, width).astype(np.int64)
        top = (draw[TOP] * (height - rows + 1)).astype(np.int64)
        left = (draw[LEFT] * (width - columns + 1)).astype(np.int64)
        return top, left, rows, columns

    def __call__(self, images: UInt8Array, epoch: Int64Array, index: Int64Array) -> UInt8Array:
        """Transform a batch to uint8 ``(B, C, size, size)``; all of one epoch."""
        size = self.size_at(int(np.max(epoch, initial=0)))
        boxes = np.stack(
            self.boxes(images.shape[2], images.shape[3], epoch, index), axis=1
        ).tolist()
        crops = [
            resize(image[None, :, top : top + rows, left : left + columns], size)
            for image, (top, left, rows, columns) in zip(images, boxes, strict=True)
        ]
        flip = uniform(self.seed, epoch, index, FLIP) < 0.5
        batch = np.concatenate(crops)
        return np.where(flip[:, None, None, None], batch[..., ::-1], batch)


@dataclass(frozen=True)
class Resize:
    """Scale the middle of each image to ``size`` pixels; nothing is random.

    Args:
        size: side of the result in pixels, or its height and width.
        middle: share of the height and the width that is used.
    """

    size: int | tuple[int, int]
    middle: float = 1.0

    def __call__(self, images: UInt8Array, epoch: Int64Array, index: Int64Array) -> UInt8Array:
        """Transform a batch to uint8 ``(B, C, *size)``."""
        del epoch, index
        height, width = (round(side * self.middle) for side in images.shape[2:])
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        return resize(images[:, :, top : top + height, left : left + width], self.size)

    def draw(self, size: tuple[int, int], epoch: Int64Array, index: Int64Array) -> Int64Array:
        """Return no numbers: ``(B, 0)``."""
        del size, epoch
        return np.zeros((len(index), 0), np.int64)

    def on_device(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return images of the right size as they are: elsewhere they are scaled otherwise.

        Raises:
            ValueError: if they are of another size.
        """
        del draws
        height, width = as_pair(self.size)
        if self.middle != 1 or images.shape[2:] != (height, width):
            raise ValueError(
                f"Resize: expected images of {height} x {width} pixels on the device, got "
                f"{tuple(images.shape[2:])}. Scale them on the CPU."
            )
        return images


def as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width."""
    return size if isinstance(size, tuple) else (size, size)


def resize(images: UInt8Array, size: int | tuple[int, int]) -> UInt8Array:
    """Scale uint8 images ``(B, C, H, W)`` bilinearly with antialiasing to a side, or both."""
    if images.shape[2:] == as_pair(size):
        return images
    batch = torch.from_numpy(np.ascontiguousarray(images))
    scaled: UInt8Array = F.interpolate(
        batch, as_pair(size), mode="bilinear", antialias=True, align_corners=False
    ).numpy()
    return scaled
