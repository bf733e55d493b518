"""Fourth question of a rule: which elements of a result can depend on the network's inputs?

What does not depend on them is constant, and what it is, one run of the network tells. A constant
channel can go although it is not zero: convolutions and linear layers that read it get it as part
of their bias (behind zero padding, as a map that differs at the border).

A constant must be the same at all positions, for a map may have another size next time. So what is
not the same everywhere counts as varying.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.graph.aliases import OVERWRITTEN, written_values
from ssl_lightning.graph.copies import same_random_state
from ssl_lightning.graph.flow import Flow, Value, as_list, binary, filled, like
from ssl_lightning.graph.labels import varies
from ssl_lightning.graph.ops import LEAF_MODULES, Op, Ref, Trace
from ssl_lightning.graph.support import (
    batch_norm,
    by_channel,
    constant_layer,
    convolution,
    first,
    group_norm,
    layer_norm,
    literal,
    ones,
    operands,
    padding,
    reduced_dims,
)

NOT_RUN = "operations that could not be run"
"""Key, beside the values' names, of a list of operations."""

UNIFORM = 1e-9
"""Largest relative difference between positions of a channel that is called constant."""


def real_values(traced: Trace) -> dict[str, Value]:
    """Run the operations on random inputs; return every value.

    An operation that cannot be run alone (it holds a graph of its own, say) gets any value; it
    counts as varying.
    """
    generator = torch.Generator().manual_seed(1)  # not those that the last gate compares with
    values: dict[str, Value] = dict(traced.tensors)
    for name, x in traced.inputs.items():
        random = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        values[name] = random.to(x.dtype) if x.is_floating_point() else x
    with torch.no_grad(), same_random_state():
        for op in traced.ops:
            try:
                values[op.name] = real_value(op, values)
            except Exception:
                values[op.name] = ones(op, {})
                values.setdefault(NOT_RUN, []).append(op.name)
    return values


def real_value(op: Op, values: Mapping[str, Value]) -> Value:
    """Run one operation; what it would write into is copied first."""
    if op.kind == OVERWRITTEN:
        return values[first(op)]  # not its value, which nobody asks for: it counts as varying
    module = getattr(op.target, "__self__", None)
    if not isinstance(module, LEAF_MODULES):
        copies = {name: values[name].clone() for name in written_values(op)}
        return op.run({**values, **copies})
    if getattr(module, "reads_input", True):
        return op.target(values[first(op)])
    return constant_layer(op, values)


def not_zero(value: Value, like_this: Value) -> Value:
    """Return masks of where a value is not zero, 1 where it is no tensor."""
    pairs = zip(as_list(value), as_list(like_this), strict=True)
    found = [binary(v).cpu() if isinstance(v, Tensor) else torch.ones_like(a) for v, a in pairs]
    return like(like_this, found)


# --- one function per kind of rule ---------------------------------------------------------------


def same_elements(op: Op, flow: Flow) -> Value:
    """A function of each element: constant where the element is."""
    return flow.varies[first(op)]


def as_alive(op: Op, flow: Flow) -> Value:
    """Whatever can be non-zero counts as varying."""
    return flow.alive[op.name]


def nothing(op: Op, flow: Flow) -> Value:
    """Nothing varies."""
    return filled(flow.alive[op.name], 0.0)


def product(op: Op, flow: Flow) -> Tensor:
    """A product varies where one factor does and the other can be non-zero."""
    (a, b), (da, db) = operands(op, flow.alive), changes(op, flow)
    return da * b + a * db


def total(op: Op, flow: Flow) -> Tensor:
    """A sum varies where either operand does."""
    a, b = changes(op, flow)
    return a + b


def quotient(op: Op, flow: Flow) -> Tensor:
    """A quotient varies where its numerator does, or is not zero and the denominator varies."""
    (a, b), (da, db) = operands(op, flow.alive), changes(op, flow)
    return da * torch.ones_like(b) + a * db


def changes(op: Op, flow: Flow) -> list[Tensor]:
    """Return where both operands of a binary operation vary; numbers do not."""
    given = op.args[:2]
    return [flow.varies[v.name] if isinstance(v, Ref) else torch.zeros(()) for v in given]


