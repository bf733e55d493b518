"""Modules of this library that are one operation: padded shortcuts, layers without weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import spread
from ssl_lightning.graph.operations.owned import known_outputs
from ssl_lightning.graph.ops import Op
from ssl_lightning.graph.rule import Rule, first, leaf, never, nothing, rows


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
