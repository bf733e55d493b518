"""What the values of a trace are for random inputs, to find those that do not depend on them.

A constant channel can be removed although it is not zero: convolutions and linear layers that read
it get it as part of their bias (behind zero padding, as a map that differs at the border).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ssl_lightning.graph.aliases import OVERWRITTEN
from ssl_lightning.graph.copies import same_random_state
from ssl_lightning.graph.flow import Value, as_list, binary, like
from ssl_lightning.graph.operations.own import constant_support
from ssl_lightning.graph.ops import LEAF_MODULES, Op, Trace
from ssl_lightning.graph.rule import first, ones

NOT_RUN = "operations that could not be run"
"""Key, beside the values' names, of a list of operations."""


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
        copies = {name: values[name].clone() for name in op.written()}
        return op.run({**values, **copies})
    if getattr(module, "reads_input", True):
        return op.target(values[first(op)])
    return constant_support(op, values)


def not_zero(value: Value, like_this: Value) -> Value:
    """Return masks of where a value is not zero, 1 where it is no tensor."""
    pairs = zip(as_list(value), as_list(like_this), strict=True)
    found = [binary(v).cpu() if isinstance(v, Tensor) else torch.ones_like(a) for v, a in pairs]
    return like(like_this, found)
