"""What can be removed if a network takes several paths: at other sizes, or in training.

Each path has a trace and an analysis of its own. A slice is removed only if it can be on every path
that touches it, so the slices that one path keeps are kept on all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from ssl_lightning.graph.flow import Flow
from ssl_lightning.graph.kept import SiteSlices, balance_groups, kept_labels, slices_of

Key = tuple[str, str]  # the name of a module or parameter, and which of its sides

SAME = 1e-9
"""Largest relative difference between the values that a constant has on two paths."""


def joint_slices(flows: Sequence[Flow]) -> dict[str, SiteSlices] | None:
    """Return what remains of every module; None if the paths disagree on constants.

    Args:
        flows: one finished analysis per path, of the same network.
    """
    keeps = [kept_labels(flow) for flow in flows]
    keep_what_others_fix(flows, keeps)
    keep_together(flows, keeps)
    found: dict[str, SiteSlices] = {}
    for flow, keep in zip(flows, keeps, strict=True):
        for name, slices in slices_of(flow, keep).items():
            both = joined(found[name], slices) if name in found else slices
            if both is None:
                return None
            found[name] = both
    return found


def keep_together(flows: Sequence[Flow], keeps: Sequence[Tensor]) -> None:
    """Keep on all paths what one path keeps, until nothing changes. Changes ``keeps`` in place."""
    changed = True
    while changed:
        changed = False
        kept: dict[Key, Tensor] = {}
        for flow, keep in zip(flows, keeps, strict=True):
            for key, labels in sides(flow):
                mask = keep[flow.labels.find(labels)]
                kept[key] = kept[key] | mask if key in kept else mask
        for flow, keep in zip(flows, keeps, strict=True):
            for key, labels in sides(flow):
                roots = flow.labels.find(labels)
                if not bool(keep[roots[kept[key]]].all()):
                    keep[roots[kept[key]]] = True
                    changed = True
            balance_groups(flow, keep)


def keep_what_others_fix(flows: Sequence[Flow], keeps: Sequence[Tensor]) -> None:
    """Keep whole what is touched on another path in a way that does not let it be cut."""
    known = [dict(sides(flow)) for flow in flows]
    touched = [touched_by(flow) for flow in flows]
    for here, (flow, keep) in enumerate(zip(flows, keeps, strict=True)):
        for key, labels in known[here].items():
            others = range(len(flows))
            if any(key[0] in touched[other] and key not in known[other] for other in others):
                keep[flow.labels.find(labels)] = True


def touched_by(flow: Flow) -> set[str]:
    """Return the names of the modules that run on a path, and of the parameters read there."""
    read = {name for value, name in flow.trace.names.items() if flow.trace.users.get(value)}
    owners = {name.rpartition(".")[0] for name in read}
    return read | owners | {op.module for op in flow.trace.ops}


def sides(flow: Flow) -> Iterator[tuple[Key, Tensor]]:
    """Yield the labels of all that can be cut: of modules, lone parameters, matrices and heads."""
    for name, site in flow.sites.items():
        yield (name, "inputs"), site.inputs
        yield (name, "outputs"), site.outputs
    for name, (dim, labels) in flow.parameters.items():
        yield (name, f"parameter {dim}"), labels
    for name, matrix in flow.matrices.items():
        yield (name, f"inputs {matrix.dim}"), matrix.inputs
        yield (name, f"outputs {matrix.dim}"), matrix.outputs
    for name, found in flow.heads.items():
        for number, heads in enumerate(found):
            yield (name, f"heads {number}"), heads.labels
    for name, sizes in flow.sizes.items():
        for number, (_, labels) in enumerate(sizes):
            yield (name, f"sizes {number}"), labels
    for name, (_, labels) in flow.views.items():
        yield (name, "view"), labels


def joined(one: SiteSlices, other: SiteSlices) -> SiteSlices | None:
    """Return slices that do on two paths; None if a constant has no single value.

    Example:
        >>> one = SiteSlices((0, 1), (0,), (3, 1), False, reads=(0,), folded=(1,), constants=(2.0,))
        >>> other = SiteSlices((0, 1), (0,), (3, 1), False, reads=(0, 1))
        >>> both = joined(one, other)
        >>> both.reads, both.folded
        (None, ())
    """
    assert (one.inputs, one.outputs) == (other.inputs, other.outputs)
    reads = None if None in (one.reads, other.reads) else union(one.reads, other.reads)
    reads = None if reads == one.inputs else reads
    constant = (one.constant or one.zero) and (other.constant or other.zero)
    read = set() if constant else set(one.inputs if reads is None else reads)
    values = [dict(zip(s.folded, s.constants, strict=True)) for s in (one, other)]
    folded = sorted((values[0].keys() | values[1].keys()) - read)
    for channel in folded:
        if any(channel not in table for table in values):
            return None
        a, b = (table[channel] for table in values)
        if abs(a - b) > SAME * max(abs(a), abs(b)):
            return None
    least = min(one, other, key=lambda slices: slices.idle)
    return replace(
        least,
        zero=one.zero and other.zero,
        constant=constant and not (one.zero and other.zero),
        reads=reads,
        writes=None if None in (one.writes, other.writes) else union(one.writes, other.writes),
        folded=tuple(folded),
        constants=tuple(values[0][channel] for channel in folded),
    )


def union(one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the channels that are in either, ascending."""
    return tuple(sorted({*(one or ()), *(other or ())}))
