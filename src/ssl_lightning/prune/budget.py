"""The groups whose removal brings a network's cost down to its targets, and no further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from ssl_lightning.costs import Check, Costs
from ssl_lightning.graph import working_copy
from ssl_lightning.groups import GroupSet, zero_groups_
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.measure import count_macs
from ssl_lightning.measure.left import CompactForm
from ssl_lightning.progress import track
from ssl_lightning.prune.first_within import first_within
from ssl_lightning.prune.ranking import blocks_of, ranking, units

NEAR = 0.995
"""The search ends at costs between this share of the limit and the limit."""

ATTEMPTS = 4
"""How often a block with which the cost falls under that is left out, for smaller ones after it."""

ROUNDS, TOLERANCE = 4, 0.03
"""Most searches where costs are predicted; after each, the network found is measured, and if the
prediction was off by more than the tolerance, the next search follows the corrected one."""


LEAST_SAVED = 1e-9
"""Groups that save nothing come last, in the order of their scores."""


class UnreachableError(ValueError):
    """The groups there are, all but one of each set zeroed, leave more than the budget."""


@dataclass(frozen=True)
class Choice:
    """Groups to zero, and what the compact network costs then.

    Attributes:
        masks: one per group set, ``(num_groups,)`` bool, True for the groups to zero.
        costs: resource -> cost of the compact network; measured where it was predicted.
        shares: resource -> the same as a share of the dense network's.
        checks: resource that is predicted -> what was predicted of this network, and measured.
        first: the same of the network that was found first, before any but the dense one was
            measured.
    """

    masks: list[Tensor]
    costs: dict[str, float]
    shares: dict[str, float]
    checks: dict[str, Check] = field(default_factory=dict)
    first: dict[str, Check] = field(default_factory=dict)

    def measured(self) -> dict[str, float]:
        """Return resource -> what was measured, of those that are predicted otherwise."""
        return {name: check.measured for name, check in self.checks.items()}


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
    in_place: bool = False,
    per_cost: bool = False,
) -> Choice:
    """Choose the least important groups whose removal brings all costs down to their limits.

    As few as possible; but a group that costs more than what is left to save is passed over, if
    smaller ones after it come nearer to the limit. A limit on the depth is kept by depth groups,
    the others by all groups that there are.

    Costs that are only predicted (latency) are measured once groups are found, and the search is
    made again with the corrected prediction, four times at most. What is returned is the network
    measured nearest to its limit; it may exceed that by the tolerance of 3 %, or by more if the
    last search did not do better.

    Args:
        model: the network.
        form: gives its compact form.
        group_sets: the groups to choose from.
        scores: their importance, one tensor ``(num_groups,)`` per set.
        costs: what to compare with.
        multiple: of which multiple groups are retained in sets that lose any.
        retained: layer -> why outputs of it are in no group, for the message.
        in_place: whether the groups are zeroed in the network itself, not in a copy, which
            would be captured anew each time.
        per_cost: whether scores are rises of an error: groups of which it rises least per cost that
            is saved go first, so that the sum of rises is the least for that cost. What a set saves
            is asked for once, with half of its groups.

    Raises:
        UnreachableError: if they cannot; it says what is left and why.
    """
    network = model if in_place else working_copy(model)
    chosen = [torch.zeros(s.num_groups, dtype=torch.bool) for s in group_sets]
    depth = [i for i, s in enumerate(group_sets) if s.kind == "depth"]
    others = [i for i in range(len(group_sets)) if i not in depth]
    scores = list(scores)
    checks, first = dict[str, Check](), dict[str, Check]()
    for resources, numbers in phases_of(costs, depth, others, apart=per_cost):
        sets, mine = [group_sets[i] for i in numbers], [scores[i] for i in numbers]
        part = Search(network, form, sets, mine, costs, resources, multiple, dict(retained or {}))
        if per_cost:
            part.divide_by_savings_()
        rounds = part.settle()
        checks, first = checks | rounds[0].checks, first | rounds[-1].checks
        for i, more in zip(numbers, to_masks(sets, rounds[0].chosen), strict=True):
            chosen[i] |= more
            scores[i] = scores[i] * ~more
        part.left(rounds[0].chosen)
    found = form.ask(network, costs.of) | {name: c.measured for name, c in checks.items()}
    return Choice(chosen, found, costs.shares(found), checks, first)


def phases_of(
    costs: Costs, depth: list[int], others: list[int], *, apart: bool
) -> list[tuple[tuple[str, ...], list[int]]]:
    """Return the searches to make one after the other: resources, and numbers of sets.

    Args:
        costs: with their limits.
        depth: numbers of the sets of depth groups.
        others: of all other sets.
        apart: whether each resource has a search of its own, the one that has to fall most first,
            since groups that save much of one may save nothing of another.
    """
    names = [name for name in costs.limits if name != "depth"]
    sets = others if "depth" in costs.limits else depth + others
    names.sort(key=lambda name: costs.limits[name] / costs.dense[name])
    found: list[tuple[tuple[str, ...], list[int]]] = []
    if "depth" in costs.limits:
        found.append((("depth",), depth))
    if apart:
        return found + [((name,), sets) for name in names]
    return [*found, (tuple(names), sets)] if names else found


@dataclass(frozen=True)
class Round:
    """The groups that one search found.

    Attributes:
        chosen: their numbers, through over all sets.
        checks: resource that is predicted -> what was predicted without them, and measured.
        excess: cost in units of the limit, of the resource where that is largest.
    """

    chosen: Tensor
    checks: dict[str, Check]
    excess: float


@dataclass
class Search:
    """Finds the smallest number of groups, least important first, that keeps some limits.

    The network is a copy of its own, in which groups are zeroed.
    """

    network: nn.Module
    form: CompactForm
    sets: list[GroupSet]
    scores: list[Tensor]
    costs: Costs
    resources: tuple[str, ...]
    multiple: int
    retained: dict[str, str]

    def __post_init__(self) -> None:
        self.known: dict[bytes, dict[str, float]] = {}
        parameters = named_tensors(self.network)
        names = {name for group_set in self.sets for name in group_set.parameters()}
        self.before = {name: parameters[name].detach().clone() for name in names}

    @cached_property
    def blocks(self) -> list[tuple[int, Tensor]]:
        """Groups that go together so that multiples are retained, least important first."""
        order = ranking(self.sets, self.scores)
        multiples = units(self.sets, named_tensors(self.network), self.multiple)
        return blocks_of(self.sets, self.scores, order, multiples)

    def divide_by_savings_(self) -> None:
        """Divide scores by what a group of their set saves, in units of the limits."""
        before, start = self.excess(torch.zeros(0, dtype=torch.long)), 0
        for number, (group_set, scores) in enumerate(zip(self.sets, self.scores, strict=True)):
            order = start + scores.argsort(stable=True)
            start += group_set.num_groups
            left = int((scores > 0).sum())  # the others are zero, which saves nothing more
            half = min(-(-left // 2), left - (group_set.kind != "depth"))  # one is retained
            if half > 0:
                saved = (before - self.excess(order[: len(order) - left + half])) / half
                self.scores[number] = scores / max(saved, LEAST_SAVED)

    def settle(self) -> list[Round]:
        """Search until what was found is measured to cost what was predicted; at most 4 times.

        Returns:
            The best round, and the first.
        """
        rounds: list[Round] = []
        for _ in track(range(ROUNDS), "searching"):
            chosen = self.choose()
            if any(torch.equal(chosen, other.chosen) for other in rounds):
                break
            checks = self.measure(chosen)
            costs = self.costs.corrected(self.raw(chosen))
            costs |= {name: check.measured for name, check in checks.items()}
            rounds.append(Round(chosen, checks, self.costs.worst(costs)))
            if all(abs(check.error) <= TOLERANCE for check in checks.values()):
                break
        return [min(rounds, key=lambda found: abs(found.excess - 1)), rounds[0]]

    def choose(self) -> Tensor:
        """Return the numbers of the groups to zero, through over all sets."""
        if not self.sets:
            kinds = "depth" if self.resources == ("depth",) else "other"
            raise UnreachableError(
                f"Expected groups that bring down {', '.join(self.resources)}, got no {kinds} "
                "groups. Give some, such as `penalties: [{kind: "
                f"{'depth' if kinds == 'depth' else 'coupled'}}}]`."
            )
        blocks = self.blocks
        everything = joined(blocks)
        if self.excess(everything) > 1 and not self.within_measured(everything):
            blocks = self.without_cutting(blocks)
            if not blocks:
                raise UnreachableError(self.why_not(everything))
            everything = joined(blocks)
        best, used, least = everything, 0.0, 0
        for _ in range(ATTEMPTS):
            excess = partial(self.excess_of_first, blocks)
            count, found = first_within(excess, least, len(blocks), NEAR)
            if used < found <= 1:
                best, used = joined(blocks[:count]), found
            if found > 1 or used >= NEAR or not count:
                break
            large = blocks[count - 1][0]  # no more of this set: its next blocks are as large
            rest = [block for block in blocks[count:] if block[0] != large]
            least, blocks = count - 1, [*blocks[: count - 1], *rest]
        return best if used >= NEAR else self.given_back(best)

    def without_cutting(self, blocks: list[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
        """Return the blocks but the most important layer that has to remain, or none at all.

        Without all layers that have a shortcut a network may be cut, though it is not without all
        but one: the class token of a Vision Transformer sees the image by attention alone. What is
        cut cannot become smaller.
        """
        for last in reversed(blocks):
            others = [block for block in blocks if block is not last]
            if self.sets[last[0]].kind == "depth" and self.excess(joined(others)) <= 1:
                return others
        return []

    def given_back(self, chosen: Tensor) -> Tensor:
        """Return fewer groups: the most important ones are given back as the limits allow.

        Of a few sets only: each asks for several costs.
        """
        found = set(chosen.tolist())
        blocks = [block for block in self.blocks if found.issuperset(block[1].tolist())]
        for number in list(dict.fromkeys(n for n, _ in reversed(blocks)))[:ATTEMPTS]:
            mine = [block for block in blocks if block[0] == number]
            others = [block for block in blocks if block[0] != number]
            excess = partial(self.excess_of_first, mine, also=joined(others))
            count, _ = first_within(excess, 0, len(mine), NEAR)
            blocks = [*others, *mine[:count]]
        return joined(blocks)

    def excess_of_first(
        self, blocks: Sequence[tuple[int, Tensor]], count: int, also: Tensor | None = None
    ) -> float:
        """Return the excess without the first so many blocks, and without others."""
        first = joined(blocks[:count])
        return self.excess(first if also is None else torch.cat([also, first]))

    def within_measured(self, chosen: Tensor) -> bool:
        """Whether the cost without those groups is within the limits once it is measured."""
        return bool(self.measure(chosen)) and self.excess(chosen) <= 1

    def measure(self, chosen: Tensor) -> dict[str, Check]:
        """Measure what is only predicted without those groups; empty if nothing is."""
        if not self.costs.predicted(self.resources):
            return {}
        return self.form.ask(
            self.left(chosen), lambda small: self.costs.calibrate_(small, self.resources)
        )

    def left(self, chosen: Tensor) -> nn.Module:
        """Return the network with those groups zeroed, and others as they were.

        It is one object, whose compact form is asked for without capturing it again.
        """
        parameters = named_tensors(self.network)
        for name, value in self.before.items():
            parameters[name].copy_(value)
        zero_(self.network, self.sets, to_masks(self.sets, chosen))
        return self.network

    def raw(self, chosen: Tensor) -> dict[str, float]:
        """Return the costs without those groups, before they are corrected; asked once."""
        key = chosen.sort().values.numpy().tobytes()
        if key not in self.known:
            self.known[key] = self.form.ask(
                self.left(chosen), lambda small: self.costs.raw(small, self.resources)
            )
        return self.known[key]

    def excess(self, chosen: Tensor) -> float:
        """Return the cost without those groups, in units of the limit."""
        return self.costs.worst(self.costs.corrected(self.raw(chosen)))

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
            least = f"{self.multiple} of its channels, or all if it has fewer, are retained"
            floor = least if self.multiple > 1 else ""
            floor = floor or "one group of it is retained"
            reason = self.retained.get(layer) or (
                floor if layer in writes else "none of its groups may go"
            )
            texts.append(f"`{layer or 'the model'}` ({macs[name] / total:.0%}: {reason})")
        return ", ".join(texts)


def joined(blocks: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Return the numbers of the groups in blocks."""
    return torch.cat([torch.zeros(0, dtype=torch.long), *(groups for _, groups in blocks)])


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
