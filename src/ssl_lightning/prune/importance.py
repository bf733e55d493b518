"""How important a group is: its norm, by which groups are ranked."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ssl_lightning.groups import GroupSet, group_norms, nonzero_groups
from ssl_lightning.groups.sets import norm_dtype


def l1_norms(group_set: GroupSet, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the absolute values in every group, shape ``(num_groups,)``.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> rows = GroupSet("layer", "filter", (Member("w", (2, 2), (0,)),))
        >>> l1_norms(rows, {"w": torch.tensor([[3.0, -4.0], [0.0, 1.0]])})
        tensor([7., 1.])
    """
    parts = []
    for member in group_set.members:
        tensor = tensors[member.parameter]
        values = member.view(tensor).to(norm_dtype(tensor)).abs()
        parts.append(member.reduce(values, torch.sum))
    return torch.stack(parts).sum(0)


def random_scores(group_set: GroupSet, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a random number above 0 for every group, 0 for groups that are zero.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> rows = GroupSet("layer", "filter", (Member("w", (2, 2), (0,)),))
        >>> random_scores(rows, {"w": torch.tensor([[3.0, -4.0], [0.0, 0.0]])}) > 0
        tensor([ True, False])
    """
    nonzero = nonzero_groups(group_set, tensors).cpu()
    return (1.0 - torch.rand(group_set.num_groups)) * nonzero


def uniform_scores(group_set: GroupSet, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return numbers in equal steps for every group, 0 for groups that are zero.

    Ranked together, groups go from all sets alike: what remains is a uniformly narrower network.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> rows = GroupSet("layer", "filter", (Member("w", (2, 2), (0,)),))
        >>> uniform_scores(rows, {"w": torch.tensor([[3.0, -4.0], [0.0, 1.0]])})
        tensor([0.5000, 1.0000])
    """
    nonzero = nonzero_groups(group_set, tensors).cpu()
    count = group_set.num_groups
    return torch.arange(1, count + 1) / count * nonzero


IMPORTANCES: dict[str, Callable[..., Tensor]] = {
    "l2": group_norms,
    "l1": l1_norms,
    "random": random_scores,
    "uniform": uniform_scores,
}
"""Name -> norm of a group; for ranking it is divided by the mean norm of its set.

Two are controls: ``random`` retains any groups that are not zero, ``uniform`` an equal share of
each set.
"""

CONTROLS = ("random", "uniform")
"""Importances that no weight decides."""

SIZE_POWERS = {"l2": 0.5, "l1": 1.0, "random": 0.0, "uniform": 0.0}
"""Importance -> power of the group size by which it grows."""
