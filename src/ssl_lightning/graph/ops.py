"""A traced run of a model, as data: operations that read named values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssl_lightning.backbones import PadShortcut


class LeafOperation(nn.Module):
    """Base of modules that are one operation in a trace; its kind is the class's name.

    Attributes:
        reads_input: whether the operation is said to read its input, or only its parameters.
        channel_dim: dimension of the result that numbers its channels.
    """

    reads_input: bool = True
    channel_dim: int = 1


class LayerWrapper(nn.Module):
    """Base of modules that replace a layer and hold the part of it that remains as ``layer``."""


def layer_names(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, str]:
    """Return name in the original network -> name of the module, of all layers of some types.

    They differ where a :class:`LayerWrapper` stands around the layer.
    """
    modules = dict(model.named_modules())
    names = {}
    for name, module in modules.items():
        if isinstance(module, kinds):
            outer = name.rpartition(".")[0]
            names[outer if isinstance(modules.get(outer), LayerWrapper) else name] = name
    return names


LEAF_MODULES: tuple[type[nn.Module], ...] = (nn.LocalResponseNorm, PadShortcut, LeafOperation)
"""Modules that are one operation in a trace: what they do is simpler than how they do it."""


class LayerCall:
    """One call of a layer of a registered type, as a function of its input and its own tensors.

    Attributes:
        layer: the module.
        names: those of its parameters and buffers that are the arguments from the second on.
    """

    def __init__(self, layer: nn.Module, names: tuple[str, ...]) -> None:
        self.layer = layer
        self.names = names

    def __call__(self, x: Tensor, *tensors: Tensor) -> Any:
        """Run the layer with these tensors instead of its own."""
        return functional_call(self.layer, dict(zip(self.names, tensors, strict=True)), (x,))


@dataclass(frozen=True)
class Ref:
    """The value of that name: an operation's result, an input or a parameter."""

    name: str


@dataclass
class Op:
    """One operation: ``target(*args, **kwargs)``, where a :class:`Ref` stands for a value.

    ``module`` is the qualified name of the innermost module that ran it and ``call`` identifies
    this call of it; ``kind`` is the operation's short name (``"conv2d"``, ``"add"``,
    ``"LocalResponseNorm"``), ``shape`` the shape of its result (a list of shapes if it returns
    several tensors, None if it returns none). ``outside`` marks a layer's operation that another
    module called as a function.
    """

    name: str
    kind: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: str
    call: str
    shape: Any
    outside: bool = False

    def inputs(self) -> list[str]:
        """Names of all values read, in the order of the arguments."""
        return [ref.name for ref in refs((self.args, self.kwargs))]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument that may have been given by position, by name, or not at all."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def written(self) -> list[str]:
        """Return the names of the values that the operation writes into, by its schema."""
        schema = getattr(self.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            return []
        names = []
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                names += [ref.name for ref in refs(self.argument(position, argument.name))]
        return names

    def run(self, values: Mapping[str, Any]) -> Any:
        """Execute the operation itself on ``values`` (tensors, or lists of tensors).

        Masks and labels may be expanded where the real values were not, so a view is a reshape.
        """
        function = torch.ops.aten.reshape.default if self.kind == "view" else self.target
        return function(*substitute(self.args, values), **substitute(self.kwargs, values))


@dataclass
class Trace:
    """The operations of one run of a model, in order.

    Attributes:
        ops: the operations.
        inputs: example value of each tensor that the user passes.
        tensors: every parameter, buffer and constant that is read: value name -> tensor.
        names: value name -> qualified name in the model, for parameters and buffers. A tensor
            with several names has the one that ``named_parameters`` gives it, the first.
        outputs: names of the values that the model returns.
    """

    ops: list[Op]
    inputs: dict[str, Tensor]
    tensors: dict[str, Tensor]
    names: dict[str, str]
    outputs: list[str]
    users: dict[str, list[Op]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for op in self.ops:
            for name in dict.fromkeys(op.inputs()):
                self.users.setdefault(name, []).append(op)

    def owner(self, op: Op, position: int) -> str | None:
        """Qualified name of the parameter at an operation's positional argument, if it is one."""
        value = op.args[position] if len(op.args) > position else None
        return self.names.get(value.name) if isinstance(value, Ref) else None


def refs(value: Any) -> Iterator[Ref]:
    """Yield every :class:`Ref` in nested tuples, lists and dicts."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from refs(item)
    elif isinstance(value, dict):
        yield from refs(list(value.values()))


def substitute(value: Any, values: Mapping[str, Any]) -> Any:
    """Return the nested arguments with each :class:`Ref` replaced by its value."""
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, (tuple, list)):
        return type(value)(substitute(item, values) for item in value)
    if isinstance(value, dict):
        return {key: substitute(item, values) for key, item in value.items()}
    return value


def rename(value: Any, latest: Mapping[str, str]) -> Any:
    """Return nested arguments with each :class:`Ref` renamed as ``latest`` says."""
    table = {ref.name: Ref(latest.get(ref.name, ref.name)) for ref in refs(value)}
    return substitute(value, table)


def has_hooks(module: nn.Module) -> bool:
    """Whether the module's result may differ from what its ``forward`` returns."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
