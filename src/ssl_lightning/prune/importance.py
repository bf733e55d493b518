"""How important a group is, as its weights say: what groups are ranked by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ssl_lightning.groups import GroupSet, Member, group_norms, nonzero_groups
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


def median_distances(group_set: GroupSet, tensors: Mapping[str, Tensor]) -> Tensor:
    r"""Return the sum of the distances of every group to the others of its set, 0 for zero groups.

    The group near the geometric median of all is what the others can replace, whatever its norm:

    .. math:: \sum_{j} \|w_g - w_j\|_2

    Only weights count, no biases and no scales of norms, and only groups that are not zero.

    Raises:
        ValueError: for depth groups, each of which is alone in its set.

    Reference:
        He et al., Filter pruning via geometric median for deep convolutional neural networks
        acceleration, 2019, equation 6.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> rows = GroupSet("layer", "filter", (Member("w", (3, 1), (0,)),))
        >>> median_distances(rows, {"w": torch.tensor([[1.0], [2.0], [5.0]])})
        tensor([5., 4., 7.])
    """
    if group_set.kind == "depth":
        raise ValueError(
            f"importance='fpgm' compares the groups of a set with each other, and {group_set.name} "
            "is alone in its set. Give importance='l2' for depth groups."
        )
    members = [m for m in group_set.members if len(m.shape) > 1] or list(group_set.members)
    rows = torch.cat([vectors(member, tensors[member.parameter]) for member in members], 1)
    alive = nonzero_groups(group_set, tensors)
    if int(alive.sum()) < 2:
        return alive.to(rows)
    distances = torch.cdist(rows, rows[alive], compute_mode="donot_use_mm_for_euclid_dist")
    tiny = torch.finfo(rows.dtype).tiny  # groups that are all alike are not zero
    return distances.sum(1).clamp_min(tiny) * alive


def vectors(member: Member, tensor: Tensor) -> Tensor:
    """Return what a parameter has of each group, as rows: ``(num_groups, elements)``."""
    view = member.view(tensor).to(norm_dtype(tensor))
    return view.movedim(member.index_dims, tuple(range(len(member.index_dims)))).reshape(
        member.num_groups, -1
    )


def batch_norm_scales(group_set: GroupSet, tensors: Mapping[str, Tensor]) -> Tensor:
    r"""Return the mean :math:`|\gamma|` of the batch norms in every group, 0 for zero groups.

    They are compared between sets as they are, without regard to layers.

    Args:
        group_set: of which the scales of batch norms are members.
        tensors: name -> parameter or buffer: by its statistics a batch norm is known.

    Raises:
        ValueError: if no batch norm is in the groups.

    Reference:
        Liu et al., Learning efficient convolutional networks through network slimming, 2017.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> channels = GroupSet("norm", "coupled", (Member("norm.weight", (2,), (0,)),))
        >>> tensors = {"norm.weight": torch.tensor([-0.5, 0.0]), "norm.running_mean": torch.ones(2)}
        >>> batch_norm_scales(channels, tensors)
        tensor([0.5000, 0.0000])
    """
    scales = [m for m in group_set.members if is_scale(m.parameter, tensors)]
    if not scales:
        raise ValueError(
            f"importance='bn_scale' ranks groups by the scales of their batch norms, and "
            f"{group_set.name} has none. Name layers before a batch norm (`layers`), or give "
            "importance='l2'."
        )
    parts = []
    for member in scales:
        values = member.view(tensors[member.parameter]).to(norm_dtype(tensors[member.parameter]))
        parts.append(member.reduce(values.abs(), torch.mean))
    found = torch.stack(parts).mean(0)
    alive = nonzero_groups(group_set, tensors)
    return found.clamp_min(torch.finfo(found.dtype).tiny) * alive


def is_scale(parameter: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a parameter is the scale of a batch norm."""
    module, _, name = parameter.rpartition(".")
    statistics = f"{module}.running_mean" if module else "running_mean"
    return name == "weight" and statistics in tensors


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
    "fpgm": median_distances,
    "bn_scale": batch_norm_scales,
    "random": random_scores,
    "uniform": uniform_scores,
}
"""Name -> importance of a group; for ranking it is divided by the mean of its set, but that of
``bn_scale``, which is compared as it is.

Two are controls: ``random`` retains any groups that are not zero, ``uniform`` an equal share of
each set.
"""

NORMS = ("l1", "l2")
"""Importances that are norms, to which a threshold applies."""

ABSOLUTE = ("bn_scale",)
"""Importances that are compared between sets as they are."""

SIZE_POWERS = {"l2": 0.5, "l1": 1.0, "fpgm": 0.5, "random": 0.0, "uniform": 0.0}
"""Importance -> power of the group size by which it grows."""
