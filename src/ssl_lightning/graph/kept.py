"""From the masks and labels of a finished analysis to the channels that each module keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Site, as_list
from ssl_lightning.graph.labels import FIXED
from ssl_lightning.graph.ops import Op


@dataclass(frozen=True)
class SiteSlices:
    """What is left of one module.

    Attributes:
        inputs: kept input channels, ascending.
        outputs: kept output channels, ascending.
        of: number of input and output channels before.
        zero: whether the module's result is zero (or never read) on all that is kept.
        constant: whether it depends on none of the inputs that are kept: only the bias is left.
        idle: how many of the kept outputs this module alone could do without.
        reason: why they are kept, "" if there are none.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    of: tuple[int, int]
    zero: bool
    constant: bool = False
    idle: int = 0
    reason: str = ""

    def shrinks(self) -> bool:
        """Whether the module loses anything."""
        return self.zero or self.constant or (len(self.inputs), len(self.outputs)) != self.of


def kept_slices(flow: Flow) -> dict[str, SiteSlices]:
    """Return what is left of every module whose slices are known."""
    useful = {op.name: list(useful_masks(flow, op)) for op in flow.trace.ops}
    keep = kept_labels(flow, useful)
    keep_one(flow, keep)
    balance_groups(flow, keep)
    busy = {name: busy_channels(site, flow) for name, site in flow.sites.items()}
    return {
        name: SiteSlices(
            inputs=indices(keep[flow.labels.find(site.inputs)]),
            outputs=indices(keep[flow.labels.find(site.outputs)]),
            of=(len(site.inputs), len(site.outputs)),
            zero=not bool(busy[name].any()),
            constant=is_constant(site, flow),
            idle=int((idle := keep[flow.labels.find(site.outputs)] & ~busy[name]).sum()),
            reason=reason_of(site, idle, busy, flow),
        )
        for name, site in flow.sites.items()
    }


def indices(mask: Tensor) -> tuple[int, ...]:
    """Return the positions at which a mask is True."""
    return tuple(mask.nonzero().flatten().tolist())


def useful_masks(flow: Flow, op: Op) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the labels of an operation's results and where they are both non-zero and needed."""
    for labels, alive, needed in zip(
        as_list(flow.slices[op.name]),
        as_list(flow.alive[op.name]),
        as_list(flow.needed[op.name]),
        strict=True,
    ):
        yield labels, (alive > 0) & (needed > 0)


def kept_labels(flow: Flow, useful: dict[str, list[tuple[Tensor, Tensor]]]) -> Tensor:
    """Return a mask over all label sets: True for those with a non-zero and needed element."""
    keep = torch.zeros(len(flow.labels.parent), dtype=torch.bool)
    keep[FIXED] = True
    for masks in useful.values():
        for labels, mask in masks:
            if labels.dim() and all(stride == 0 for stride in labels.stride()):
                found = labels.reshape(-1)[:1] if bool(mask.any()) else labels.reshape(-1)[:0]
            else:
                found = labels[mask]
            keep[flow.labels.find(found.unique())] = True
    return keep


def keep_one(flow: Flow, keep: Tensor) -> None:
    """Keep one input and output of every module: tensors without channels break poolings."""
    for site in flow.sites.values():
        for labels in (site.inputs, site.outputs):
            roots = flow.labels.find(labels)
            if len(roots) and not bool(keep[roots].any()):
                keep[roots[0]] = True


def balance_groups(flow: Flow, keep: Tensor) -> None:
    """Keep more slices until every group of a grouped convolution has equally many.

    A group that loses all of its channels goes; of the others, those with fewer channels left keep
    further ones. Changes ``keep`` in place.
    """
    grouped = [site for site in flow.sites.values() if site.groups > 1]
    added = True
    while added:
        added = False
        for site in grouped:
            for rows in group_rows(flow, site, keep):
                added |= balance(keep, rows)


def group_rows(flow: Flow, site: Site, keep: Tensor) -> list[Tensor]:
    """Return the labels of input and output channels, one row per group that stays."""
    inputs = flow.labels.find(site.inputs).view(site.groups, -1)
    outputs = flow.labels.find(site.outputs).view(site.groups, -1)
    stays = keep[outputs].any(1) | keep[inputs].any(1)
    return [inputs[stays], outputs[stays]]


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
    busy = torch.zeros(len(site.outputs), dtype=torch.bool)
    for op in site.ops:
        useful = (flow.alive[op.name] > 0) & (flow.needed[op.name] > 0)
        busy |= useful.movedim(site.dim, 0).reshape(len(busy), -1).any(1)
    return busy


def is_constant(site: Site, flow: Flow) -> bool:
    """Whether no run of the module reads anything that is not zero with a non-zero weight."""
    for op in site.ops:
        read = flow.read_by.get(op.name)
        if read is not None and bool((flow.alive[op.inputs()[0]] * read).any()):
            return False
    return True


def reason_of(site: Site, idle: Tensor, busy: dict[str, Tensor], flow: Flow) -> str:
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
