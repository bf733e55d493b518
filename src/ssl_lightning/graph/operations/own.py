"""Modules that are one operation: some of this library, and layers of registered types."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value, binary
from ssl_lightning.graph.labels import spread
from ssl_lightning.graph.layers import LayerType
from ssl_lightning.graph.operations.owned import known_outputs
from ssl_lightning.graph.ops import LayerCall, Op
from ssl_lightning.graph.rule import Rule, any_in, first, fix_all, leaf, never, nothing, rows


def shortcut_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero where the source channel of a padded shortcut is, or where it has none."""
    module = leaf(op)
    mask: Tensor = alive[first(op)][:, :, :: module.stride, :: module.stride]
    mask = F.pad(mask, (0, 0, 0, 0, 0, 1))
    return mask.index_select(1, torch.tensor([s % mask.shape[1] for s in module.source]))


def shortcut_labels(op: Op, flow: Flow) -> Tensor:
    """Input and output channels of the padded shortcut are free: its source map is rewritten."""
    inputs = flow.labels.per_index(flow.slices[first(op)], 1)
    outputs = known_outputs(op, flow, op.shape[1])
    flow.add_site(op, inputs, outputs)
    return spread(outputs, op.shape, 1)


def constant_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero but for the bias, the only thing a layer without weights reads."""
    dim = leaf(op).channel_dim % len(op.shape)
    view = [-1 if d == dim else 1 for d in range(len(op.shape))]
    bias = alive[first(op)] if op.inputs() else torch.zeros(op.shape[dim])
    return bias.view(view).expand(op.shape)


def constant_labels(op: Op, flow: Flow) -> Tensor:
    """A layer without weights reads nothing; its outputs are free."""
    dim = leaf(op).channel_dim % len(op.shape)
    outputs = known_outputs(op, flow, op.shape[dim])
    flow.add_site(op, torch.zeros(0, dtype=torch.long), outputs, dim=dim)
    return spread(outputs, op.shape, dim)


TABLE = {
    "PadShortcut": Rule(shortcut_support, shortcut_labels, constants=False),
    **dict(rows(Rule(constant_support, constant_labels, nothing, never), "ZeroConv ZeroLinear")),
}


# --- layers of registered types: what their description says -------------------------------------


def own_layer_rule(kind: LayerType) -> Rule:
    """Return the rule of the layers of a registered type."""
    return Rule(
        partial(layer_support, kind=kind),
        partial(layer_labels, kind=kind),
        partial(layer_needs, kind=kind),
        partial(layer_varies, kind=kind),
        constants=not kind.inputs,
        in_place=False,
    )


def call_of(op: Op) -> LayerCall:
    """Return the layer's call."""
    assert isinstance(op.target, LayerCall), f"{op.kind} is no layer that could be merged"
    return op.target


def reads(op: Op, alive: Mapping[str, Value], kind: LayerType) -> Tensor:
    """Return where an output reads an input, ``(outputs, inputs)``.

    Where a matrix is not zero; without one, all read all; without inputs, each reads its own.
    """
    call = call_of(op)
    columns, rows = kind.sizes(call.layer)
    tensors = {name: alive[ref.name] for name, ref in zip(call.names, op.args[1:], strict=True)}
    if not kind.inputs:
        return torch.eye(rows)
    found = torch.zeros(rows, columns)
    for name in kind.matrices():
        if name in tensors:
            turned = tensors[name].movedim((kind.outputs[name], kind.inputs[name]), (0, 1))
            found = torch.maximum(found, turned.flatten(2).amax(2) if turned.dim() > 2 else turned)
    return found if kind.matrices() else torch.ones(rows, columns)


def at_zero(op: Op, alive: Mapping[str, Value], kind: LayerType) -> Tensor:
    """Return which outputs are not zero for an input of zeros: the layer is asked.

    Its tensors have random values where they can be non-zero, so that nothing cancels.
    """
    call = call_of(op)
    state = {**dict(call.layer.named_parameters()), **dict(call.layer.named_buffers())}
    generator = torch.Generator().manual_seed(3)
    tensors = []
    for name, ref in zip(call.names, op.args[1:], strict=True):
        mask, own = alive[ref.name], state[name].detach()
        random = mask * (0.5 + torch.rand(mask.shape, generator=generator))
        tensors.append(random.to(own) if own.is_floating_point() else own)
    like = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
    result = call(torch.zeros(alive[first(op)].shape).to(like), *tensors)
    return any_in(binary(result).cpu(), kind.channel_dim)


def layer_support(op: Op, alive: Mapping[str, Value], kind: LayerType) -> Tensor:
    """Zero in outputs that read nothing but zeros, and that are zero for an input of zeros."""
    read = reads(op, alive, kind) @ any_in(alive[first(op)], kind.channel_dim)
    return spread(read + at_zero(op, alive, kind), op.shape, kind.channel_dim)


def layer_labels(op: Op, flow: Flow, kind: LayerType) -> Value:
    """Inputs and outputs are those of the tensors; a layer without inputs has the same of both."""
    dim, module = kind.channel_dim, flow.model.get_submodule(op.module)
    labels = flow.slices[first(op)]
    if kind.sizes(module) != (labels.shape[dim], op.shape[dim]):
        return fix_all(op, flow)
    inputs = flow.labels.per_index(labels, dim)
    outputs = known_outputs(op, flow, op.shape[dim]) if kind.inputs else inputs
    flow.add_site(op, inputs, outputs, dim=dim)
    return spread(outputs, op.shape, dim)


def layer_needs(op: Op, flow: Flow, needed: Value, kind: LayerType) -> dict[str, Value]:
    """Inputs that a needed output reads, all positions of them."""
    wanted = any_in(needed, kind.channel_dim) @ reads(op, flow.alive, kind)
    x = flow.alive[first(op)]
    return {first(op): spread(binary(wanted), x.shape, kind.channel_dim)}


def layer_varies(op: Op, flow: Flow, kind: LayerType) -> Tensor:
    """Outputs that read something that varies."""
    read = reads(op, flow.alive, kind) @ any_in(flow.varies[first(op)], kind.channel_dim)
    return spread(read, op.shape, kind.channel_dim)
