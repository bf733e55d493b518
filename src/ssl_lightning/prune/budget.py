"""The number of groups whose removal leaves a share of the multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ssl_lightning.compaction import apply_plan, make_plan
from ssl_lightning.graph import ExampleInput, working_copy
from ssl_lightning.groups import GroupSet, zero_groups_
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.measure import count_macs

TOLERANCE = 0.02  # of the dense MACs


CLOSE_ENOUGH = 0.01  # of the dense MACs: the search ends


def within_budget(
    model: nn.Module,
    example_input: ExampleInput,
    group_sets: Sequence[GroupSet],
    order: Tensor,
    budget: float,
    rule: Callable[[Tensor], Tensor],
) -> tuple[Tensor, tuple[int, int]]:
    """Return the groups to zero so that a share of the MACs is retained, and MACs before and after.

    ``rule`` turns the first so many of ``order`` into the groups that are really zeroed for them.

    Raises:
        ValueError: if no number of groups comes near enough.
    """
    dense = count_macs(model, example_input)

    def macs_after(count: int) -> int:
        small = working_copy(model)
        zero_(small, group_sets, rule(order[:count]))
        return count_macs(apply_plan(small, make_plan(small, example_input)), example_input)

    goal, near = budget * dense, CLOSE_ENOUGH * dense
    count, after = search(macs_after, len(order), dense, goal, near)
    if abs(after - goal) > TOLERANCE * dense:
        lowest = macs_after(len(order)) / dense
        raise ValueError(
            f"prune_: macs={budget} cannot be reached within {TOLERANCE}. These groups come to "
            f"{after / dense:.3f}, and with one group of each set retained {lowest:.3f}. Give a "
            "share that they reach, or other groups."
        )
    return rule(order[:count]), (dense, after)


def search(
    cost: Callable[[int], int], most: int, dense: float, goal: float, tolerance: float
) -> tuple[int, int]:
    """Find the number from 0 to ``most`` whose cost, which falls, is nearest to a goal.

    Interpolation and bisection take turns: few steps where the cost falls evenly, and never many.

    Args:
        cost: of a number; slow.
        most: the largest number.
        dense: about the cost of 0.
        goal: the cost wanted.
        tolerance: the search ends at the first cost that is so near to the goal.

    Returns:
        The number and its cost.

    Example:
        >>> search(lambda n: 100 - n, 90, dense=100.0, goal=33.0, tolerance=0.0)
        (67, 33)
    """
    low, high, above, below = 0, most, dense, 0.0
    tried: dict[int, int] = {}
    while low <= high:
        share = 0.5 if len(tried) % 2 else (above - goal) / max(above - below, 1e-9)
        middle = low + round(min(max(share, 0.0), 1.0) * (high - low))
        found = tried[middle] = cost(middle)
        if abs(found - goal) <= tolerance:
            break
        if found > goal:
            low, above = middle + 1, found
        else:
            high, below = middle - 1, found
    best = min(tried, key=lambda n: abs(tried[n] - goal))
    return best, tried[best]


@torch.no_grad()
def zero_(model: nn.Module, group_sets: Sequence[GroupSet], chosen: Tensor) -> list[Tensor]:
    """Zero the groups of those numbers in place; return one mask per group set."""
    sizes = [s.num_groups for s in group_sets]
    zero = torch.zeros(sum(sizes), dtype=torch.bool)
    zero[chosen] = True
    masks = list(zero.split(sizes))
    parameters = named_tensors(model)
    for group_set, mask in zip(group_sets, masks, strict=True):
        zero_groups_(group_set, mask, parameters)
    return masks
