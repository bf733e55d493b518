"""What a trace says about residual branches and about the norms behind layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ssl_lightning.graph.layers import WEIGHTED_KINDS
from ssl_lightning.graph.ops import Op, Trace


@dataclass(frozen=True)
class ResidualBranch:
    """The computing side of one residual addition.

    Attributes:
        addition: name of the addition in the trace.
        modules: names of the modules that only this branch runs, in order.
        weighted: those of them that have convolutions or linear maps.
        last: the last of these that all of the branch passes, so that the branch is constant if
            its result is; empty if there is none.
    """

    addition: str
    modules: tuple[str, ...]
    weighted: tuple[str, ...]
    last: str = ""


def residual_branches(traced: Trace) -> list[ResidualBranch]:
    """Find, for every addition of two tensors, the side that has more weighted layers.

    That side may be removed: the other one, the shortcut, still connects input and output. Sides
    whose values are also read elsewhere, or whose weighted modules also run elsewhere, are no
    branches; but what a side reads with others and without a weighted layer before it (masks,
    positions, a norm in front of several branches) is no part of it.
    """
    above = ancestors(traced)
    branches = []
    for op in traced.ops:
        sides = op.inputs() if op.kind == "add" else []
        if len(sides) != 2 or sides[0] == sides[1]:
            continue
        branch = branch_of(op, [above[side] | {side} for side in sides], traced)
        if branch is not None:
            branches.append(branch)
    return branches


def ancestors(traced: Trace) -> Mapping[str, set[str]]:
    """Return, for every value, the names of all values it is computed from."""
    above: dict[str, set[str]] = {name: set() for name in (*traced.inputs, *traced.tensors)}
    for op in traced.ops:
        above[op.name] = {up for name in op.inputs() for up in above.get(name, set()) | {name}}
    return above


def branch_of(addition: Op, reach: list[set[str]], traced: Trace) -> ResidualBranch | None:
    """Return the heavier of both sides if it is a branch and the other one a shortcut."""
    sides = []
    for mine, other in (reach, reach[::-1]):
        own = mine - other
        ops = without_shared([op for op in traced.ops if op.name in own], addition, traced)
        weighted = sum(op.kind in WEIGHTED_KINDS for op in ops)
        sides.append((weighted, ops, other))
    _, ops, shortcut = max(sides, key=lambda side: side[0])
    mine = next(side for side in reach if side != shortcut)
    given = [name for name in traced.inputs if name in mine]
    cut = not given or given[0] not in shortcut  # nothing else leads from there to the addition
    return None if cut else as_branch(addition, ops, traced)


def without_shared(ops: list[Op], addition: Op, traced: Trace) -> list[Op]:
    """Return the operations of a side but those before its weights that others read too."""
    names, weights = {op.name for op in ops}, set[str]()
    for op in ops:
        if op.kind in WEIGHTED_KINDS or weights & set(op.inputs()):
            weights.add(op.name)
    shared: set[str] = set()
    for op in reversed(ops):
        readers = {user.name for user in traced.users.get(op.name, [])} - {addition.name}
        outside = not readers <= names or op.name in traced.outputs
        if op.name not in weights and (outside or (readers and readers <= shared)):
            shared.add(op.name)
    return [op for op in ops if op.name not in shared]


def as_branch(addition: Op, ops: list[Op], traced: Trace) -> ResidualBranch | None:
    """Return the branch that ``ops`` are, or None if they hold no weights or are read elsewhere."""
    names = {op.name for op in ops}
    readers = {user.name for op in ops for user in traced.users.get(op.name, [])}
    elsewhere = {op.module for op in traced.ops if op.name not in names}
    weighted = dict.fromkeys(op.module for op in ops if op.kind in WEIGHTED_KINDS)
    alone = readers <= names | {addition.name} and not names & set(traced.outputs)
    if not weighted or not alone or elsewhere & weighted.keys():
        return None
    modules = [m for m in dict.fromkeys(op.module for op in ops) if m not in elsewhere]
    return ResidualBranch(
        addition.name, tuple(modules), tuple(weighted), last_passed(addition, ops, traced)
    )


def last_passed(addition: Op, ops: list[Op], traced: Trace) -> str:
    """Return the last weighted module of a branch without which its result is constant."""
    names = {op.name for op in ops}
    weighted = dict.fromkeys(op.module for op in ops if op.kind in WEIGHTED_KINDS)
    for module in reversed(weighted):
        around: set[str] = set()  # what is computed from the branch's inputs past this module
        for op in ops:
            read = set(op.inputs()) - traced.tensors.keys()
            own = op.module == module and op.kind in WEIGHTED_KINDS
            if not own and (read - names or read & around):
                around.add(op.name)
        if not around & set(addition.inputs()):
            return module
    return ""


def norm_followers(traced: Trace) -> dict[str, str]:
    """Return, for every convolution or linear layer, the batch norm that alone reads its result.

    A layer that runs several times must be followed by the same norm each time; a norm that also
    runs behind another layer belongs to none.
    """
    followers: dict[str, set[str | None]] = {}
    for op in traced.ops:
        if op.kind in WEIGHTED_KINDS:
            followers.setdefault(op.module, set()).add(norm_reader(op, traced))
    readers = {layer: norms.pop() for layer, norms in followers.items() if len(norms) == 1}
    alone = {layer: norm for layer, norm in readers.items() if norm is not None}
    sources = {norm: norm_sources(norm, traced) for norm in alone.values()}
    return {layer: norm for layer, norm in alone.items() if sources[norm] == {layer}}


def norm_reader(op: Op, traced: Trace) -> str | None:
    """Return the module of the batch norm that alone reads an operation's result."""
    users = traced.users.get(op.name, [])
    alone = len(users) == 1 and users[0].kind == "batch_norm" and op.name not in traced.outputs
    return users[0].module if alone else None


def norm_sources(norm: str, traced: Trace) -> set[str | None]:
    """Return the modules whose results a batch norm reads; None stands for other values."""
    kinds = {op.name: op.module if op.kind in WEIGHTED_KINDS else None for op in traced.ops}
    runs = [op for op in traced.ops if op.module == norm and op.kind == "batch_norm"]
    return {kinds.get(op.inputs()[0]) for op in runs}
