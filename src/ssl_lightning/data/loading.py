"""Datasets, sampler and loader whose batches are a function of (seed, epoch, position) only.

The sampler hands out *keys*: ``key = epoch * len(dataset) + position``. A dataset therefore needs
no state to know the epoch, and its samples are the same in any worker, process or order. Keys under
``len(dataset)`` belong to epoch 0, so an ordinary sampler works as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ssl_lightning.data.augment import TORCH, BatchTransform, Int64Array, hash_uint64, permutation
from ssl_lightning.data.packed import LabelledImages

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]


class KeyedDataset(Dataset[Any]):
    """A dataset that takes the keys of :class:`EpochSampler`; see the module's docstring."""

    def __len__(self) -> int:
        """Return the number of samples."""
        raise NotImplementedError(f"{type(self).__name__} defines no `__len__`.")

    def __iter__(self) -> Iterator[Any]:
        """Yield the samples of epoch 0: keys have no end, by which Python would notice its own."""
        return (self[key] for key in range(len(self)))


class MemoryImages(KeyedDataset):
    """Serve whole batches out of decoded images: gathered, transformed, normalised.

    A ``DataLoader`` over it needs ``collate_fn=as_is``, because ``__getitems__`` returns a batch.

    Args:
        data: all images of a split; shared, never copied.
        positions: the samples that belong to this dataset, as positions in ``data``.
        transform: applied to each uint8 batch.
        mean: per channel, of pixels in [0, 1].
        std: per channel.

    Example:
        >>> from ssl_lightning.data.augment import Resize
        >>> data = LabelledImages(np.full((3, 1, 2, 2), 255, np.uint8), np.array([4, 5, 6]), ())
        >>> dataset = MemoryImages(data, np.array([2, 0]), Resize(2), mean=(0.5,), std=(0.25,))
        >>> images, labels = dataset.__getitems__([0, 1])
        >>> images.shape, images.max().item(), labels
        (torch.Size([2, 1, 2, 2]), 2.0, tensor([6, 4]))
    """

    def __init__(
        self,
        data: LabelledImages,
        positions: Int64Array,
        transform: BatchTransform,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.images = data.images
        self.labels = torch.from_numpy(data.labels)
        self.positions = positions
        self.transform = transform
        self.scale = (1 / (255 * torch.tensor(std, dtype=torch.float64))).float().view(-1, 1, 1)
        self.shift = (-torch.tensor(mean) / torch.tensor(std)).float().view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        """The batch of these keys: float32 ``(B, C, H, W)`` and int64 labels ``(B,)``."""
        epoch, position = np.divmod(np.asarray(keys, np.int64), len(self))
        index = self.positions[position]
        pixels = self.transform(self.images[index], epoch, index)
        images = torch.from_numpy(pixels).to(torch.float32).mul_(self.scale).add_(self.shift)
        return images, self.labels[torch.from_numpy(index)]

    def __getitem__(self, key: int) -> Batch:
        """One sample: float32 ``(C, H, W)`` and its label."""
        if not key >= 0:
            raise IndexError(f"Sample keys begin at 0, {key} came.")
        images, labels = self.__getitems__([key])
        return images[0], labels[0]


class SeededDataset(KeyedDataset):
    """Part of any map-style dataset, whose random transforms depend on (seed, epoch, sample) only.

    Torch's generator is seeded for each sample and set back afterwards, so neither the transforms
    nor the training around them influence each other.

    Args:
        data: map-style dataset whose transform draws from torch's generator.
        positions: the samples that belong to this part, as positions in ``data``.
        seed: makes the choice repeatable, together with epoch and sample position.
    """

    def __init__(self, data: Dataset[Any], positions: Int64Array, seed: int) -> None:
        self.data = data
        self.positions = positions
        self.seed = seed

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, key: int) -> Any:
        """One sample, after its transform."""
        epoch, position = divmod(int(key), len(self))
        index = self.positions[position : position + 1]
        bits = int(hash_uint64(self.seed, epoch, index, TORCH)[0])
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(bits >> 1)
        try:
            return self.data[int(index[0])]
        finally:
            torch.default_generator.set_state(before)


