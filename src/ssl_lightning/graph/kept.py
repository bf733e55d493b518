"""From the masks and labels of a finished analysis to the channels that each module keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Site, Value, as_list, somewhere
from ssl_lightning.graph.labels import FIXED, squeeze_expanded
from ssl_lightning.graph.layers import FOLDING_KINDS
from ssl_lightning.graph.operations.attention import new_attributes
from ssl_lightning.graph.ops import Op

WORTHWHILE = 0.125
"""Share of a layer's inputs or outputs that must be saved to copy the others for it."""


@dataclass(frozen=True)
class SiteSlices:
    """What remains of one module.

    Attributes:
        inputs: kept input channels, ascending.
        outputs: kept output channels, ascending.
        of: number of input and output channels before.
        zero: whether the module's result is zero (or never read) on all that is kept.
        constant: whether it depends on none of the inputs that are kept: only the bias remains.
        idle: how many of the kept outputs this module alone could do without.
        reason: why they are kept, "" if there are none.
        reads: kept inputs that it reads, if it should skip the others; else None.
        writes: kept outputs that it computes, if it should fill in the others; else None.
        folded: inputs that are constant, and become part of the bias.
        constants: their values.
        dim: of a parameter: the dimension that is cut; of a norm that must keep its old width: the
            dimension of its input that numbers the channels.
        attributes: of a module whose code splits channels into heads: the numbers it must hold.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    of: tuple[int, int]
    zero: bool
    constant: bool = False
    idle: int = 0
    reason: str = ""
    reads: tuple[int, ...] | None = None
    writes: tuple[int, ...] | None = None
    folded: tuple[int, ...] = ()
    constants: tuple[float, ...] = ()
    dim: int | None = None
    attributes: Mapping[str, int] = field(default_factory=dict)

    def shrinks(self) -> bool:
        """Whether the module loses anything."""
        whole = (len(self.inputs), len(self.outputs)) == self.of
        return self.zero or self.constant or not whole or self.is_subset()

    def is_subset(self) -> bool:
        """Whether the module skips inputs or outputs that others keep."""
        return self.reads is not None or self.writes is not None


def kept_slices(flow: Flow) -> dict[str, SiteSlices]:
    """Return what remains of every module whose slices are known."""
    return slices_of(flow, kept_labels(flow))


def slices_of(flow: Flow, keep: Tensor) -> dict[str, SiteSlices]:
    """Return what remains of every module, given which label sets are kept."""
    busy = {name: busy_channels(site, flow) for name, site in flow.sites.items()}
    modules = {name: site_slices(flow, site, keep, busy) for name, site in flow.sites.items()}
    parameters = {
        **dict(cut_slices(flow.parameters, flow, keep)),
        **dict(matrix_slices(flow, keep)),
    }
    others = {**dict(cut_slices(flow.views, flow, keep)), **dict(size_slices(flow, keep))}
    return {**modules, **parameters, **others}


def cut_slices(
    given: Mapping[str, tuple[int, Tensor]], flow: Flow, keep: Tensor
) -> Iterator[tuple[str, SiteSlices]]:
    """Yield what remains of parameters that no layer owns, or of each ``nn.Unflatten``, if less."""
    for name, (dim, labels) in given.items():
        kept = indices(keep[flow.labels.find(labels)])
        if len(kept) < len(labels):
            yield name, SiteSlices((), kept, (0, len(labels)), zero=False, dim=dim)


def site_slices(flow: Flow, site: Site, keep: Tensor, busy: Mapping[str, Tensor]) -> SiteSlices:
    """Return what remains of one module, given which label sets are kept and who is busy where."""
    inputs, outputs = (keep[flow.labels.find(side)] for side in (site.inputs, site.outputs))
    idle = outputs & ~busy[site.module]
    replaceable = not any(op.outside for op in site.ops)  # else code reads its weight
    slices = SiteSlices(
        inputs=indices(inputs),
        outputs=indices(outputs),
        of=(len(site.inputs), len(site.outputs)),
        zero=replaceable and not bool(busy[site.module].any()),
        constant=replaceable and is_constant(site, flow),
        idle=int(idle.sum()),
        reason=reason_of(site, idle, busy, flow),
        dim=site.module_dim,
    )
    return slices if slices.zero or not is_layer(site) else fold(flow, site, slices)


def matrix_slices(flow: Flow, keep: Tensor) -> Iterator[tuple[str, SiteSlices]]:
    """Yield what remains of each stored matrix that no layer owns, if it loses something."""
    for name, matrix in flow.matrices.items():
        sides = [matrix.inputs, matrix.outputs]
        inputs, outputs = (indices(keep[flow.labels.find(side)]) for side in sides)
        of = (len(sides[0]), len(sides[1]))
        if (len(inputs), len(outputs)) != of:
            yield name, SiteSlices(inputs, outputs, of, zero=False, dim=matrix.dim)


def size_slices(flow: Flow, keep: Tensor) -> Iterator[tuple[str, SiteSlices]]:
    """Yield the remaining heads (or units) of modules that lose some, and the numbers to change."""
    for name in dict.fromkeys((*flow.heads, *flow.sizes)):
        module = flow.model.get_submodule(name)
        found = [heads.labels for heads in flow.heads.get(name, [])]
        found += [labels for _, labels in flow.sizes.get(name, [])]
        kept = [indices(keep[flow.labels.find(labels)]) for labels in found]
        if all(len(some) == len(labels) for some, labels in zip(kept, found, strict=True)):
            continue
        attributes: dict[str, int] = {}
        for heads, some in zip(flow.heads.get(name, []), kept, strict=False):
            attributes |= new_attributes(module, heads, len(some))
        for names, labels in flow.sizes.get(name, []):
            count = int(keep[flow.labels.find(labels)].sum())
            attributes |= {key: count for key in names if holds(module, key, len(labels))}
        yield name, SiteSlices((), kept[0], (0, len(found[0])), False, attributes=attributes)


def holds(module: Any, name: str, number: int) -> bool:
    """Whether a module has an attribute that is that number."""
    value = module.__dict__.get(name)
    return type(value) is int and value == number


def indices(mask: Tensor) -> tuple[int, ...]:
    """Return the positions at which a mask is True."""
    return tuple(mask.nonzero().flatten().tolist())


def useful_masks(flow: Flow, op: Op) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the labels of an operation's results, and masks of where both varying and needed."""
    yield from zip(as_list(flow.slices[op.name]), flow.useful(op.name), strict=True)
    yield from flow.inner.get(op.name, [])


