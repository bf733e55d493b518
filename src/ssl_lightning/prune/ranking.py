"""The order in which groups go, over all sets, and numbers of groups that machines like."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_lightning.groups import GroupSet


def relative(
    group_sets: Sequence[GroupSet], scores: Sequence[Tensor], size_power: float = 0.5
) -> list[Tensor]:
    """Return scores in units of the mean of their set, by which groups of all sets are compared.

    A depth group is alone in its set: it is compared with the other depth groups, per element.

    Args:
        group_sets: the groups.
        scores: one tensor ``(num_groups,)`` per set.
        size_power: power of the group size by which a score grows with it, 0.5 for 2-norms.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> sets = [GroupSet(name, "filter", (Member(name, (2, 1), (0,)),)) for name in "ab"]
        >>> relative(sets, [torch.tensor([1.0, 3.0]), torch.tensor([4.0, 4.0])])
        [tensor([0.5000, 1.5000]), tensor([1., 1.])]
    """
    scaled = [
        score / s.group_size**size_power if s.kind == "depth" else score
        for s, score in zip(group_sets, scores, strict=True)
    ]
    depth = [v for s, v in zip(group_sets, scaled, strict=True) if s.kind == "depth"]
    of_depth = torch.cat(depth).mean() if depth else torch.ones(())
    units = [
        of_depth if s.kind == "depth" else v.mean() for s, v in zip(group_sets, scaled, strict=True)
    ]
    return [v / unit.clamp_min(1e-30) for v, unit in zip(scaled, units, strict=True)]


def ranking(group_sets: Sequence[GroupSet], scores: Sequence[Tensor]) -> Tensor:
    """Return the numbers of all groups that may be zeroed, least important first.

    Groups are numbered through over all sets. The most important one of each set may not be zeroed.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> sets = [GroupSet(name, "filter", (Member(name, (3, 1), (0,)),)) for name in "ab"]
        >>> ranking(sets, [torch.tensor([3.0, 1.0, 5.0]), torch.tensor([0.0, 2.0, 0.5])])
        tensor([3, 5, 1, 0])
    """
    values = torch.cat([score.double() for score in scores])
    start = 0
    for group_set, score in zip(group_sets, scores, strict=True):
        if group_set.kind != "depth":
            values[start + int(score.argmax())] = math.inf
        start += len(score)
    order = values.argsort(stable=True)
    return order[values[order].isfinite()]


def in_multiples(
    group_sets: Sequence[GroupSet], order: Tensor, chosen: Tensor, multiple: int
) -> Tensor:
    """Return the groups to zero instead of ``chosen``, so that multiples are retained.

    Args:
        group_sets: the groups, numbered through over all sets.
        order: numbers of all groups that may be zeroed, least important first.
        chosen: some of them.
        multiple: of which a multiple is retained in every set that loses any and has as many.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> sets = [GroupSet("a", "filter", (Member("a", (9, 1), (0,)),))]
        >>> order = torch.arange(8)
        >>> [len(in_multiples(sets, order, order[:n], multiple=4)) for n in (0, 2, 4, 8)]
        [0, 1, 5, 5]
    """
    sizes = torch.tensor([s.num_groups for s in group_sets])
    owner = torch.arange(len(sizes)).repeat_interleave(sizes)
    zeroed = owner[chosen].bincount(minlength=len(sizes))
    result = []
    for number, (size, lost) in enumerate(zip(sizes.tolist(), zeroed.tolist(), strict=True)):
        mine = order[owner[order] == number]
        if multiple == 1 or not lost or size < multiple:
            result.append(chosen[owner[chosen] == number])
            continue
        retained = max(1, round((size - lost) / multiple)) * multiple
        result.append(mine[: max(0, size - retained)])
    return torch.cat(result)