class EpochSampler(DistributedSampler[Any]):
    """Shuffle by (seed, epoch) and hand out the share of one process as keys.

    Rank ``r`` of ``W`` gets positions ``r::W`` of the global order. So W processes with batch size
    b see, together, the same batches as one process with batch size W * b. Up to W - 1 samples at
    the end of the order are omitted in an epoch, so that all processes have equally many.

    Args:
        dataset: sized; see the module's docstring for what its keys mean.
        seed: makes the order repeatable.
        num_replicas: number of processes W.
        rank: this process's rank r.

    Example:
        >>> shares = [list(EpochSampler(range(5), num_replicas=2, rank=r)) for r in (0, 1)]
        >>> [len(share) for share in shares], len({*shares[0], *shares[1]})
        ([2, 2], 4)
    """

    def __init__(
        self, dataset: Dataset[Any], seed: int = 0, num_replicas: int = 1, rank: int = 0
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed, drop_last=True)
        self.start = 0

    def __iter__(self) -> Iterator[int]:
        number = len(cast(Sequence[Any], self.dataset))
        order = permutation(self.seed, self.epoch, number)[: self.total_size]
        share = order[self.rank :: self.num_replicas][self.start :]
        self.start = 0
        return iter((share + self.epoch * number).tolist())


class ResumableLoader(DataLoader[T]):
    """Continue, after ``load_state_dict``, with the batch after the last one delivered.

    The state holds the epoch and the number of batches delivered in it. Lightning saves it with
    each checkpoint and loads it when a fit is resumed. Batches that were delivered before are
    skipped in the sampler, not loaded and thrown away. Iteration begins with the first ``next``,
    not with ``iter``, because Lightning sets the sampler's epoch between the two.

    Raises:
        ValueError: on the first ``next``, if the state belongs to another global batch size, for
            which "the next batch" has no meaning.

    Example:
        >>> loader = ResumableLoader(range(6), batch_size=2)
        >>> batches = iter(loader)
        >>> next(batches), loader.state_dict()
        (tensor([0, 1]), {'epoch': 0, 'batches': 1, 'global_batch_size': 2})
        >>> resumed = ResumableLoader(range(6), batch_size=2)
        >>> resumed.load_state_dict(loader.state_dict())
        >>> list(resumed), len(resumed)
        ([tensor([2, 3]), tensor([4, 5])], 3)
    """

    _delivered = (0, 0)  # epoch, batches
    _loaded: dict[str, int] | None = None

    @property
    def global_batch_size(self) -> int:
        """Samples per step over all processes."""
        return (self.batch_size or 1) * int(getattr(self.sampler, "num_replicas", 1))

    def state_dict(self) -> dict[str, int]:
        """Position of the last batch that was delivered."""
        if self._loaded is not None:
            return dict(self._loaded)
        epoch, batches = self._delivered
        return {"epoch": epoch, "batches": batches, "global_batch_size": self.global_batch_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next iteration begin after the batches that ``state_dict`` counts."""
        self._loaded = dict(state_dict)

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        epoch = int(getattr(self.sampler, "epoch", 0))
        skip = self._take_position(epoch)
        self._delivered = (epoch, skip)
        if isinstance(self.sampler, EpochSampler):
            self.sampler.start, skip = skip * (self.batch_size or 1), 0
        for batch in islice(super().__iter__(), skip, None):
            self._delivered = (epoch, self._delivered[1] + 1)
            yield batch

    def _take_position(self, epoch: int) -> int:
        state, self._loaded = self._loaded, None
        if state is None or state["epoch"] != epoch or state["batches"] >= len(self):
            return 0
        if state["batches"] and state["global_batch_size"] != self.global_batch_size:
            raise ValueError(
                f"Cannot resume in the middle of epoch {epoch}: the checkpoint was written with a "
                f"global batch size of {state['global_batch_size']}, this run has "
                f"{self.global_batch_size}. Use the old batch_size x processes, or resume from "
                "a checkpoint written at the end of an epoch."
            )
        return state["batches"]


def as_is(batch: T) -> T:
    """Collate nothing: the dataset returned a batch already."""
    return batch
