"""The order in which groups go, over all sets, and numbers of groups that machines like."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ssl_lightning.groups import GroupSet, Member


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


def units(
    group_sets: Sequence[GroupSet], parameters: Mapping[str, Tensor], multiple: int
) -> list[int]:
    """Return for each set of which multiple groups are to be retained, for widths of a multiple.

    A group of several channels (an attention head, a channel of each group of a convolution) needs
    fewer of them. Sets of fewer groups take half of the multiple, and so on; depth groups and
    groups in which no single dimension numbers channels (kernels, single weights) take 1.

    Args:
        group_sets: the groups.
        parameters: name -> parameter.
        multiple: of channels.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> rows = GroupSet("a", "filter", (Member("a", (24, 5), (0,)),))
        >>> heads = GroupSet("b", "head", (Member("b", (3, 4, 8, 5), (1,)),))
        >>> units([rows, heads], {"a": torch.zeros(24, 5), "b": torch.zeros(96, 5)}, 32)
        [16, 4]
    """
    found = []
    for group_set in group_sets:
        channels: Counter[str] = Counter()  # in a group, of each parameter
        for member in group_set.members:
            shape = tuple(parameters[member.parameter].shape)
            channels[member.parameter] += channels_of(member, shape)
        fewest = min(channels.values())
        unit = multiple // math.gcd(multiple, fewest) if fewest else 1
        while unit > group_set.num_groups:
            unit //= 2
        found.append(unit)
    return found


def channels_of(member: Member, shape: tuple[int, ...]) -> int:
    """Return how many positions a group has in the dimension of a parameter that numbers groups.

    0 if there is no such dimension, or there are several.

    Args:
        member: the parameter's part in a group set.
        shape: of the parameter.

    Example:
        >>> grouped = Member("w", (32, 4, 4, 3, 3), (1,))
        >>> channels_of(grouped, (128, 4, 3, 3)), channels_of(Member("w", (8, 8), (0, 1)), (8, 8))
        (32, 0)
        >>> channels_of(Member("scale", (48, 1, 1), (1,)), (48,))  # one group of all channels
        48
    """
    owners: list[int] = []  # of each dimension of the view, the parameter's
    for dim, size in enumerate(shape):
        product = 1
        while len(owners) < len(member.shape) and (product < size or dim not in owners):
            product *= member.shape[len(owners)]
            owners.append(dim)
    owners += [len(shape) - 1] * (len(member.shape) - len(owners))  # of size 1, at the end
    dims = {owners[d] for d in member.index_dims}
    if len(dims) != 1:
        return 0
    return 1 if member.index else shape[dims.pop()] // member.num_groups


def mask_in_multiples(group_set: GroupSet, scores: Tensor, mask: Tensor, unit: int) -> Tensor:
    """Return which groups of one set to zero instead of others: see :func:`in_multiples`.

    Args:
        group_set: the groups.
        scores: ``(num_groups,)``, their importance, 0 for groups that are zero.
        mask: ``(num_groups,)`` bool, not True for all.
        unit: of which multiple groups are retained.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> rows = GroupSet("a", "filter", (Member("a", (5, 1), (0,)),))
        >>> scores = torch.tensor([3.0, 0.0, 4.0, 5.0, 2.0])
        >>> mask_in_multiples(rows, scores, scores <= 2, unit=2)
        tensor([False,  True, False, False, False])
    """
    order = ranking([group_set], [scores.cpu()])
    chosen = mask.cpu().nonzero().flatten()
    zero = torch.zeros(len(mask), dtype=torch.bool)
    zero[in_multiples([group_set], [scores.cpu()], order, chosen, [unit])] = True
    return zero.to(mask.device)


def in_multiples(
    group_sets: Sequence[GroupSet],
    scores: Sequence[Tensor],
    order: Tensor,
    chosen: Tensor,
    units: Sequence[int],
) -> Tensor:
    """Return the groups to zero instead of ``chosen``, so that multiples are retained.

    In each set that loses any, as many are retained as is the multiple nearest to the number
    otherwise; all, if there are fewer. Groups that are zero already count as lost, and none is
    retained by being spared: if too few others are left, it is the multiple below.

    Args:
        group_sets: the groups, numbered through over all sets.
        scores: their importance, 0 for groups that are zero.
        order: numbers of all groups that may be zeroed, least important first.
        chosen: some of them.
        units: of which multiple groups are retained in each set.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> sets = [GroupSet("a", "filter", (Member("a", (9, 1), (0,)),))]
        >>> order, scores = torch.arange(8), [torch.arange(1.0, 10.0)]
        >>> [len(in_multiples(sets, scores, order, order[:n], units=[4])) for n in (0, 2, 4, 8)]
        [0, 1, 5, 5]
    """
    sizes = torch.tensor([s.num_groups for s in group_sets])
    owner = torch.arange(len(sizes)).repeat_interleave(sizes)
    zeroed = owner[chosen].bincount(minlength=len(sizes)).tolist()
    result = []
    for number, (size, lost, unit) in enumerate(zip(sizes.tolist(), zeroed, units, strict=True)):
        mine = order[owner[order] == number]
        left = int((scores[number] > 0).sum())
        lost = max(lost, size - left)
        if unit == 1 or not lost or left < unit:
            result.append(chosen[owner[chosen] == number])
            continue
        retained = max(1, round((size - lost) / unit)) * unit
        if retained > left:
            retained = size if left == size else left // unit * unit
        result.append(mine[: size - retained])
    return torch.cat(result)


def blocks_of(
    group_sets: Sequence[GroupSet],
    scores: Sequence[Tensor],
    order: Tensor,
    units: Sequence[int],
) -> list[tuple[int, Tensor]]:
    """Return the groups that may be zeroed in blocks, the least important block first.

    After each block of a set, a multiple of its unit is retained, at least one unit. A block is
    as important as its groups are on average. Groups that are zero already go with the first.

    Args:
        group_sets: the groups, numbered through over all sets.
        scores: their importance, 0 for groups that are zero.
        order: numbers of all groups that may be zeroed, least important first.
        units: of which multiple groups are retained in each set.

    Returns:
        The number of the set, and the numbers of the groups, of each block.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> sets = [GroupSet("a", "filter", (Member("a", (9, 1), (0,)),))]
        >>> blocks = blocks_of(sets, [torch.arange(1.0, 10.0)], torch.arange(8), units=[4])
        >>> [groups.tolist() for _, groups in blocks]
        [[0], [1, 2, 3, 4]]
    """
    sizes = torch.tensor([s.num_groups for s in group_sets])
    owner = torch.arange(len(sizes)).repeat_interleave(sizes)
    values = torch.cat([score.double() for score in scores])
    found: list[tuple[float, int, Tensor]] = []
    for number, (size, unit) in enumerate(zip(sizes.tolist(), units, strict=True)):
        mine, left = order[owner[order] == number], int((scores[number] > 0).sum())
        unit = unit if left >= unit else 1
        first = size - left // unit * unit
        last = len(mine) if unit == 1 else size - unit
        cuts = [0, *(cut for cut in range(first, last + 1, unit) if cut > 0)]
        for start, end in pairwise(cuts):
            block = mine[start:end]
            found.append((float(values[block].mean()), number, block))
    return [(number, block) for _, number, block in sorted(found, key=lambda each: each[0])]
