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
