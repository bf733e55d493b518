"""Data modules with fixed splits and repeatable, resumable batches; readers of image files.

Only names that are used are imported, so that reading a file needs neither Lightning nor
torchvision.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_lightning.data.datamodule import (
        DATA_MODULES,
        CIFAR10DataModule,
        FashionMNISTDataModule,
        ImageDataModule,
        ImageFolderDataModule,
        ImageNetDataModule,
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

__all__ = [
    "DATA_MODULES",
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
    "read_idx",
    "read_idx_split",
    "read_packed",
]

_PACKED = {
    "DataFileError",
    "DataNotFoundError",
    "LabelledImages",
    "read_idx",
    "read_idx_split",
    "read_packed",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(
        import_module(f"{__name__}.{'packed' if name in _PACKED else 'datamodule'}"), name
    )


def __dir__() -> list[str]:
    return __all__
