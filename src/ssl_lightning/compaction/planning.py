"""make_plan, compact and apply_plan: from a network with zeros to a smaller one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn

from ssl_lightning.compaction.checks import warn_of_later_zeros
from ssl_lightning.compaction.equality import Problem
from ssl_lightning.compaction.factors import insert_factors_
from ssl_lightning.compaction.gate import Gate, open_gate, try_further, try_smaller
from ssl_lightning.compaction.plan import Plan
from ssl_lightning.compaction.rewrite import apply_slices, check_modules
from ssl_lightning.compaction.sparse import replace_layers
from ssl_lightning.compaction.structure import structure_of
from ssl_lightning.graph import (
    REGISTERED,
    ExampleInput,
    Inputs,
    Op,
    SiteSlices,
    Trace,
    analyse,
    as_inputs,
    check_network,
    is_same_everywhere,
    is_sized,
    may_be_same_everywhere,
    own_layer,
    retained_whole,
    trace,
    with_plain_weights,
    working_copy,
)
from ssl_lightning.graph.copies import outside_inference
from ssl_lightning.suggest import first_line

ATTEMPTS = 8


@outside_inference
def make_plan(model: nn.Module, example_input: ExampleInput, *, constants: bool = True) -> Plan:
    """Find what can be removed from ``model`` without changing the function it computes in eval.

    The model is captured with ``torch.export`` and its operations are analysed; what the analysis
    cannot prove removable is retained. Before the plan is returned, it is carried out on a copy and
    both networks are compared in float64, also at other batch sizes, heights and widths (or
    lengths) that the network accepts, and in train mode, where outputs must have the same shapes.
    Where its code takes other paths there, those are captured and analysed too. If the copy fails,
    because code of the model holds sizes as fixed numbers, nothing is removed through the
    operations that come into question. What could not be tried is in the plan's ``checks``.

    Args:
        model: any module that ``torch.export`` captures, with its zeros; it is not changed.
        example_input: its inputs, shapes such as ``(1, C, H, W)``; the values do not matter, and
            a batch of one is enough. A tensor, a tuple of all positional inputs, or
            ``Inputs(x, mask=None)`` where some have names.
        constants: also remove what is constant for every input without being zero (the shift of a
            batch norm behind a zero filter), which becomes part of later biases. In train mode,
            where batch norms use other statistics, the smaller network is then another one.

    Returns:
        The plan. It holds names and indices, no weights (but constants to fold); ``print`` shows
        it as a table.

    Raises:
        ValueError: if the model cannot be captured, its weights are not finite, or a rule or layer
            type of the user's own (:func:`~ssl_lightning.graph.register_rule`) is wrong.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> net = create_backbone("lenet")
        >>> with torch.no_grad():
        ...     net.conv1.weight[3:] = 0
        ...     net.conv1.bias[3:] = 0
        >>> plan = make_plan(net, torch.zeros(1, 1, 28, 28))
        >>> plan.modules["conv1"].outputs, len(plan.modules["conv2"].inputs)
        ((0, 1, 2), 3)
    """
    plan = empty_plan(inputs := as_inputs(example_input))
    check_finite(model)
    gate = open_gate(model, inputs)
    double = with_plain_weights(working_copy(model, gate.dtype))
    traces = [first_trace(double, gate)]
    modules = analyse(double, traces, constants=constants)
    if not any(slices.shrinks() for slices in modules.values()):
        whole = tuple(retained_whole(double, traces[0], modules))
        return replace(plan, modules=modules, notes=whole)
    try_further(gate)
    traces, failed = add_paths(double, gate, traces)
    known = modules if len(traces) == 1 and not failed else None
    modules, notes = search(double, gate, traces, constants and not failed, known)
    whole = tuple(retained_whole(double, traces[0], modules)) if modules else ()
    notes, checks = (*failed, *notes, *whole), tuple(gate.notes)
    return replace(plan, modules=modules, notes=notes, checks=checks)


def empty_plan(inputs: Inputs) -> Plan:
    """Return the plan that removes nothing, for a network with these inputs."""
    shapes = tuple(tuple(x.shape) for x in inputs.tensors())
    types = tuple(str(x.dtype).removeprefix("torch.") for x in inputs.tensors())
    return Plan({}, shapes, types, structure=structure_of(inputs))


def first_trace(model: nn.Module, gate: Gate) -> Trace:
    """Return the trace on the example, or on smaller maps where that gives the same analysis."""
    if may_be_same_everywhere(model) and (smaller := try_smaller(gate)) is not None:
        with suppress(ValueError):  # some code is only captured at the example's size
            traced = trace(model, smaller)
            if is_same_everywhere(traced):
                return traced
    return trace(model, gate.inputs)


def search(
    model: nn.Module,
    gate: Gate,
    traces: list[Trace],
    constants: bool,
    known: dict[str, SiteSlices] | None = None,
) -> tuple[dict[str, SiteSlices], tuple[str, ...]]:
    """Return what can be removed so that the gate finds no difference, and what was not for it.

    ``known`` is the first analysis, where it is there already.
    """
    blocked: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    problem: Problem | None = None
    for _ in range(ATTEMPTS):
        modules = known or analyse(model, traces, blocked, constants=constants)
        known = None
        problem = gate.problem(modules)
        if problem is None:
            return modules, notes
        if shapes_in(traces[0]) != [x.shape for x in gate.inputs.tensors()]:
            traces = [trace(model, gate.inputs), *traces[1:]]
            continue
        if problem.train and len(traces) == 1 and (more_traces := train_trace(model, gate)):
            traces = [*traces, *more_traces]
            continue
        more = suspects(model, traces, problem, blocked)
        if constants and not (problem.modules and more):
            constants = False
            notes = (*notes, f"constants were not folded: {problem.text}")
            continue
        if problem.values or not more or fails_in_own_layer(model, problem):
            check_own_rules(model, gate, traces, blocked, problem)
        if not more:
            break
        blocked |= more
        notes = (*notes, blocked_note(traces, more, problem))
    assert problem is not None
    return {}, (f"nothing was removed: the compact network would not do ({problem.text})",)


def shapes_in(traced: Trace) -> list[torch.Size]:
    """Return the shapes of the inputs of a trace."""
    return [x.shape for x in traced.inputs.values()]


def check_own_rules(
    model: nn.Module,
    gate: Gate,
    traces: list[Trace],
    blocked: frozenset[str],
    problem: Problem,
) -> None:
    """Refuse a rule of the user's own without which there is no problem.

    That is asked once no constants are folded, and if fixed sizes cannot be the reason.

    Raises:
        ValueError: naming the operations, or layers, of that rule.
    """
    own: dict[str, list[Op]] = {}
    for op in (op for traced in traces for op in traced.ops if op.kind in REGISTERED):
        own.setdefault(op.kind, []).append(op)
    trials = [*([kind] for kind in own), *([list(own)] if len(own) > 1 else [])]
    for kinds in trials:
        ops = [op for kind in kinds for op in own[kind]]
        without = blocked | {op.name for op in ops}
        if gate.problem(analyse(model, traces, without, constants=False)) is None:
            inside = ", ".join(f"`{name or 'the model'}`" for name in {o.module: 0 for o in ops})
            raise ValueError(
                f"make_plan: the rule registered for {' or '.join(f'`{k}`' for k in kinds)} is "
                f"wrong for what runs in {inside}: the compact network would not compute the same "
                f"({problem.text}). Correct what was given to register_rule or register_shrinker, "
                "or undo the registration."
            )


def fails_in_own_layer(model: nn.Module, problem: Problem) -> bool:
    """Whether what raised was in a layer of a type that the user registered."""
    return bool(problem.modules) and own_layer(model.get_submodule(problem.modules[-1])) is not None


def add_paths(
    model: nn.Module, gate: Gate, traces: list[Trace]
) -> tuple[list[Trace], tuple[str, ...]]:
    """Add traces of the other paths that the network takes; say which cannot be captured.

    Those are only compared, and no constants may be folded then.
    """
    failed = []
    for trial in gate.other_paths():
        try:
            traces = [*traces, trace(model, trial.inputs)]
        except ValueError as error:
            failed.append(f"constants were not folded: {first_line(error)}")
    if gate.only_in_training():
        traces = [*traces, *train_trace(model, gate)]
    return traces, tuple(failed)


def train_trace(model: nn.Module, gate: Gate) -> list[Trace]:
    """Return the trace of the paths for training, in a list; none if it cannot be captured."""
    inputs = next((trial.inputs for trial in gate.trials if trial.train), gate.inputs)
    try:
        return [trace(model, inputs, train=True)]
    except ValueError as error:
        gate.notes.append(f"the paths for training were not analysed: {first_line(error)}")
        return []


def suspects(
    model: nn.Module, traces: Sequence[Trace], problem: Problem, blocked: frozenset[str]
) -> frozenset[str]:
    """Return operations whose sizes may be the reason for a problem, the likeliest only.

    First those of all modules of the type that raised, then those of the types it was called
    from, then all.
    """
    sized = {op.name: op.module for t in traces for op in t.ops if is_sized(op)}
    types = {name: type(module) for name, module in model.named_modules()}
    running = [types.get(name) for name in problem.modules]
    for suspected in (set(running[-1:]), set(running), set(types.values())):
        found = {name for name, module in sized.items() if types.get(module) in suspected}
        if found - blocked:
            return frozenset(found)
    return frozenset()


def blocked_note(traces: Sequence[Trace], blocked: frozenset[str], problem: Problem) -> str:
    """Say through which operations nothing was removed, and why."""
    ops = [op for traced in traces for op in traced.ops if op.name in blocked]
    kinds = dict.fromkeys(op.kind for op in ops)
    inside = dict.fromkeys(op.module or "the model" for op in ops)
    named = ", ".join(list(inside)[:3]) + (", ..." if len(inside) > 3 else "")
    return (
        f"nothing was removed through {', '.join(kinds)} in {named}: sizes are fixed by the code "
        f"({problem.text})"
    )


def check_finite(model: nn.Module) -> None:
    """Reject weights that are NaN or infinite.

    Raises:
        ValueError: naming the first such parameter; or if it is no network.
    """
    check_network(model)
    statistics = [(n, b) for n, b in model.named_buffers() if ".running_" in f".{n}"]
    for name, tensor in (*model.named_parameters(), *statistics):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"`{name}` of {type(model).__name__} holds NaN or infinite values: the training "
                "diverged. Take an earlier checkpoint, or train again with a lower learning rate."
            )


@outside_inference
def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """Shrink ``model`` in place as the plan says, whatever its weights; return it.

    Used on a freshly created backbone it rebuilds the small architecture, into which the compact
    network's tensors can be loaded. Low rank factors get fresh weights.

    Args:
        model: a network with the layers of the one that the plan was made for.
        plan: from :func:`make_plan`.

    Returns:
        ``model``.

    Raises:
        ValueError: if the model's layers are not those that the plan was made for. The model is
            unchanged then.

    Example:
        >>> from ssl_lightning import create_backbone
        >>> net, x = create_backbone("lenet"), torch.zeros(1, 1, 28, 28)
        >>> with torch.no_grad():
        ...     _ = net.conv1.weight[5:].zero_(), net.conv1.bias[5:].zero_()
        >>> apply_plan(create_backbone("lenet"), make_plan(net, x)).conv1.out_channels
        5
    """
    small = apply_slices(insert_factors_(model, plan.factors), plan.modules)
    replace_layers(small, plan.sparse, keep_all=True)
    return small


@outside_inference
def compact(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a smaller network that computes the same function in eval mode.

    In train mode it is the same function too unless a batch norm lost channels whose statistics
    differ. The result is a plain trainable module; ``model`` is unchanged.

    Args:
        model: the network the plan was made for, with the same weights.
        plan: from :func:`make_plan`.

    Raises:
        ValueError: if the plan belongs to other layers or other weights, so that the outputs of
            both networks, which are compared in float64, differ; if it has low rank factors; or
            for what is no network or no plan.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> net = create_backbone("mlp")
        >>> with torch.no_grad():
        ...     net.fc1.weight[100:] = 0
        ...     net.fc1.bias[100:] = 0
        >>> small = compact(net, make_plan(net, torch.zeros(1, 1, 28, 28)))
        >>> small.fc2
        Linear(in_features=100, out_features=300, bias=True)
    """
    check_network(model)
    if not isinstance(plan, Plan):
        raise ValueError(
            f"compact: expected a plan, got {type(plan).__name__}. Make it: make_plan(net, x)."
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    problem = None
    if plan.factors:
        raise ValueError(
            "compact: expected a plan that removes channels, got one with low rank factors "
            f"({', '.join(list(plan.factors)[:3])}), which change the function. Take the network "
            "that `factorise` returned, or `load_compact`; `apply_plan` makes the factors with "
            "fresh weights."
        )
    check_modules(model, plan.modules)
    if plan.removed():
        gate = open_gate(model, plan.inputs(device))
        try_further(gate)
        problem = gate.problem(plan.modules)
    if problem is not None:
        raise ValueError(
            f"compact: the plan does not fit this {type(model).__name__}: {problem.text}. Its "
            "weights changed since the plan was made; make the plan again."
        )
    warn_of_later_zeros(model, plan, "compact")
    return carried_out(model, plan)


@outside_inference
def carried_out(model: nn.Module, plan: Plan) -> nn.Module:
    """As :func:`compact`, without comparing: for a plan that was made for this model just now."""
    small = apply_slices(working_copy(model, apart=False), plan.modules)
    replace_layers(small, plan.sparse)
    return small


@outside_inference
def plan_and_compact(
    model: nn.Module, example_input: ExampleInput, *, constants: bool = True
) -> tuple[Plan, nn.Module]:
    """Return what :func:`make_plan` and then :func:`compact` return; both are compared once.

    Raises:
        ValueError: as :func:`make_plan`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> _ = nn.init.zeros_(net[0].weight[1:]), nn.init.zeros_(net[0].bias[1:])
        >>> plan_and_compact(net, torch.zeros(1, 4))[1][2]
        Linear(in_features=1, out_features=2, bias=True)
    """
    plan = make_plan(model, example_input, constants=constants)
    return plan, carried_out(model, plan)