def layer(op: Op, flow: Flow) -> Value:
    """A layer's result varies where it reads something that does with a non-zero weight.

    Behind zero padding, a constant that is not zero gives another result at the border.
    """
    settle_channels(op, flow)
    function = literal if op.kind == "linear" else convolution
    x, weight = first(op), op.args[1].name
    source = flow.alive if is_padded(op) else flow.varies
    read = {**flow.varies, x: source[x], weight: flow.alive[weight]}
    found: Tensor = function(op, read)
    if bool(flow.varies[weight].any()):
        found = found + function(op, {**flow.varies, x: flow.alive[x]})
    return found


def is_padded(op: Op) -> bool:
    """Whether a convolution pads."""
    if not op.kind.startswith("conv"):
        return False
    padding = op.argument(4, "padding", 0)
    return padding not in (0, "valid") and any(as_tuple(padding))


def as_tuple(padding: object) -> tuple[object, ...]:
    """Return sizes, given as a number, a list or the word ``same``, as a tuple."""
    return tuple(padding) if isinstance(padding, (tuple, list)) else (padding,)


def settle_channels(op: Op, flow: Flow) -> None:
    """Call varying what a layer reads unless whole channels of it are constant."""
    x = first(op)
    alive, varies, value = flow.alive[x], flow.varies[x], flow.values[x]
    if not flow.absorbs(op):
        flow.varies[x] = alive
        return
    dim = -1 if op.kind == "linear" else 1
    rows = value.movedim(dim, 0).reshape(value.shape[dim], -1)
    spread = rows.amax(1) - rows.amin(1)
    whole = ~varies.movedim(dim, 0).reshape(rows.shape).any(1)
    uniform = (spread <= UNIFORM * rows.abs().amax(1).clamp_min(1e-300)).cpu() & whole
    if not bool(uniform.all()):
        view = [-1 if d == dim % value.dim() else 1 for d in range(value.dim())]
        flow.varies[x] = torch.where(uniform.view(view), varies, alive)


def normalised(op: Op, flow: Flow) -> Tensor:
    """A batch norm with stored statistics varies where its input does and its scale is not 0."""
    stored = [a.name for a in op.args[1:5] if isinstance(a, Ref)]
    if any(bool(flow.varies[name].any()) for name in stored):
        return torch.ones_like(flow.alive[first(op)])
    scale = op.args[1]
    known = {scale.name: flow.alive[scale.name]} if isinstance(scale, Ref) else {}
    return batch_norm(op, {**flow.varies, **known})


def normalised_together(op: Op, flow: Flow) -> Tensor:
    """A norm over the present statistics varies wherever its scale is not zero."""
    shifts = [a.name for a in op.args if isinstance(a, Ref)][2:]
    still = {name: torch.zeros_like(flow.alive[name]) for name in shifts}
    function = {"layer_norm": layer_norm, "group_norm": group_norm}[op.kind]
    return function(op, {**flow.alive, **still})


def added_up(op: Op, flow: Flow) -> Tensor:
    """A sum over positions varies where a term does; one over channels may lose zeros only."""
    x = first(op)
    if any(varies(flow.slices[x], dim) for dim in reduced_dims(op, flow.slices[x].dim())[0]):
        flow.varies[x] = flow.alive[x]
    found: Tensor = literal(op, flow.varies)
    return found


def pooled(op: Op, flow: Flow) -> Tensor:
    """A mean over a window that reaches over the border is another one there."""
    x = first(op)
    outside = op.kind.startswith("avg_pool") and (
        any(as_tuple(op.argument(3, "padding", 0))) or bool(op.argument(4, "ceil_mode", False))
    )
    return by_channel(op, {x: (flow.alive if outside else flow.varies)[x]})


def padded(op: Op, flow: Flow) -> Tensor:
    """Padding makes the border of a channel that is not zero differ from the rest."""
    if padding(op)[0] != "constant":
        found: Tensor = flow.alive[op.name]
        return found
    return F.pad(flow.alive[first(op)], op.args[1])
