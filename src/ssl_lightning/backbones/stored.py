"""Building the network that a file names: the one place where stored arguments are admitted.

Cards, plans, checkpoints and compact folders say of which backbone they are, and with which
arguments. Those files may come from anywhere, and the builders of timm and torchvision have
arguments that open files, ask hosts or unpickle. So a stored argument is admitted for what it is,
and all others are refused, whatever they are called and whichever version is installed:

* it is a parameter of a network: of a class or a helper in the builder's own module, and not of the
  functions around it that look for weights;
* its value is None, a bool, a number, or a short list of numbers; a text only where the parameter
  is a choice of the architecture, and it is one of :data:`CHOICES`.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from ssl_lightning.backbones import external
from ssl_lightning.backbones.table import BACKBONES, create_backbone
from ssl_lightning.suggest import shortened

ACTIVATIONS = frozenset(
    "celu elu gelu gelu_tanh hard_mish hard_sigmoid hard_swish hardsigmoid hardswish leaky_relu "
    "mish prelu quick_gelu relu relu6 selu sigmoid silu swish tanh".split()
)
NORMS = frozenset(
    "batchnorm batchnorm1d batchnorm2d batchnormact2d bn frozenbatchnorm2d groupnorm groupnorm1 "
    "layernorm layernorm2d rmsnorm rmsnorm2d simplenorm simplenorm2d".split()
)
POOLINGS = frozenset("avg avgmax catavgmax fast fastavg map max none token".split()) | {""}
CHOICES: dict[str, frozenset[str]] = {
    "act_layer": ACTIVATIONS,
    "norm_layer": NORMS,
    "global_pool": POOLINGS,
    "attn_layer": frozenset("bam cbam eca ecam ese gca gcb ge se".split()),
    "stem_type": frozenset(("", "deep", "deep_tiered")),
    "padding": frozenset(("", "same", "valid")),
    "pad_type": frozenset(("", "same", "valid")),
    "class_token": frozenset(("cls",)),
    "pos_embed": frozenset("learn none rope".split()) | {""},
}
"""Parameter of a network of timm or torchvision -> texts that are choices of its architecture."""

WEIGHTS_FROM: dict[str, Any] = {
    "pretrained": False,
    "weights": None,
    "checkpoint_path": "",
    "cache_dir": None,
    "progress": False,
}
"""Argument that says where weights come from, and nothing of the architecture -> none of them."""
SOURCES = ("timm", "torchvision")
LARGEST = 2**20
LONGEST, DEEPEST = 256, 3
WORD = re.compile(r"[A-Za-z0-9_]{0,40}")
MODEL_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def create_stored(name: Any, arguments: Any, where: str) -> nn.Module:
    """Create the backbone that a file names, with fresh weights: nothing is opened or asked for.

    Args:
        name: of the backbone, as the file says.
        arguments: of that backbone, as the file says.
        where: the file, for messages.

    Raises:
        ValueError: if the name is no backbone's, an argument is not admitted, or the backbone
            cannot be built with them.

    Example:
        >>> create_stored("lenet", {"num_classes": 7}, "plan.json").num_classes
        7
        >>> create_stored("timm:resnet18", {"checkpoint_path": "x.pth"}, "plan.json")
        Traceback (most recent call last):
        ...
        ValueError: plan.json: the argument 'checkpoint_path' of 'timm:resnet18' is not one of the
        network's own (it would name where weights come from), so it is not taken from a file...
    """
    admitted = admit(name, arguments, where)
    try:
        return create_backbone(name, **admitted, **untrained(name))
    except Exception as error:  # the arguments are a file's, so whatever they break is its fault
        raise ValueError(
            f"{where}: cannot build {shortened(name)} with the stored arguments "
            f"{shortened(admitted)}: {type(error).__name__}: {shortened(str(error), 200)}"
        ) from error


def untrained(name: str) -> dict[str, Any]:
    """Return arguments that let a network look for no weights; timm's and torchvision's need none.

    Example:
        >>> untrained("lenet"), untrained("timm:resnet18")
        ({}, {})
    """
    known = inspect.signature(BACKBONES[name]).parameters if name in BACKBONES else {}
    return {key: value for key, value in WEIGHTS_FROM.items() if key in known}


def admit(name: Any, arguments: Any, where: str) -> dict[str, Any]:
    """Return the arguments of a file that a backbone may be built with; refuse all others.

    ``pretrained`` is not among them: the file has weights of its own.

    Raises:
        ValueError: naming the first that is refused.
    """
    known = network_parameters(name, where)
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"{where}: expected the arguments of {shortened(name)} as a mapping, got "
            f"{shortened(arguments)}."
        )
    own = name in BACKBONES
    dropped = untrained(name) if own else {"pretrained": False}
    admitted = {key: value for key, value in arguments.items() if key not in dropped}
    for key, value in admitted.items():
        if known is not None and key not in known:
            raise ValueError(
                f"{where}: the argument {shortened(key)} of {shortened(name)} is not one of the "
                "network's own (it would name where weights come from), so it is not taken from a "
                f"file. Create the network yourself: create_backbone({shortened(name)}, ...)."
            )
        if not (is_plain(value) or is_choice(key, value, own)):
            raise ValueError(
                f"{where}: the argument {shortened(key)} of {shortened(name)} is "
                f"{shortened(value)}; expected None, a bool, a number up to {LARGEST:,}, a short "
                "list of numbers, or a choice of the architecture such as 'relu'. Nothing else is "
                "taken from a file."
            )
    return admitted


def admit_own(made: type[nn.Module], arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the arguments of a file that a class which the caller gave may be called with.

    Raises:
        ValueError: naming the first that is no argument of the class, or neither its default, nor
            a plain value or a word.

    Example:
        >>> admit_own(nn.Dropout, {"p": 0.1, "inplace": False}, "plan.json")
        {'p': 0.1, 'inplace': False}
    """
    known = inspect.signature(made).parameters
    for key, value in arguments.items():
        if key in known and (is_plain(value) or is_choice(key, value, own=True)):
            continue
        if key in known and value == known[key].default:
            continue
        raise ValueError(
            f"{where}: the argument {shortened(key)} of {made.__name__} is {shortened(value)}; of "
            "a file, numbers, lists of numbers and single words are taken, for arguments that the "
            "class has. Give the network itself (`model=`, or `--config` with the config that it "
            "was trained with)."
        )
    return dict(arguments)


