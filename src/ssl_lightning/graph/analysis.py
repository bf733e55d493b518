"""Which slices of a model can be removed without changing its function, and which together.

Why it is right. Write *alive* for "can be non-zero for some input", *varying* for "alive, and not
known to be one constant for all inputs and positions", and *needed* for "read with a non-zero
weight on the way to an output". These masks are supersets of the truth, computed by monotone
functions. Let R be all elements of all label sets none of whose elements is both varying and
needed. Taking R away changes no output: what is zero is not missed, what is constant is read either
by operations whose result is in R too, or by layers that get it as part of their bias (operations
that can do neither call it varying), and what is not needed changes nothing that is. And since
every set is in R as a whole, and an operation without a rule keeps all sets it touches out of R,
each remaining operation has the operands it had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.graph.flow import (
    Flow,
    Value,
    as_list,
    binary,
    filled,
    like,
    masks_in_float32,
    somewhere,
)
from ssl_lightning.graph.inputs import ExampleInput
from ssl_lightning.graph.kept import SiteSlices, kept_slices
from ssl_lightning.graph.labels import spread, varies
from ssl_lightning.graph.layers import WEIGHTED
from ssl_lightning.graph.operations import rule_of
from ssl_lightning.graph.operations.pooling import POOL
from ssl_lightning.graph.ops import Op, Trace
from ssl_lightning.graph.plain import with_plain_weights
from ssl_lightning.graph.reasons import left_whole
from ssl_lightning.graph.rule import (
    UNKNOWN,
    Rule,
    everything,
    fix_all,
    fixed,
    ones,
    spatial_dims,
    transpose,
)
from ssl_lightning.graph.several import joint_slices
from ssl_lightning.graph.trace import trace
from ssl_lightning.graph.values import NOT_RUN, not_zero, real_values
from ssl_lightning.suggest import first_line


def analyse(
    model: nn.Module,
    example_input: ExampleInput | Trace | Sequence[Trace],
    blocked: frozenset[str] = frozenset(),
    *,
    constants: bool = True,
) -> dict[str, SiteSlices]:
    """Find what can be removed from each module of ``model`` without changing its function.

    A slice is removed if every element of every tensor it is part of is zero for all inputs,
    constant where it can be folded into the layers that read it, or never read with a non-zero
    weight; and every operation that touches it has a rule (:mod:`ssl_lightning.graph.operations`).

    Args:
        model: the network, with its zeros.
        example_input: its inputs, of which only the shapes matter, or the model's trace, or a list
            of traces of all paths that the model takes; a slice is removed if it can be on all.
        blocked: names of operations in the traces to treat as unknown.
        constants: whether slices that are constant but not zero may be removed.

    Returns:
        Module name -> what remains of it, for every convolution, linear and normalisation layer
        that the analysis understands.
    """
    traces = as_traces(model, example_input)
    flows = [propagate(model, t, blocked, real_values(t) if constants else {}) for t in traces]
    if len(flows) == 1:
        return kept_slices(flows[0])
    found = joint_slices(flows)
    if found is None:
        found = joint_slices([propagate(model, traced, blocked) for traced in traces])
    assert found is not None, "without constants there is nothing to disagree on"
    return found


def as_traces(model: nn.Module, given: Any) -> list[Trace]:
    """Return the traces that are given, or the one on an example input."""
    if isinstance(given, Trace):
        return [given]
    if isinstance(given, list) and given and all(isinstance(item, Trace) for item in given):
        return given
    return [trace(model, given)]


@masks_in_float32()
def propagate(
    model: nn.Module,
    traced: Trace,
    blocked: frozenset[str] = frozenset(),
    values: Mapping[str, Value] | None = None,
) -> Flow:
    """Run the questions of the rules over a trace: all forward, but for need, which runs backwards.

    Args:
        model: the network.
        traced: its trace.
        blocked: names of operations to treat as unknown.
        values: every value of one run; without them only zeros count as constant.
    """
    flow = Flow(model, traced, values=dict(values or {}))
    with torch.no_grad():
        for name, tensor in traced.inputs.items():
            flow.alive[name] = flow.varies[name] = torch.ones(tensor.shape)
            flow.slices[name] = fixed(tuple(tensor.shape))
        for name, tensor in traced.tensors.items():
            flow.alive[name] = binary(tensor.detach()).cpu()
            flow.varies[name] = torch.zeros(tensor.shape)
        for op in traced.ops:
            rule = rule_in(flow, op, blocked)
            for name in op.inputs():
                if name not in flow.slices:
                    flow.slices[name] = stored_labels(flow, name, op)
            forward(op, rule, flow)
        for name in traced.tensors.keys() - flow.slices.keys():
            flow.slices[name] = fixed(tuple(traced.tensors[name].shape))
        fix_shared_parameters(flow)
        fix_shared_matrices(flow)
        collect_parameters(flow)
        backpropagate(flow)
    return flow


def retained_whole(model: nn.Module, traced: Trace, known: Mapping[str, SiteSlices]) -> list[str]:
    """Return a sentence for each layer with zero slices, or that never ran, that is not known."""
    names = [n for n, module in model.named_modules() if isinstance(module, WEIGHTED)]
    if set(names) <= known.keys():
        return []
    return left_whole(known.keys(), model, propagate(model, traced))


def is_cut(model: nn.Module, example_input: Any) -> bool:
    """Whether some output of a network depends on none of its inputs any more.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> _ = nn.init.zeros_(net[0].weight)
        >>> is_cut(net, torch.zeros(1, 2))
        True
    """
    plain = with_plain_weights(model)
    traced = trace(plain, example_input)
    for output in traced.outputs:
        flow = propagate(plain, replace(traced, outputs=[output], users={}))
        if not any(bool(flow.needed[name].any()) for name in traced.inputs if name in flow.needed):
            return True
    return False


def rule_in(flow: Flow, op: Op, blocked: frozenset[str]) -> Rule:
    """Return an operation's rule, and record both the rule and the cause of what it fixes."""
    rule = flow.rules[op.name] = UNKNOWN if op.name in blocked else rule_of(op)
    where = f" in `{op.module}`" if op.module else ""
    if op.name in blocked:
        flow.labels.cause = f"`{op.kind}`{where}, whose sizes the code fixes"
    elif rule is UNKNOWN:
        flow.labels.cause = f"an operation without a rule: `{op.kind}`{where}"
    else:
        flow.labels.cause = f"tied by `{op.kind}`{where} to what cannot be removed"
    return rule


