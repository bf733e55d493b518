"""The table of backbones and the one function that creates them."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
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
from ssl_lightning.registry import Registration, check_name, register
from ssl_lightning.suggest import how_known

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "alexnet": AlexNet,
    "convnet": ConvNet,
    "lenet": LeNet,
    "mlp": MLP,
    "resnet14": partial(ResNetCIFAR, depth=14),
    "resnet20": partial(ResNetCIFAR, depth=20),
    "resnet32": partial(ResNetCIFAR, depth=32),
    "resnet44": partial(ResNetCIFAR, depth=44),
    "resnet56": partial(ResNetCIFAR, depth=56),
    "resnet110": partial(ResNetCIFAR, depth=110),
    "unet": UNet,
}
"""Name -> class or function that makes the network: the library's own, and those registered."""
NAME = re.compile(r"[A-Za-z][\w-]*|[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def register_backbone(
    name: str,
    factory: Callable[..., nn.Module],
    *,
    input_shape: Sequence[int] | None = None,
    replace: bool = False,
) -> Registration:
    """Let a name stand for a network of your own wherever a backbone's name does.

    Commands know the name once they import the module that calls this: ``--import my_package``.
    Of the arguments that a file of that name holds, numbers, lists of numbers and single words are
    accepted; ``pretrained``, ``weights`` and ``checkpoint_path`` are not stored, and are ``False``,
    ``None`` and ``""`` when a file is read, since the file has the weights.

    Args:
        name: letters, digits, ``_`` and ``-``; or the import path of a class, such as
            ``my_package.MyNet``: so files of a network given by ``class_path`` are read too.
        factory: class, or function with named arguments, that returns a ``torch.nn.Module``.
        input_shape: of one example, ``(C, H, W)`` for images, if the network has no attribute
            ``input_shape``.
        replace: whether the name may mean something else already.

    Returns:
        What ends it: ``undo()``; also a context manager.

    Raises:
        ValueError: if the name is none or, unless ``replace``, means something else, if
            ``factory`` cannot be called, or ``input_shape`` is not of positive integers.

    Example:
        >>> def tiny(num_classes=10):
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
        >>> with register_backbone("tiny-net", tiny, input_shape=(1, 8, 8)):
        ...     create_backbone("tiny-net", num_classes=3).input_shape
        (1, 8, 8)
    """
    where = "register_backbone"
    check_name(where, name, NAME)
    shape = None if input_shape is None else checked_shape(where, input_shape)
    try:
        inspect.signature(factory)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected a class or function that makes {name!r}, got "
            f"{factory!r}, whose arguments cannot be read. Wrap it in a function."
        ) from error
    row = BACKBONES, name, _checked(name, factory, shape)
    return register(where, name, row, replace=replace)


def checked_shape(where: str, given: Any) -> tuple[int, ...]:
    """Return the shape of one example as a tuple."""
    listed = isinstance(given, (list, tuple)) and len(given) > 0
    if not listed or not all(type(size) is int and size > 0 for size in given):
        raise ValueError(
            f"{where}: expected positive integers such as (3, 32, 32) as `input_shape`, got "
            f"{given!r}. Give the shape of one example, without the batch."
        )
    return tuple(given)


def _checked(
    name: str, factory: Callable[..., nn.Module], input_shape: tuple[int, ...] | None
) -> Callable[..., nn.Module]:
    """Return a factory with the same arguments whose networks are modules and tell their sizes."""

    def create(**arguments: Any) -> nn.Module:
        network = factory(**arguments)
        if not isinstance(network, nn.Module):
            raise ValueError(
                f"Backbone `{name}`: expected its factory to return a torch.nn.Module, got a "
                f"{type(network).__name__}. Return the network."
            )
        sizes = {"input_shape": input_shape, "num_classes": arguments.get("num_classes")}
        for key, value in sizes.items():
            if value is not None and not hasattr(network, key):
                network.__dict__[key] = value
        return network

    create.__wrapped__ = factory  # type: ignore[attr-defined]
    return create


def list_backbones() -> list[str]:
    """Return the names in the table; ``timm:<name>`` and ``torchvision:<name>`` work too.

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
            f"`{name}` names an entry of the zoo: a compact network, and no backbone. Load it with "
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
        f"timm:<name> or torchvision:<name>. {how_known('register_backbone')}"
    )


def _check_arguments(name: str, factory: Callable[..., nn.Module], given: dict[str, Any]) -> None:
    """Raise if an argument is unknown or missing, or fixed by the entry (as resnet20's depth)."""
    factory = inspect.unwrap(factory)
    fixed = factory.keywords if isinstance(factory, partial) else {}
    known = {k: p for k, p in inspect.signature(factory).parameters.items() if k not in fixed}
    kinds = {parameter.kind for parameter in known.values()}
    wrong = [argument for argument in given if argument not in known]
    accepted = f"It accepts: {', '.join(known)}."
    if wrong and (inspect.Parameter.VAR_KEYWORD not in kinds or set(wrong) & set(fixed)):
        raise ValueError(f"Backbone `{name}` has no argument `{wrong[0]}`. {accepted}")
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        raise ValueError(f"Backbone `{name}`: {error}. {accepted}") from error
