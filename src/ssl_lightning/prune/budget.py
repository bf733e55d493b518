"""The groups whose removal brings a network's cost down to its targets, and no further."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ssl_lightning.costs import Costs
from ssl_lightning.graph import working_copy
from ssl_lightning.groups import GroupSet, zero_groups_
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.measure import count_macs
from ssl_lightning.measure.left import CompactForm
from ssl_lightning.prune.ranking import in_multiples, ranking

NEAR = 0.995
"""The search ends at costs between this share of the limit and the limit."""

ATTEMPTS = 4
"""How often a group with which the cost falls under that is left out, for smaller ones after it."""


class UnreachableError(ValueError):
    """The groups there are, all but one of each set zeroed, leave more than the budget."""


@dataclass(frozen=True)
class Choice:
    """Groups to zero, and what the compact network costs then.

    Attributes:
        masks: one per group set, ``(num_groups,)`` bool, True for the groups to zero.
        costs: resource -> cost of the compact network.
        shares: resource -> the same as a share of the dense network's.
    """

    masks: list[Tensor]
    costs: dict[str, float]
    shares: dict[str, float]


@torch.no_grad()
def choose_groups(
    model: nn.Module,
    form: CompactForm,
    group_sets: Sequence[GroupSet],
    scores: Sequence[Tensor],
    costs: Costs,
    *,
    multiple: int = 1,
    retained: Mapping[str, str] | None = None,
) -> Choice:
    """Choose the least important groups whose removal brings all costs down to their limits.

    As few as possible; but a group that costs more than what is left to save is passed over, if
    smaller ones after it come nearer to the limit. A limit on the depth is kept by depth groups,
    the others by all groups that there are.

    Args:
        model: the network; unchanged.
        form: gives its compact form.
        group_sets: the groups to choose from.
        scores: their importance, one tensor ``(num_groups,)`` per set.
        costs: what to compare with.
        multiple: of which multiple groups are retained in sets that lose any.
        retained: layer -> why outputs of it are in no group, for the message.

    Raises:
        UnreachableError: if they cannot; it says what is left and why.
    """
    network = working_copy(model)
    chosen = [torch.zeros(s.num_groups, dtype=torch.bool) for s in group_sets]
    depth = [i for i, s in enumerate(group_sets) if s.kind == "depth"]
    others = [i for i in range(len(group_sets)) if i not in depth]
    phases = [(("depth",), depth), (tuple(n for n in costs.limits if n != "depth"), others)]
    if "depth" not in costs.limits:
        phases = [(tuple(costs.limits), depth + others)]
    for resources, numbers in phases:
        if not resources:
            continue
        sets, mine = [group_sets[i] for i in numbers], [scores[i] for i in numbers]
        masks = [chosen[i] for i in numbers]
        part = Search(network, form, sets, mine, costs, resources, multiple, dict(retained or {}))
        for mask, more in zip(masks, part.choose(), strict=True):
            mask |= more
        zero_(network, sets, masks)
    found = form.ask(network, costs.of)
    return Choice(chosen, found, costs.shares(found))


@dataclass
class Search:
    """Finds the smallest number of groups, least important first, that keeps some limits."""

    network: nn.Module
    form: CompactForm
    sets: list[GroupSet]
    scores: list[Tensor]
    costs: Costs
    resources: tuple[str, ...]
    multiple: int
    retained: dict[str, str]

    def choose(self) -> list[Tensor]:
        """Return one mask per set."""
        if not self.sets:
            kinds = "depth" if self.resources == ("depth",) else "other"
            raise UnreachableError(
                f"Expected groups that bring down {', '.join(self.resources)}, got no {kinds} "
                "groups. Give some, such as `penalties: [{kind: "
                f"{'depth' if kinds == 'depth' else 'coupled'}}}]`."
            )
        order = ranking(self.sets, self.scores)
        rule = partial(in_multiples, self.sets, order, multiple=self.multiple)
        if self.excess(rule(order)) > 1:
            raise UnreachableError(self.why_not(rule(order)))
        best, used, least = order, 0.0, 0
        for _ in range(ATTEMPTS):
            excess = partial(self.excess_of_first, rule, order)
            count, found = first_within(excess, least, len(order), NEAR)
            if used < found <= 1:
                best, used = rule(order[:count]), found
            if found > 1 or used >= NEAR or not count:
                break
            least, order = count - 1, torch.cat([order[: count - 1], order[count:]])
        return to_masks(self.sets, best)

    def excess_of_first(self, rule: Callable[[Tensor], Tensor], order: Tensor, count: int) -> float:
        """Return the excess without the first so many groups of an order."""
        return self.excess(rule(order[:count]))

    def left(self, chosen: Tensor) -> nn.Module:
        """Return a copy of the network with those groups zeroed."""
        network = working_copy(self.network)
        zero_(network, self.sets, to_masks(self.sets, chosen))
        return network

    def excess(self, chosen: Tensor) -> float:
        """Return the cost without those groups, in units of the limit."""

        def worst(small: nn.Module) -> float:
            return self.costs.worst(
                {name: self.costs.meters[name](small) for name in self.resources}
            )

        return self.form.ask(self.left(chosen), worst)

    def why_not(self, chosen: Tensor) -> str:
        """Say what is left when all groups that may go are gone, and why."""
        network = self.left(chosen)
        found = self.form.ask(network, self.costs.of)
        shares = self.costs.shares(found)
        reached = [
            f"{name}: {shares[name]:.3f} of {self.costs.limits[name] / self.costs.dense[name]:.3f}"
            for name in self.resources
            if found[name] > self.costs.limits[name]
        ]
        largest = self.form.ask(network, self.largest_layers)
        return (
            f"the budget cannot be reached with these groups ({'; '.join(reached)} of the dense "
            f"network's). With as few groups as possible, most of what is left is in {largest}. "
            "Give a larger budget, more layers or other kinds of groups"
            + (", or a smaller `multiple`." if self.multiple > 1 else ".")
        )

    def largest_layers(self, small: nn.Module) -> str:
        """Name the layers of a compact network with most multiply-adds, and why they have them."""
        macs = count_macs(small, self.form.inputs, per_layer=True)
        total = max(sum(macs.values()), 1)
        writes = {name.rpartition(".")[0] for s in self.sets for name in s.parameters()}
        texts = []
        for name in sorted(macs, key=lambda n: -macs[n])[:3]:
            layer = name.removesuffix(".layer")
            floor = f"{self.multiple} of its channels are retained" if self.multiple > 1 else ""
            floor = floor or "one group of it is retained"
            reason = self.retained.get(layer) or (
                floor if layer in writes else "none of its groups may go"
            )
            texts.append(f"`{layer or 'the model'}` ({macs[name] / total:.0%}: {reason})")
        return ", ".join(texts)


def first_within(
    excess: Callable[[int], float], least: int, most: int, near: float
) -> tuple[int, float]:
    """Find the smallest number from ``least`` to ``most`` whose excess, which falls, is at most 1.

    By interpolation, which takes few steps where it falls evenly; after some, bisection takes
    turns with it, so that they are never many.

    Args:
        excess: of a number; slow.
        least: the smallest number.
        most: the largest number.
        near: the search ends at the first excess between this and 1.

    Returns:
        The number and its excess; ``most`` if that of none is at most 1.

    Example:
        >>> number, found = first_within(lambda n: (100 - n) / 33, 0, 90, near=1.0)
        >>> number, found
        (67, 1.0)
    """
    low, above = least, excess(least)
    if above <= 1 or least >= most:
        return least, above
    high, below, known, tries = most + 1, 0.0, math.inf, 0
    while high - low > 1:
        share = 0.5 if tries > 4 and tries % 2 else (above - (1 + near) / 2) / (above - below)
        middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
        found, tries = excess(middle), tries + 1
        if near <= found <= 1:
            return middle, found
        if found > 1:
            low, above = middle, found
        else:
            high, below, known = middle, found, found
    return (high, known) if high <= most else (most, above)


def to_masks(group_sets: Sequence[GroupSet], chosen: Tensor) -> list[Tensor]:
    """Return one mask per group set for groups that are numbered through over all sets."""
    sizes = [s.num_groups for s in group_sets]
    zero = torch.zeros(sum(sizes), dtype=torch.bool)
    zero[chosen] = True
    return list(zero.split(sizes))


@torch.no_grad()
def zero_(model: nn.Module, group_sets: Sequence[GroupSet], masks: Sequence[Tensor]) -> None:
    """Zero groups in place."""
    parameters = named_tensors(model)
    for group_set, mask in zip(group_sets, masks, strict=True):
        zero_groups_(group_set, mask, parameters)