def forward(op: Op, rule: Rule, flow: Flow) -> None:
    """Fill masks and labels of an operation's result; a rule that fails counts as unknown."""
    try:
        alive, labels = rule.support(op, flow.alive), rule.labels(op, flow)
        check_shapes(alive, labels, op)
        flow.alive[op.name] = like(alive, [binary(t) for t in as_list(alive)])
        mark_constants(op, rule, flow)
    except Exception as error:
        give_up(op, error, flow)
        flow.alive[op.name] = flow.varies[op.name] = ones(op, flow.alive)
        labels = fix_all(op, flow)
        if site := flow.sites.get(op.module):
            flow.labels.fix(site.inputs)
            flow.labels.fix(site.outputs)
    flow.slices[op.name] = labels


def give_up(op: Op, error: Exception, flow: Flow) -> None:
    """Record that an operation's rule failed."""
    flow.rules[op.name] = UNKNOWN
    flow.failed[op.name] = f"{type(error).__name__}: {error}"
    flow.labels.cause = f"an operation whose rule failed: `{op.kind}` ({first_line(error)})"


def mark_constants(op: Op, rule: Rule, flow: Flow) -> None:
    """Fill where an operation's result varies, and take from what is alive what is found zero."""
    alive = flow.alive[op.name]
    if not flow.values or op.name in flow.values.get(NOT_RUN, ()):
        flow.varies[op.name] = alive
        return
    if not rule.constants:
        flow.varies.update({name: flow.alive[name] for name in op.inputs()})
    found = rule.varies(op, flow) if rule.varies else rule.support(op, flow.varies)
    varies = [binary(v) * a for v, a in zip(as_list(found), as_list(alive), strict=True)]
    values = as_list(not_zero(flow.values[op.name], alive))
    both = [a * torch.maximum(v, n) for a, v, n in zip(as_list(alive), varies, values, strict=True)]
    flow.varies[op.name], flow.alive[op.name] = like(alive, varies), like(alive, both)


def check_shapes(alive: Value, labels: Value, op: Op) -> None:
    """Make sure that masks and labels have the result's shape."""
    shapes = op.shape if isinstance(op.shape, list) else [op.shape or ()]
    for value in (alive, labels):
        found = [tuple(t.shape) for t in as_list(value)]
        assert found == [tuple(s) for s in shapes], f"{op.kind}: {found} instead of {shapes}"


def fix_shared_parameters(flow: Flow) -> None:
    """Keep whole every module whose parameters are also read by other than its own operations."""
    for value, name in flow.trace.names.items():
        site = flow.sites.get(name.rpartition(".")[0])
        if site is None:
            continue
        own = {op.name for op in site.ops}
        others = [op for op in flow.trace.users.get(value, []) if op.name not in own]
        if others:
            flow.labels.cause = f"`{name}` is also read by `{others[0].kind}` elsewhere"
            flow.labels.fix(site.inputs)
            flow.labels.fix(site.outputs)


