"""The table of data modules, by the name that configs and tests use."""

from __future__ import annotations

from ssl_lightning.data.base import ImageDataModule
from ssl_lightning.data.folder import ImageFolderDataModule, ImageNetDataModule
from ssl_lightning.data.memory import (
    CIFAR10DataModule,
    FashionMNISTDataModule,
    ImagenetteDataModule,
    MNISTDataModule,
)
from ssl_lightning.data.synthetic import SyntheticDataModule

DATA_MODULES: dict[str, type[ImageDataModule]] = {
    "mnist": MNISTDataModule,
    "fashion_mnist": FashionMNISTDataModule,
    "cifar10": CIFAR10DataModule,
    "imagenette": ImagenetteDataModule,
    "image_folder": ImageFolderDataModule,
    "imagenet": ImageNetDataModule,
    "synthetic": SyntheticDataModule,
}


def named_class(class_path: str) -> type[ImageDataModule] | None:
    """Return the library's data module that a config names; None for a class of the user's own.

    Example:
        >>> named_class("ssl_lightning.data.MNISTDataModule").__name__
        'MNISTDataModule'
        >>> named_class("mine.MNISTDataModule")
    """
    package, _, name = class_path.rpartition(".")
    own = package.partition(".")[0] in ("", "ssl_lightning")
    return next((kind for kind in DATA_MODULES.values() if own and kind.__name__ == name), None)
