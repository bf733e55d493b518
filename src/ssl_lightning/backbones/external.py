"""Backbones of timm and torchvision, imported only when one is asked for."""

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

# Auxiliary classifiers give tuples in training; without them the loss is the ordinary one.
TORCHVISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
TORCHVISION_SIZES = {"inception_v3": 299}
UNEXPECTED = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword.*'(\w+)'")


def timm_names() -> list[str]:
    """Return the names that ``timm:<name>`` accepts (without the tags of pretrained weights)."""
    import timm

    return list(timm.list_models())


def torchvision_names() -> list[str]:
    """Return the names that ``torchvision:<name>`` accepts: its classifiers."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def has_timm(name: str) -> bool:
    """Tell whether timm knows the model; a pretrained tag (``.a1_in1k``) may follow the name."""
    import timm

    return bool(timm.is_model(name))


def timm_builder(name: str) -> tuple[Callable[..., Any] | None, list[Callable[..., Any]]]:
    """Return what builds a model of timm, and the functions around it that look for weights."""
    import timm
    from timm.models import _builder

    around: list[Callable[..., Any]] = [timm.create_model, _builder.build_model_with_cfg]
    known = has_timm(name)
    return (timm.models.model_entrypoint(name.partition(".")[0]) if known else None), around


def torchvision_builder(name: str) -> tuple[Callable[..., Any] | None, list[Callable[..., Any]]]:
    """Return what builds a classifier of torchvision; it looks for weights itself."""
    import torchvision

    known = name in torchvision_names()
    return (inspect.unwrap(torchvision.models.get_model_builder(name)) if known else None), []


def create_timm(name: str, **kwargs: Any) -> nn.Module:
    """Create a timm model (untrained unless ``pretrained=True``) and give it ``input_shape``."""
    import timm

    entrypoint = timm.models.model_entrypoint(name.partition(".")[0])
    model: nn.Module = _call(f"timm:{name}", entrypoint, lambda: timm.create_model(name, **kwargs))
    channels, height, width = model.__dict__["pretrained_cfg"]["input_size"]
    height, width = _pair(kwargs.get("img_size", (height, width)))
    _annotate(model, (kwargs.get("in_chans", channels), height, width))
    return model


def create_torchvision(name: str, **kwargs: Any) -> nn.Module:
    """Create a torchvision classifier (untrained unless ``weights`` is given)."""
    import torchvision

    defaults = {} if kwargs.get("weights") else TORCHVISION_DEFAULTS.get(name, {})
    kwargs = {"weights": None, **defaults, **kwargs}
    builder = torchvision.models.get_model_builder(name)
    model: nn.Module = _call(f"torchvision:{name}", builder, lambda: builder(**kwargs))
    height, width = _pair(kwargs.get("image_size", TORCHVISION_SIZES.get(name, 224)))
    _annotate(model, (3, height, width), kwargs.get("num_classes", 1000))
    return model


def _call(name: str, builder: Callable[..., Any], create: Callable[[], Any]) -> Any:
    """Call ``create``; turn an unexpected keyword into a ValueError with the accepted ones."""
    try:
        return create()
    except TypeError as error:
        found = UNEXPECTED.search(str(error))
        if found is None:
            raise
        owner, argument = found.groups()
        function = getattr(sys.modules[builder.__module__], owner, builder)
        accepted = [p for p in inspect.signature(function).parameters if p != "kwargs"]
        raise ValueError(
            f"Backbone `{name}` has no argument `{argument}`. It accepts: {', '.join(accepted)}."
        ) from error


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of a size given as one number or two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def _annotate(
    model: nn.Module, input_shape: tuple[int, int, int], num_classes: int | None = None
) -> None:
    """Set ``input_shape`` (and ``num_classes`` if given) as plain attributes."""
    model.__dict__["input_shape"] = input_shape
    if num_classes is not None:
        model.__dict__["num_classes"] = num_classes
