"""Images that are held and augmented on the training's device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_lightning.data.augment import DeviceTransform, Int64Array
from ssl_lightning.data.loading import Batch, MemoryImages
from ssl_lightning.data.packed import LabelledImages

CHUNK = 4096  # images transformed at once; bounds the memory of a transform


class DeviceImages(MemoryImages):
    """Serve the batches of :class:`MemoryImages`, pixel by pixel, from a device.

    The images of this dataset lie there as uint8. When the first batch of an epoch is asked for,
    the CPU draws the random numbers of the whole epoch and all images are transformed, a few
    thousand at a time; a batch is then gathered and normalised, without a wait for the device.
    Twice the size of the images is needed there: 0.3 GB for CIFAR-10.

    Args:
        data: all images of a split.
        positions: the samples that belong to this dataset, as positions in ``data``.
        transform: applied to the uint8 images; it does not change the size of an image.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        device: where images are held and batches made.

    Example:
        >>> from ssl_lightning.data.augment import CropFlip
        >>> data = LabelledImages(np.ones((3, 1, 2, 2), np.uint8), np.array([4, 5, 6]), ())
        >>> parts = (data, np.array([2, 0]), CropFlip(1, flip=True), (0.5,), (0.25,))
        >>> here = DeviceImages(*parts, torch.device("cpu")).__getitems__([3, 2])
        >>> there = MemoryImages(*parts).__getitems__([3, 2])
        >>> [torch.equal(a, b) for a, b in zip(here, there, strict=True)]
        [True, True]
    """

    def __init__(
        self,
        data: LabelledImages,
        positions: Int64Array,
        transform: DeviceTransform,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        super().__init__(data, positions, transform, mean, std)
        self.device = device
        self.device_transform = transform
        self.pixels = torch.from_numpy(data.images[positions]).to(device)
        self.labels = self.labels[torch.from_numpy(positions)].to(device)
        self.scale, self.shift = self.scale.to(device), self.shift.to(device)
        self._epoch: tuple[int, Tensor] | None = None

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        """The batch of these keys: float32 ``(B, C, H, W)``, int64 labels ``(B,)``; on the device.

        Raises:
            ValueError: if the keys are of several epochs.
        """
        epochs, position = np.divmod(np.asarray(keys, np.int64), len(self))
        epoch = int(epochs[0]) if len(epochs) else 0
        if (epochs != epoch).any():
            raise ValueError(
                f"DeviceImages: expected keys of one epoch, got {sorted(set(epochs.tolist()))}. "
                "Ask for one epoch after the other."
            )
        place = self._send(position)
        images = self._transformed(epoch)[place].to(torch.float32)
        return images.mul_(self.scale).add_(self.shift), self.labels[place]

    def _transformed(self, epoch: int) -> Tensor:
        """Return all images as they are in an epoch: uint8 ``(N, C, H, W)``."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = None  # its memory is free for the next
            height, width = self.pixels.shape[2:]
            epochs = np.full(len(self), epoch, np.int64)
            draws = self._send(self.device_transform.draw((height, width), epochs, self.positions))
            images = torch.empty_like(self.pixels)
            for start in range(0, len(self), CHUNK):
                part = slice(start, start + CHUNK)
                images[part] = self.device_transform.on_device(self.pixels[part], draws[part])
            self._epoch = (epoch, images)
        return self._epoch[1]

    def _send(self, numbers: Int64Array) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(numbers))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # else the copy waits for the device
        return tensor.to(self.device, non_blocking=True)
