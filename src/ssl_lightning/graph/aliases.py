"""Operations that write in place, and the views that see what they wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ssl_lightning.graph.operations import RULES
from ssl_lightning.graph.ops import LayerCall, Op, Ref, Trace, rename
from ssl_lightning.graph.rule import UNKNOWN

OVERWRITTEN = "overwritten"
"""Kind of the operation that stands for a value changed through another view of its memory."""


def resolve_in_place(traced: Trace) -> Trace:
    """Return the trace in which nothing is written in place any more.

    Later readers of a tensor that an operation changed read that operation's result. Later readers
    of another view of the same memory (``x`` after ``x[:, :2].zero_()``) read the result of an
    operation :data:`OVERWRITTEN`, which no rule knows: it is taken to hold anything.
    """
    memory: dict[str, str] = {}
    latest: dict[str, str] = {}
    shapes = shapes_of(traced)
    ops: list[Op] = []
    for op in traced.ops:
        args, kwargs = rename((op.args, op.kwargs), latest)
        op = replace(op, args=args, kwargs=kwargs)
        ops.append(op)
        written = op.written()
        if written or may_alias(op):
            source = written[0] if written else next(iter(op.inputs()), op.name)
            memory[op.name] = memory.get(source, source)
        for changed in written:
            same = {changed, op.name} | {n for n, now in latest.items() if now == changed}
            latest.update(dict.fromkeys(same - {op.name}, op.name))
            ops += overwritten_views(op, memory, latest, same, shapes)
    outputs = [latest.get(name, name) for name in traced.outputs]
    return Trace(ops, traced.inputs, traced.tensors, traced.names, outputs)


def overwritten_views(
    op: Op, memory: dict[str, str], latest: dict[str, str], same: set[str], shapes: dict[str, Any]
) -> list[Op]:
    """Return one operation for every other view of what ``op`` changed; update ``latest``."""
    root = memory[op.name]
    views = {name for name, base in memory.items() if base == root and name in shapes} | {root}
    added = []
    for name in sorted(views - same):
        current = latest.get(name, name)
        if current in same or current == op.name:
            continue
        new = f"{name}__after__{op.name}"
        args = (Ref(current), Ref(op.name))
        added.append(Op(new, OVERWRITTEN, op.target, args, {}, op.module, op.call, shapes[name]))
        latest[name] = new
        memory[new] = root
    return added


def shapes_of(traced: Trace) -> dict[str, Any]:
    """Return the shape, or list of shapes, of every value."""
    tensors = {**traced.inputs, **traced.tensors}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return {**given, **{op.name: op.shape for op in traced.ops}}


def may_alias(op: Op) -> bool:
    """Whether the result may share memory with the first value read."""
    schema = getattr(op.target, "_schema", None)
    declared = schema is not None and any(r.alias_info is not None for r in schema.returns)
    own = isinstance(op.target, LayerCall)
    return declared or own or RULES.get(op.kind, UNKNOWN).aliases