def kept_labels(flow: Flow) -> Tensor:
    """Return a mask over all label sets: True for those with a varying and needed element.

    And for those that have to be kept so that tensors have channels and groups are equal.
    """
    keep = torch.zeros(len(flow.labels.parent), dtype=torch.bool)
    keep[FIXED] = True
    for op in flow.trace.ops:
        for labels, mask in useful_masks(flow, op):
            few = squeeze_expanded(labels)[0]
            alike = [d for d in range(labels.dim()) if few.shape[d] != labels.shape[d]]
            wanted = somewhere(mask, alike, keepdim=True) if alike else mask > 0
            keep[flow.labels.find(few[wanted])] = True
    keep_one(flow, keep)
    balance_groups(flow, keep)
    return keep


def keep_one(flow: Flow, keep: Tensor) -> None:
    """Keep one slice of every module and parameter: tensors without channels break poolings."""
    sides = [side for site in flow.sites.values() for side in (site.inputs, site.outputs)]
    sides += [labels for _, labels in flow.parameters.values()]
    sides += [heads.labels for found in flow.heads.values() for heads in found]
    sides += [labels for found in flow.sizes.values() for _, labels in found]
    sides += [labels for _, labels in flow.views.values()]
    sides += [row for rows in flow.balanced for row in rows]
    for labels in sides:
        roots = flow.labels.find(labels)
        if len(roots) and not bool(keep[roots].any()):
            keep[roots[0]] = True


def balance_groups(flow: Flow, keep: Tensor) -> None:
    """Keep more slices until every group of a grouped convolution has equally many.

    A group that loses all of its channels is removed; others with fewer channels keep
    further ones. Changes ``keep`` in place.
    """
    grouped = [site for site in flow.sites.values() if site.groups > 1]
    added = True
    while added:
        added = False
        for site in grouped:
            for rows in group_rows(flow, site, keep):
                added |= balance(keep, rows)
        for rows in flow.balanced:
            added |= balance(keep, flow.labels.find(rows))


def group_rows(flow: Flow, site: Site, keep: Tensor) -> list[Tensor]:
    """Return the labels of input and output channels, one row per remaining group."""
    inputs = flow.labels.find(site.inputs).view(site.groups, -1)
    outputs = flow.labels.find(site.outputs).view(site.groups, -1)
    rest = keep[outputs].any(1) | keep[inputs].any(1)
    return [inputs[rest], outputs[rest]]