def class_path(network: nn.Module) -> str:
    """Return the import path of a network's class: a name to be read, which is never imported.

    Example:
        >>> class_path(nn.Dropout())
        'torch.nn.modules.dropout.Dropout'
    """
    made = type(network)
    return f"{made.__module__}.{made.__qualname__}".replace("<locals>.", "")


def storable(name: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a user's arguments without those that only say where weights come from.

    The weights themselves are stored beside them. What a network of torchvision becomes with
    ``weights`` is said by arguments of its own.

    Example:
        >>> storable("timm:resnet18", {"pretrained": True, "num_classes": 10})
        {'num_classes': 10}
        >>> storable("torchvision:googlenet", {"weights": "DEFAULT"})
        {'transform_input': True, 'aux_logits': True}
    """
    source, _, model = str(name).partition(":")
    named = source in SOURCES or name in BACKBONES  # of a class of the user's own nothing is known
    rest = {k: v for k, v in arguments.items() if not (named and k in WEIGHTS_FROM)}
    with_weights = source == "torchvision" and arguments.get("weights")
    if with_weights and model in external.TORCHVISION_DEFAULTS:
        return {"transform_input": True, "aux_logits": True, **rest}
    return rest


def network_parameters(name: Any, where: str) -> frozenset[str] | None:
    """Return the parameters of a network, without those of what looks for its weights.

    None for those in the table, whose arguments are checked when they are created.

    Raises:
        ValueError: if the name is no backbone's.
    """
    source, colon, model = name.partition(":") if isinstance(name, str) else ("", "", "")
    if isinstance(name, str) and name in BACKBONES:
        return None
    if not colon or source not in SOURCES or not MODEL_NAME.fullmatch(model):
        raise ValueError(
            f"{where}: {shortened(name)} is not the name of a backbone: expected one of "
            f"{', '.join(sorted(BACKBONES))}, timm:<name> or torchvision:<name>. One of your own "
            "is known once `register_backbone` was called: on the command line `--import` names "
            "the module that does."
        )
    builder, around = (
        external.timm_builder(model) if source == "timm" else external.torchvision_builder(model)
    )
    if builder is None:
        raise ValueError(f"{where}: {source} has no network of the name {shortened(model)}.")
    module = vars(sys.modules[builder.__module__])
    makers = [made for made in module.values() if makes_network(made, builder.__module__)]
    return frozenset(parameters(makers)) - frozenset(parameters([*around, builder]))


def makes_network(made: Any, module: str) -> bool:
    """Whether something in a module is a network, or a helper that makes one."""
    if getattr(made, "__module__", None) != module:
        return False
    return inspect.isfunction(made) or (isinstance(made, type) and issubclass(made, nn.Module))


def parameters(functions: Iterable[Callable[..., Any]]) -> set[str]:
    """Return the names of all parameters of functions and classes, but of ``**kwargs``."""
    return {
        parameter.name
        for function in functions
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is None, a bool, a number of a sane size, or a short list of such.

    Example:
        >>> is_plain([3, [4, 0.5]]), is_plain(float("nan")), is_plain("a.pth"), is_plain({})
        (True, False, False, False)
    """
    if isinstance(value, (list, tuple)):
        return (
            depth < DEEPEST and len(value) <= LONGEST and all(is_plain(v, depth + 1) for v in value)
        )
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and abs(value) <= LARGEST)


def is_choice(key: Any, value: Any, own: bool) -> bool:
    """Whether a text is a choice of the architecture: of the library's own networks any word."""
    if not isinstance(value, str):
        return False
    return bool(WORD.fullmatch(value)) if own else value in CHOICES.get(key, ())
