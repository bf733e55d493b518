"""Pooling and resizing: each channel alone, all its positions together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value
from ssl_lightning.graph.labels import spread
from ssl_lightning.graph.operations.owned import as_tuple
from ssl_lightning.graph.ops import Op
from ssl_lightning.graph.rule import Rule, as_alive, first, rows, spatial_dims


def pool_support(op: Op, alive: Mapping[str, Value]) -> Tensor:
    """Zero in a channel whose input is zero everywhere (pooling, interpolation)."""
    x: Tensor = alive[first(op)]
    mask = x.flatten(start_dim=-spatial_dims(op)).amax(-1)
    shape = op.shape[0] if isinstance(op.shape, list) else op.shape
    return mask.view(*mask.shape, *[1] * spatial_dims(op)).expand(shape)


def pool_labels(op: Op, flow: Flow) -> Tensor:
    """All positions of a channel are removed together; the batch is no slice."""
    labels = flow.slices[first(op)]
    dim = labels.dim() - spatial_dims(op) - 1
    return spread(flow.labels.per_index(labels, dim), op.shape, dim)


def pool_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """A needed element of a channel may depend on the whole channel (also the one not largest)."""
    mask = needed.flatten(start_dim=-spatial_dims(op)).amax(-1)
    shape = flow.alive[first(op)].shape
    return {first(op): mask.view(*mask.shape, *[1] * spatial_dims(op)).expand(shape)}


def pool_varies(op: Op, flow: Flow) -> Tensor:
    """A mean over a window that reaches over the border is another one there."""
    x = first(op)
    outside = op.kind.startswith("avg_pool") and (
        any(as_tuple(op.argument(3, "padding", 0))) or bool(op.argument(4, "ceil_mode", False))
    )
    return pool_support(op, {x: (flow.alive if outside else flow.varies)[x]})


def indices_support(op: Op, alive: Mapping[str, Value]) -> list[Tensor]:
    """Pooling, and the indices of what it found: these can be anything."""
    return [pool_support(op, alive), torch.ones(op.shape[1])]


def indices_labels(op: Op, flow: Flow) -> Value:
    """What pooling found, and where: both have its input's channels."""
    labels = flow.slices[first(op)]
    dim = labels.dim() - spatial_dims(op) - 1
    channels = flow.labels.per_index(labels, dim)
    return [spread(channels, shape, dim) for shape in op.shape]


def indices_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """What pooling found, and where, may both depend on the whole channel."""
    return pool_needs(op, flow, torch.maximum(needed[0], needed[1]))


def unpool_labels(op: Op, flow: Flow) -> Tensor:
    """The values and the indices of a channel are removed together."""
    labels, indices = (flow.slices[name] for name in op.inputs())
    flow.labels.union(labels, indices)
    return pool_labels(op, flow)


def unpool_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """An index is needed where its value can be non-zero."""
    x, indices = op.inputs()
    found = pool_needs(op, flow, needed)
    dims = tuple(range(-spatial_dims(op), 0))
    any_of_channel = flow.alive[x].amax(dims, keepdim=True).expand_as(flow.alive[x])
    return {**found, indices: found[x] * any_of_channel}


POOL = Rule(pool_support, pool_labels, pool_needs, pool_varies, operands="first")
WITH_INDICES = Rule(
    indices_support, indices_labels, indices_needs, as_alive, constants=False, results="any"
)
UNPOOL = Rule(pool_support, unpool_labels, unpool_needs, as_alive, constants=False)

TABLE = {
    **dict(
        rows(
            POOL,
            "max_pool1d max_pool2d max_pool3d",
            "avg_pool1d avg_pool2d avg_pool3d",
            "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
            "upsample_nearest1d upsample_nearest2d upsample_nearest3d",
            "upsample_bilinear2d upsample_bicubic2d",
        )
    ),
    **dict(
        rows(
            WITH_INDICES,
            "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices",
            "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
        )
    ),
    **dict(rows(UNPOOL, "max_unpool2d max_unpool3d")),
}
