"""The table of backbones and the one function that creates them."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from ssl_lightning.backbones import external
from ssl_lightning.backbones.alexnet import AlexNet
from ssl_lightning.backbones.convnet import ConvNet
from ssl_lightning.backbones.lenet import LeNet
from ssl_lightning.backbones.mlp import MLP
from ssl_lightning.backbones.resnet_cifar import ResNetCIFAR
from ssl_lightning.backbones.unet import UNet

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "alexnet": AlexNet,
    "convnet": ConvNet,
    "lenet": LeNet,
    "mlp": MLP,
    "resnet20": partial(ResNetCIFAR, depth=20),
    "resnet32": partial(ResNetCIFAR, depth=32),
    "resnet44": partial(ResNetCIFAR, depth=44),
    "resnet56": partial(ResNetCIFAR, depth=56),
    "resnet110": partial(ResNetCIFAR, depth=110),
    "unet": UNet,
}


def list_backbones() -> list[str]:
    """Return the names of the own backbones; ``timm:<name>``, ``torchvision:<name>`` work too.

    Example:
        >>> "resnet20" in list_backbones()
        True
    """
    return sorted(BACKBONES)


def create_backbone(name: str, **kwargs: Any) -> nn.Module:
    """Create a network by name, ready to be trained.

    Args:
        name: an entry of :func:`list_backbones`, ``timm:<name>`` or ``torchvision:<name>``.
        **kwargs: arguments of that backbone, such as ``num_classes``.

    Returns:
        A plain module with the attributes ``input_shape`` (C, H, W) and ``num_classes``. Models
        of timm and torchvision are untrained unless ``pretrained=True`` or ``weights=...``.

    Raises:
        ValueError: if the name is unknown or the backbone does not take an argument.

    Example:
        >>> net = create_backbone("lenet", num_classes=7)
        >>> net.fc2.out_features, net.input_shape
        (7, (1, 28, 28))
    """
    source, colon, model = name.partition(":")
    if colon and source == "timm":
        if not external.has_timm(model):
            raise _unknown(name, {f"timm:{known}": 1 for known in external.timm_names()})
        return external.create_timm(model, **kwargs)
    if colon and source == "torchvision":
        known = external.torchvision_names()
        if model not in known:
            raise _unknown(name, {f"torchvision:{known}": 1 for known in known})
        return external.create_torchvision(model, **kwargs)
    if colon and source == "zoo":
        raise ValueError(
            f"`{name}` is an entry of the zoo, a compact network and no backbone. Load it with "
            f"`zoo.load({model!r})`, or give `{name}` to SSLLightningModule."
        )
    if name not in BACKBONES:
        raise _unknown(name, BACKBONES)
    _check_arguments(name, BACKBONES[name], kwargs)
    return BACKBONES[name](**kwargs)


def _unknown(name: str, known: Mapping[str, Any]) -> ValueError:
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name):
        return ValueError(
            f"Unknown backbone `{name}`: expected a name such as `lenet` or `timm:<name>`. A class "
            f"of your own is given as `{{class_path: {name}}}`, in Python as the network itself."
        )
    near = difflib.get_close_matches(name, list(known), n=5, cutoff=0.5)
    hint = f"Did you mean {', '.join(near)}?" if near else "No name is similar."
    return ValueError(
        f"Unknown backbone `{name}`. {hint} Choose one of {', '.join(list_backbones())}, "
        "or timm:<name> or torchvision:<name>."
    )


def _check_arguments(name: str, factory: Callable[..., nn.Module], given: dict[str, Any]) -> None:
    """Raise if an argument is unknown, or fixed by the entry itself (as the depth of resnet20)."""
    fixed = factory.keywords if isinstance(factory, partial) else {}
    accepted = [p for p in inspect.signature(factory).parameters if p not in fixed]
    wrong = [argument for argument in given if argument not in accepted]
    if wrong:
        raise ValueError(
            f"Backbone `{name}` has no argument `{wrong[0]}`. It accepts: {', '.join(accepted)}."
        )