def fix_shared_matrices(flow: Flow) -> None:
    """Keep whole every stored matrix that other operations read than those that know its slices."""
    for name, matrix in flow.matrices.items():
        users = {op.name: op for v in matrix.values for op in flow.trace.users.get(v, [])}
        others = [op for key, op in users.items() if key not in matrix.ops]
        if others:
            flow.labels.cause = f"`{name}` is also read by `{others[0].kind}` elsewhere"
            flow.labels.fix(matrix.inputs)
            flow.labels.fix(matrix.outputs)


def stored_labels(flow: Flow, value: str, op: Op) -> Tensor:
    """Return labels of a stored tensor that ``op`` is the first to read.

    A parameter or buffer can be sliced along one dimension: that of the channels that it is added
    to or multiplied with, or that a resized map has, else the last of more than one element (the
    channels of a layer scale, a class token or a positional embedding). Layers ask for their
    weights' labels themselves.
    """
    shape = tuple(flow.trace.tensors[value].shape)
    long = [dim for dim, size in enumerate(shape) if size > 1]
    if flow.trace.names.get(value) not in flow.names_of_parameters or not long:
        labels: Tensor = fixed(shape)
        return labels
    dim = next((d for d in channel_dims(flow, value, op) if d in long), long[-1])
    return spread(flow.labels.fresh(shape[dim]), shape, dim)


def channel_dims(flow: Flow, value: str, op: Op) -> list[int]:
    """Return the dimensions of a stored tensor that number channels, as far as ``op`` tells."""
    rule = flow.rules[op.name]
    if rule is POOL:
        return [flow.trace.tensors[value].dim() - spatial_dims(op) - 1]
    others = [flow.slices[n] for n in op.inputs() if n != value and n in flow.slices]
    if rule.operands != "two" or len(others) != 1:
        return []
    labels, rank = others[0], flow.trace.tensors[value].dim()
    dims = [d for d in range(labels.dim()) if varies(labels, d)]
    return [d - labels.dim() + rank for d in dims if d >= labels.dim() - rank]


def collect_parameters(flow: Flow) -> None:
    """Fill ``flow.parameters`` with those that belong to no layer; fix the labels of the others."""
    for value, name in flow.trace.names.items():
        if name not in flow.names_of_parameters or name in flow.matrices:
            continue
        if not flow.trace.users.get(value):
            continue  # what this path does not read may be read on others
        labels = flow.slices[value]
        dims = [dim for dim in range(labels.dim()) if varies(labels, dim)]
        if name.rpartition(".")[0] in flow.sites:
            flow.labels.fix(labels)
        elif dims:
            flow.parameters[name] = dims[0], flow.labels.per_index(labels, dims[0])


def backpropagate(flow: Flow) -> None:
    """Fill ``flow.needed``, from the outputs back: what each value is needed for."""
    flow.labels.cause = "the network's output"
    for name in flow.trace.outputs:
        if name in flow.alive:
            flow.needed[name] = filled(flow.alive[name], 1.0)
            for labels in as_list(flow.slices[name]):
                flow.labels.fix(labels)
    for op in reversed(flow.trace.ops):
        needed = flow.needed.setdefault(op.name, filled(flow.alive[op.name], 0.0))
        pairs = zip(as_list(flow.alive[op.name]), as_list(needed), strict=True)
        useful = [a * n for a, n in pairs]
        for name, mask in needs_of(op, flow, like(needed, useful)).items():
            if name == next(iter(op.inputs()), None):
                flow.read_by[op.name] = mask
            before = as_list(flow.needed.get(name, filled(flow.alive[name], 0.0)))
            joined = [torch.maximum(a, b) for a, b in zip(before, as_list(mask), strict=True)]
            flow.needed[name] = like(mask, joined)


def needs_of(op: Op, flow: Flow, useful: Value) -> dict[str, Value]:
    """Return what an operation needs for the elements of its result that are useful."""
    rule: Rule = flow.rules[op.name]
    if not any(bool(somewhere(t)) for t in as_list(useful)):
        return {}
    try:
        if rule.needs is None:
            return transpose(op, flow, useful, rule.support)
        return rule.needs(op, flow, useful)
    except Exception as error:
        give_up(op, error, flow)
        fix_all(op, flow)
        for labels in as_list(flow.slices[op.name]):
            flow.labels.fix(labels)
        return everything(op, flow, useful)
