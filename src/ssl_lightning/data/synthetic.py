"""Images and targets made by a formula: other tasks than classification, without any files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ssl_lightning.data.augment import Float64Array, uniform
from ssl_lightning.data.memory import ArrayDataModule
from ssl_lightning.data.packed import LabelledImages
from ssl_lightning.suggest import pick

Task = Literal["multiclass", "multilabel", "regression", "segmentation"]
NOISE, WEIGHT, HEIGHT, WIDTH, ROW, COLUMN = range(16, 22)  # apart from the streams of augmentation
AMPLITUDE = 64  # of all stripes of an image together, in steps of 1 / 255


@dataclass(kw_only=True, eq=False)
class SyntheticDataModule(ArrayDataModule):
    r"""Stripes in noise: small made-up data for several tasks, a function of ``seed`` alone.

    With K = ``num_classes``, pattern k is a set of stripes, 4 pixels apart, at an angle of its own,

    .. math:: p_k(y, x) = \cos\bigl(\tfrac{\pi}{2}
              (x \cos \tfrac{\pi k}{K} + y \sin \tfrac{\pi k}{K})\bigr)

    and a pixel is :math:`128 + A \sum_k a_k p_k + u`, where u is uniform in ±\ ``noise``, drawn for
    each pixel and channel. ``task`` says what the weights :math:`a_k` and the targets are:

    * ``"multiclass"``: one weight, drawn at random, is 1, the others are 0; the target is its
      number, int64 ``(N,)``. A = 64.
    * ``"multilabel"``: each weight is 0 or 1 with equal chance; the targets are the weights,
      float32 ``(N, K)``. A = 64 / K.
    * ``"regression"``: each weight is uniform in [-1, 1]; the targets are the weights, float32
      ``(N, K)``. A = 64 / K.
    * ``"segmentation"``: one weight of 1 .. K - 1 is 1 inside a rectangle at a random place, whose
      sides are a quarter to three quarters of the image's; the target of a pixel is the number of
      its pattern, 0 outside the rectangle, int64 ``(N, H, W)``. A = 64.

    So the first three can be learnt by one linear layer, the last by a few convolutions.
    Augmentation (off by default) shifts by 1 pixel; ``root`` is not used.

    Args:
        task: what the targets are.
        num_classes: number of patterns K: classes, labels or regression outputs.
        image_size: side of the images in pixels.
        channels: of the images.
        num_train: training images, those held out for validation included.
        num_test: test images.
        noise: largest change of a pixel by noise, 0 .. 63 of 255.

    The other arguments are those of :class:`ArrayDataModule` and :class:`ImageDataModule`.

    Raises:
        ValueError: if a number is out of range or the task is unknown.

    Example:
        >>> data = SyntheticDataModule(task="segmentation", image_size=16, batch_size=8)
        >>> images, targets = next(iter(data.train_dataloader()))
        >>> images.shape, targets.shape, targets.unique()
        (torch.Size([8, 1, 16, 16]), torch.Size([8, 16, 16]), tensor([0, 1, 2, 3]))
    """

    batch_size: int = 32
    num_validation: int = 128
    augment: bool = False
    task: Task = "multiclass"
    num_classes: int = 4
    image_size: int = 28
    channels: int = 1
    num_train: int = 640
    num_test: int = 128
    noise: int = 32

    pad = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        pick("task of SyntheticDataModule", self.task, {name: name for name in get_args(Task)})
        self._require("num_classes", self.num_classes, 2)
        self._require("image_size", self.image_size, 8)
        self._require("channels", self.channels, 1)
        self._require("num_test", self.num_test, 1)
        held_out = f", as {self.num_validation} of them are held out (num_validation)"
        self._require("num_train", self.num_train, self.num_validation + 1, why=held_out)
        self._require("noise", self.noise, 0, 127 - AMPLITUDE)
        self.mean, self.std = (0.5,) * self.channels, (0.25,) * self.channels

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each pattern."""
        names = [f"stripes at {180 * k / self.num_classes:.0f} degrees" for k in self._numbers]
        return ("background", *names[1:]) if self.task == "segmentation" else tuple(names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image in a batch."""
        return (self.channels, self.image_size, self.image_size)

    @property
    def _numbers(self) -> Any:
        return np.arange(self.num_classes)

    def read(self, train: bool) -> LabelledImages:
        """Return all training or all test images with their targets."""
        number = self.num_train if train else self.num_test
        weights, targets = self._weights(number, train)
        y, x = np.mgrid[: self.image_size, : self.image_size]
        angles = np.pi * self._numbers[:, None, None] / self.num_classes
        patterns = np.cos(np.pi / 2 * (x * np.cos(angles) + y * np.sin(angles)))
        most = self.num_classes if self.task in ("multilabel", "regression") else 1
        stripes = AMPLITUDE / most * (weights * patterns).sum(1, keepdims=True)
        noise = self._draw(train, NOISE, number, *self.input_shape)
        pixels = np.rint(128 + stripes + self.noise * (2 * noise - 1))
        return LabelledImages(pixels.astype(np.uint8), targets, self.class_names)

    def _weights(self, number: int, train: bool) -> tuple[Float64Array, Any]:
        """Return weights ``(N, K, H, W)``, or with 1 for H and W, and the targets."""
        drawn = self._draw(train, WEIGHT, number, self.num_classes)
        if self.task == "multilabel":
            drawn = np.rint(drawn)
        elif self.task == "regression":
            drawn = 2 * drawn - 1
        else:
            first = int(self.task == "segmentation")
            labels = first + drawn[:, first:].argmax(1)
            if self.task == "segmentation":
                labels = labels[:, None, None] * self._rectangles(number, train)
            spread = labels.reshape(number, 1, *labels.shape[1:] or (1, 1))
            present = spread == self._numbers[:, None, None]
            return present * (spread >= first), labels
        return drawn[:, :, None, None], drawn.astype(np.float32)

    def _rectangles(self, number: int, train: bool) -> Any:
        """Return 1 inside and 0 outside a random rectangle in each image, ``(N, H, W)``."""
        inside, place = [], np.arange(self.image_size)
        for length, position in ((HEIGHT, ROW), (WIDTH, COLUMN)):
            side = np.rint(self.image_size * (1 + 2 * self._draw(train, length, number, 1)) / 4)
            begin = np.floor(self._draw(train, position, number, 1) * (self.image_size - side + 1))
            inside.append((begin <= place) & (place < begin + side))
        return (inside[0][:, :, None] & inside[1][:, None, :]).astype(np.int64)

    def _draw(self, train: bool, stream: int, *shape: int) -> Float64Array:
        """Return uniform numbers in [0, 1)."""
        flat = uniform(self.seed, 0 if train else 1, np.arange(int(np.prod(shape))), stream)
        return flat.reshape(shape)
