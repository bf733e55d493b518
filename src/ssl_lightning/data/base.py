"""Lightning data modules: fixed splits, repeatable augmentation, resumable order.

What all of them have in common:

* The validation images are held out of the training images by a seed alone; everything is
  selected on them. The official test split is read for ``test`` and ``predict`` only.
* Order and augmentation are functions of (seed, epoch, sample), the same for any number of
  processes and workers and for an interrupted run that is resumed.
* A training epoch omits the samples that do not fill the last batch, unless there is no full
  batch at all; the evaluation loaders omit none.
* Batches are float32 images ``(B, C, H, W)`` and int64 labels ``(B,)``; ``predict`` gives the same
  batches as ``test``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_lightning.data.augment import SPLIT, Int64Array, permutation
from ssl_lightning.data.loading import EpochSampler, KeyedDataset, ResumableLoader, SeededDataset
from ssl_lightning.data.sets import default_root

Batch = tuple[Tensor, Tensor]
Loader = DataLoader[Batch]
Split = Literal["train", "validation", "test"]
SPLITS_OF_STAGE: dict[str | None, tuple[Split, ...]] = {
    None: ("train", "validation", "test"),
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("test",),
}


@dataclass(kw_only=True, eq=False)
class ImageDataModule(LightningDataModule):
    """Loaders over a training, a validation and a test dataset; subclasses make the datasets.

    The arguments are the fields of a dataclass, which subclasses add to or give other defaults
    (``@dataclass(kw_only=True, eq=False)``), so that each argument is written once. A subclass
    defines :meth:`make_dataset`, ``class_names`` (or ``num_classes``) and ``input_shape``. Images
    that fit into memory are less work: see :class:`~ssl_lightning.data.ArrayDataModule`.

    Args:
        root: folder of the data; see :func:`ssl_lightning.data.sets.default_root`.
        batch_size: training samples per step and process.
        num_validation: training images held out for validation.
        seed: of order and augmentation, and of the split unless that has its own.
        split_seed: of the split: runs with several seeds then hold out the same images.
        augment: whether training images are cropped and mirrored at random.
        normalize: whether pixels are normalised by mean and standard deviation, or just in [0, 1].
        eval_batch_size: samples per evaluation step and process.
        num_workers: processes that load batches; 0 loads in the training process.

    Attributes:
        folder: the folder that ``root`` stands for.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> class Ramps(ImageDataModule):
        ...     num_classes, input_shape = 2, (1, 4, 4)
        ...
        ...     def make_dataset(self, split):
        ...         images = torch.linspace(0, 1, 6 * 16).view(6, 1, 4, 4)
        ...         data = TensorDataset(images, torch.tensor([0, 0, 0, 1, 1, 1]))
        ...         return self.subset(data, split)
        >>> data = Ramps(batch_size=2, num_validation=2)
        >>> [labels.tolist() for images, labels in data.train_dataloader()]
        [[1, 0], [1, 1]]
    """

    root: str | None = None
    batch_size: int = 128
    num_validation: int = 0
    seed: int = 0
    split_seed: int | None = None
    augment: bool = True
    normalize: bool = True
    eval_batch_size: int = 250
    num_workers: int = 0

    collate: ClassVar[Any] = None

    def __post_init__(self) -> None:
        """Check the settings; subclasses call this first."""
        super().__init__()
        self._require("batch_size", self.batch_size, 1)
        self._require("eval_batch_size", self.eval_batch_size, 1)
        self._require("num_workers", self.num_workers, 0)
        self._require("num_validation", self.num_validation, 0)
        self._require("seed", self.seed, 0)
        self._require("split_seed", self.split_seed or 0, 0)
        self.folder = default_root(self.root)
        self._datasets: dict[Split, Dataset[Any]] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        raise NotImplementedError(f"{type(self).__name__} defines no `class_names`.")

    @property
    def num_classes(self) -> int:
        """Number of classes, or of other outputs that a network has."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image in a batch."""
        raise NotImplementedError(f"{type(self).__name__} defines no `input_shape`.")

    def setup(self, stage: str | None = None) -> None:
        """Load the splits that a stage needs, unless they are loaded already.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or None for all.
        """
        for split in SPLITS_OF_STAGE[stage]:
            self.dataset(split)

    def dataset(self, split: Split) -> Dataset[Any]:
        """The dataset of one split, made at the first call."""
        if split not in self._datasets:
            made: Any = self.make_dataset(split)
            if not isinstance(made, KeyedDataset):
                made = SeededDataset(made, np.arange(len(made)), self.seed)
            self._datasets[split] = made
        return self._datasets[split]

    def make_dataset(self, split: Split) -> Dataset[Any]:
        """Return the dataset of one split: any map-style dataset; subclasses define this.

        What its transform draws from torch's generator becomes a function of (seed, epoch, sample).
        """
        raise NotImplementedError(f"{type(self).__name__} defines no `make_dataset`.")

    def subset(self, data: Dataset[Any], split: Split) -> Dataset[Any]:
        """Return the part of a map-style dataset that belongs to a split; see :meth:`positions`."""
        return SeededDataset(data, self.positions(split, len(cast(Any, data))), self.seed)

    def train_dataloader(self) -> Loader:
        """Shuffled, augmented training batches of this process."""
        dataset = self.dataset("train")
        world_size, rank = (
            (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        )
        sampler = EpochSampler(dataset, self.seed, world_size, rank)
        full_batches = len(sampler) // self.batch_size
        return ResumableLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=full_batches > 0,
            **self._loader_options(),
        )

    def val_dataloader(self) -> Loader:
        """Batches of the held-out training images, in a fixed order."""
        return self._eval_loader("validation")

    def test_dataloader(self) -> Loader:
        """Batches of the official test split, in the order of the file."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> Loader:
        """The same batches as :meth:`test_dataloader`."""
        return self._eval_loader("test")

    def _eval_loader(self, split: Split) -> Loader:
        dataset = self.dataset(split)  # the rest by keyword: Lightning rebuilds loaders from them
        return DataLoader(dataset, batch_size=self.eval_batch_size, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": self.collate,
            "generator": torch.Generator(),  # else each epoch draws from the training's own
        }

    def positions(self, split: Split, number: int) -> Int64Array:
        """Return which of ``number`` training samples belong to a split; all of them for "test".

        Raises:
            ValueError: if ``num_validation`` leaves no training samples.
        """
        if split == "test":
            return np.arange(number)
        self._require("num_validation", self.num_validation, 0, number - 1)
        seed = self.seed if self.split_seed is None else self.split_seed
        shuffled = permutation(seed, 0, number, SPLIT)
        held_out, rest = np.split(shuffled, [self.num_validation])
        return np.sort(rest if split == "train" else held_out)

    def _sizes_by_epoch(self, sizes: Mapping[int, int] | None) -> dict[int, int]:
        """Return ``training_sizes`` with whole numbers as keys: a stored config has them as text.

        Raises:
            ValueError: for an epoch that is no whole number, or an impossible row.
        """
        try:
            table = {int(epoch): size for epoch, size in (sizes or {}).items()}
        except ValueError as error:
            raise ValueError(
                f"{type(self).__name__}: expected `training_sizes` to be by epoch, such as "
                f"{{0: 128, 10: 224}}, got {sizes}. Use whole numbers as keys."
            ) from error
        for epoch, size in table.items():
            self._require("training_sizes (epoch)", epoch, 0)
            self._require("training_sizes (pixels)", size, 8)
        return table

    def _require(
        self, name: str, value: int, low: int, high: int | None = None, why: str = ""
    ) -> None:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or value < low or (high is not None and value > high):
            expected = f"at least {low}" if high is None else f"{low} .. {high}"
            expected = expected if whole else f"a whole number, {expected}"
            raise ValueError(
                f"{type(self).__name__}: expected `{name}` to be {expected}{why}, got "
                f"{value}. Change it in the call or in the config's `data` section."
            )
