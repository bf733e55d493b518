"""Networks to make sparse by name: the paper's, timm's, torchvision's, and those registered."""

from ssl_lightning.backbones.alexnet import AlexNet
from ssl_lightning.backbones.convnet import ConvNet, SpatialResponseNorm
from ssl_lightning.backbones.lenet import LeNet
from ssl_lightning.backbones.mlp import MLP
from ssl_lightning.backbones.resnet_cifar import BasicBlock, PadShortcut, ResNetCIFAR
from ssl_lightning.backbones.response_norm import ChannelResponseNorm
from ssl_lightning.backbones.stored import admit, admit_own, class_path, create_stored, storable
from ssl_lightning.backbones.table import (
    BACKBONES,
    create_backbone,
    list_backbones,
    register_backbone,
)

__all__ = [
    "BACKBONES",
    "MLP",
    "AlexNet",
    "BasicBlock",
    "ChannelResponseNorm",
    "ConvNet",
    "LeNet",
    "PadShortcut",
    "ResNetCIFAR",
    "SpatialResponseNorm",
    "admit",
    "admit_own",
    "class_path",
    "create_backbone",
    "create_stored",
    "list_backbones",
    "register_backbone",
    "storable",
]
