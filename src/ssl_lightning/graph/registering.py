"""Rules and layer types of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ssl_lightning.graph.layers import BUILT_IN, OWN_LAYERS, LayerType, class_name
from ssl_lightning.graph.operations import REGISTERED, RULES
from ssl_lightning.graph.operations.own import own_layer_rule
from ssl_lightning.graph.ops import LEAF_MODULES
from ssl_lightning.graph.rule import Rule
from ssl_lightning.graph.trace import short_name
from ssl_lightning.registry import Registration, register
from ssl_lightning.suggest import pick


def register_rule(operation: Any, rule: Rule | str, *, replace: bool = False) -> Registration:
    """Say what an operation of your own does to zeros and slices, for all networks from now on.

    Channels are then removed through it, where they were retained before. :func:`make_plan`
    compares both networks in float64, so that a wrong rule is refused instead of giving a wrong
    network.

    Args:
        operation: a ``torch.library.custom_op``, or the name of an operation (``"mylib::shift"``,
            for torch's own ``"cumsum"``), or a type of module without parameters that counts as one
            operation from now on. Layers with parameters: :func:`register_shrinker`.
        rule: a :class:`Rule`, or the name of a built-in operation that does the same and has the
            same arguments, such as ``"relu"`` or ``"add"``.
        replace: whether there may be another rule already.

    Returns:
        An object whose ``undo()`` takes the rule back; also a context manager.

    Raises:
        ValueError: for an unknown operation, and one that has another rule, unless ``replace``.

    Example:
        >>> from ssl_lightning import Rule, make_plan, register_rule
        >>> class Sway(nn.Module):
        ...     def forward(self, x):
        ...         return x * torch.special.erfc(x)
        >>> net = nn.Sequential(nn.Linear(4, 8), Sway(), nn.Linear(8, 2))
        >>> _ = net[0].weight.data[:3].zero_(), net[0].bias.data[:3].zero_()
        >>> len(make_plan(net, torch.zeros(1, 4)).modules["0"].outputs)
        8
        >>> with register_rule(Sway, Rule.pointwise()):
        ...     len(make_plan(net, torch.zeros(1, 4)).modules["0"].outputs)
        5
    """
    name = operation_name(operation)
    if not isinstance(rule, (Rule, str)):
        raise ValueError(
            "register_rule: expected a Rule, such as Rule.pointwise(), or the name of an operation "
            f"that does the same, such as 'relu', got {rule!r}."
        )
    rule = rule if isinstance(rule, Rule) else pick("operation", rule, RULES)
    if isinstance(operation, type):
        return register_layer(operation, None, rule, replace, "register_rule")
    rows = (RULES, name, rule), (REGISTERED, name, rule)
    return register("register_rule", name, *rows, replace=replace)


def register_shrinker(
    layer_type: type[nn.Module],
    outputs: Mapping[str, int],
    inputs: Mapping[str, int] | None = None,
    counts: Mapping[str, str] | None = None,
    *,
    channel_dim: int = 1,
    written: Sequence[str] | None = None,
    replace: bool = False,
) -> Registration:
    """Let compaction shrink a layer of your own that has parameters, in all networks from now on.

    The layer is a function of one tensor with one result, and holds no other modules. An output
    must depend on an input only where a parameter with a dimension for both is not zero there;
    without ``inputs``, each output on the input of the same number. Subclasses are not covered.

    Args:
        layer_type: the class.
        outputs: parameter or buffer -> its dimension that numbers the output channels.
        inputs: parameter or buffer -> its dimension that numbers the input channels; none for a
            layer that treats each channel alone, such as a scale.
        counts: attribute that holds a number of channels -> ``"inputs"`` or ``"outputs"``.
        channel_dim: dimension of the layer's input and result that numbers the channels.
        written: the tensors that groups of kind ``coupled`` zero to make an output zero; None for
            all parameters in ``outputs``.
        replace: whether the type may mean something else already.

    Returns and raises as :func:`register_rule`; a wrong description is refused as a wrong rule is.

    Example:
        >>> from ssl_lightning import compact, make_plan, register_shrinker
        >>> class Scale(nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.channels, self.factor = channels, nn.Parameter(torch.rand(channels))
        ...     def forward(self, x):
        ...         return torch.special.erf(x * self.factor)
        >>> net = nn.Sequential(nn.Linear(4, 8), Scale(8), nn.Linear(8, 2))
        >>> _ = net[0].weight.data[:3].zero_(), net[0].bias.data[:3].zero_()
        >>> with register_shrinker(Scale, {"factor": 0}, counts={"channels": "outputs"}):
        ...     compact(net, make_plan(net, torch.zeros(1, 4)))[1].channels
        5
    """
    for given in (outputs, inputs or {}):
        if not isinstance(given, Mapping) or not all(type(d) is int for d in given.values()):
            raise ValueError(
                "register_shrinker: expected a mapping of names to whole numbers, such as "
                f"{{'weight': 0}}, as `outputs` and `inputs`, got {given!r}."
            )
    some = None if written is None else tuple(written)
    kind = LayerType(dict(outputs), dict(inputs or {}), dict(counts or {}), channel_dim, some)
    return register_layer(layer_type, kind, own_layer_rule(kind), replace, "register_shrinker")


def register_layer(
    layer_type: type, kind: LayerType | None, rule: Rule, replace: bool, where: str
) -> Registration:
    """Register a type of module as one operation."""
    if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
        raise ValueError(f"{where}: expected a subclass of torch.nn.Module, got {layer_type!r}.")
    name = class_name(layer_type)
    built_in = layer_type in BUILT_IN or issubclass(layer_type, LEAF_MODULES)
    if built_in and layer_type not in OWN_LAYERS and not replace:
        raise ValueError(
            f"{where}: `{name}` is a layer that this library knows already. Leave it as it is, or "
            "give `replace=True`."
        )
    rows = (RULES, name, rule), (REGISTERED, name, rule), (OWN_LAYERS, layer_type, kind)
    return register(where, name, *rows, replace=replace)


def operation_name(operation: Any) -> str:
    """Return the short name that an operation has in a trace.

    Example:
        >>> operation_name("relu"), operation_name(torch.ops.aten.add.Tensor)
        ('relu', 'add')
    """
    if isinstance(operation, type):
        return class_name(operation)
    if isinstance(operation, str):
        if "::" in operation or operation in RULES or hasattr(torch.ops.aten, operation):
            return operation.removeprefix("aten::")
    elif name := getattr(operation, "_qualname", None):
        return str(name)
    elif isinstance(operation, torch._ops.OpOverloadPacket):
        return short_name(getattr(operation, operation.overloads()[0]))
    elif hasattr(operation, "overloadpacket"):
        return short_name(operation)
    raise ValueError(
        "register_rule: expected a torch.library.custom_op, the name of one ('mylib::shift') or of "
        f"an operation of torch, or a type of module, got {operation!r}."
    )