def balance(keep: Tensor, rows: Tensor) -> bool:
    """Keep labels until every row keeps as many as the fullest; return whether any was added."""
    most = max(1, int(keep[rows].sum(1).max())) if rows.numel() else 0
    added = False
    for row in rows:
        short = most - int(keep[row].sum())
        if short > 0:
            keep[row[~keep[row]].unique()[:short]] = True
            added = True
    return added


def busy_channels(site: Site, flow: Flow) -> Tensor:
    """Return a mask over a module's outputs: is it non-zero and needed there in some run?"""
    return channels_where(flow, site, flow.alive)


def channels_where(flow: Flow, site: Site, masks: Mapping[str, Value]) -> Tensor:
    """Return which outputs of a module have, in some run, a needed element where a mask is 1."""
    found = torch.zeros(len(site.outputs), dtype=torch.bool)
    for op in site.ops:
        found |= somewhere(channels_of(masks[op.name] * flow.needed[op.name], site.dim), [1])
    return found


def is_constant(site: Site, flow: Flow) -> bool:
    """Whether no run of a layer has a result that is needed and varies, or can but for its zeros.

    Without known values, what a layer returns varies with its bias; then it is asked what it reads.
    """
    if not is_layer(site):
        return False
    if flow.values:
        return not bool(channels_where(flow, site, flow.varies).any())
    reads = [(flow.alive[op.inputs()[0]], flow.read_by.get(op.name)) for op in site.ops]
    return not any(read is not None and bool(somewhere(alive * read)) for alive, read in reads)


def is_layer(site: Site) -> bool:
    """Whether a module is a convolution or a linear layer: its constants are in its bias."""
    return all(op.kind in FOLDING_KINDS for op in site.ops)


def fold(flow: Flow, site: Site, slices: SiteSlices) -> SiteSlices:
    """Add what a layer need not read and compute, and which constants its bias takes up.

    Inputs and outputs that others keep are skipped if that saves at least :data:`WORTHWHILE` of
    one side; copying channels costs time too.
    """
    op = site.ops[0]
    if not flow.absorbs(op) or not flow.values:
        return slices
    read = inputs_read(flow, op, site)
    varies = somewhere(channels_of(flow.varies[op.inputs()[0]], site.dim), [1])
    reads = tuple(i for i in slices.inputs if read[i] and varies[i])
    writes = indices(channels_where(flow, site, flow.varies))
    skips = site.groups == 1 and not slices.constant and is_worthwhile(slices, reads, writes)
    constant = read & ~varies
    if not skips and not slices.constant:
        constant[list(slices.inputs)] = False
    value = channels_of(flow.values[op.inputs()[0]], site.dim)[:, 0]
    return replace(
        slices,
        reads=reads if skips and reads != slices.inputs else None,
        writes=writes if skips and writes != slices.outputs else None,
        folded=indices(constant),
        constants=tuple(float(value[i]) for i in indices(constant)),
    )


def is_worthwhile(slices: SiteSlices, reads: Sequence[int], writes: Sequence[int]) -> bool:
    """Whether skipping inputs and outputs is worth the copying."""
    sides = ((slices.inputs, reads), (slices.outputs, writes))
    return any(len(some) <= (1 - WORTHWHILE) * len(kept) for kept, some in sides)


def inputs_read(flow: Flow, op: Op, site: Site) -> Tensor:
    """Return which inputs a layer reads with a non-zero weight where they are not zero."""
    read = flow.read_by.get(op.name)
    if read is None:
        return torch.zeros(len(site.inputs), dtype=torch.bool)
    return somewhere(channels_of(flow.alive[op.inputs()[0]] * read, site.dim), [1])


def channels_of(value: Tensor, dim: int) -> Tensor:
    """Return a value with one row per channel."""
    return value.movedim(dim, 0).reshape(value.shape[dim], -1)


def reason_of(site: Site, idle: Tensor, busy: Mapping[str, Tensor], flow: Flow) -> str:
    """Say why outputs that a module could do without are kept: the most frequent cause."""
    if not bool(idle.any()):
        return ""
    roots = flow.labels.find(site.outputs)
    fixed = [flow.labels.why_fixed(int(i)) for i in site.outputs[idle & (roots == FIXED)]]
    causes = Counter(fixed)
    tied = roots[idle & (roots != FIXED)]
    for name, other in flow.sites.items():
        partners = flow.labels.find(other.outputs)[busy[name]]
        count = int(torch.isin(tied, partners).sum())
        if count and name != site.module:
            causes[f"coupled to `{name}`, which is not zero there"] += count
    if not causes:
        return "every group of a grouped convolution, and every layer, keeps as many as it must"
    return causes.most_common(1)[0][0]
