"""Data modules with fixed splits and repeatable, resumable batches; readers of image files.

Only names that are used are imported, so that reading a file needs neither Lightning nor
torchvision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssl_lightning import lazy

if TYPE_CHECKING:
    from ssl_lightning.data.base import ImageDataModule
    from ssl_lightning.data.datamodule import DATA_MODULES, named_class
    from ssl_lightning.data.folder import ImageFolderDataModule, ImageNetDataModule
    from ssl_lightning.data.memory import (
        ArrayDataModule,
        CIFAR10DataModule,
        FashionMNISTDataModule,
        ImagenetteDataModule,
        InMemoryDataModule,
        MNISTDataModule,
    )
    from ssl_lightning.data.packed import (
        DataFileError,
        DataNotFoundError,
        LabelledImages,
        read_idx,
        read_idx_split,
        read_packed,
    )
    from ssl_lightning.data.synthetic import SyntheticDataModule

__all__ = [
    "DATA_MODULES",
    "ArrayDataModule",
    "CIFAR10DataModule",
    "DataFileError",
    "DataNotFoundError",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "ImagenetteDataModule",
    "InMemoryDataModule",
    "LabelledImages",
    "MNISTDataModule",
    "SyntheticDataModule",
    "named_class",
    "read_idx",
    "read_idx_split",
    "read_packed",
]
__getattr__, __dir__ = lazy.attach(__name__)
