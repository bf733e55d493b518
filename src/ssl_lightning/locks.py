"""Locked groups: zero from the moment they are locked to the end of training, whatever happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.groups import GroupSet, Member, zero_groups_


class GroupLocks:
    """Which groups of which sets must stay zero.

    Keeping a group at zero means writing zero after everything that may have moved it: the
    optimizer's step (momentum, weight decay), averaging of weights, loading a checkpoint.

    Example:
        >>> group_set = GroupSet("layer", "filter", (Member("w", (2, 2), (0,)),))
        >>> weights = {"w": torch.ones(2, 2)}
        >>> locks = GroupLocks()
        >>> locks.lock(group_set, torch.tensor([True, False]))
        1
        >>> locks.enforce_(weights)
        >>> weights["w"]
        tensor([[0., 0.],
                [1., 1.]])
    """

    def __init__(self) -> None:
        self._locked: dict[str, tuple[GroupSet, Tensor]] = {}

    def __len__(self) -> int:
        return sum(int(mask.sum()) for _, mask in self._locked.values())

    def lock(self, group_set: GroupSet, mask: Tensor) -> int:
        """Lock groups, in addition to those that are locked already.

        Args:
            group_set: the groups.
            mask: ``(num_groups,)`` bool, True for the groups to lock.

        Returns:
            How many of them were not locked before.
        """
        mask = mask.detach().cpu()
        before = self.mask(group_set)
        if bool(mask.any()):
            self._locked[group_set.name] = (group_set, before | mask)
        return int((mask & ~before).sum())

    def mask(self, group_set: GroupSet) -> Tensor:
        """Return which groups of a set are locked, shape ``(num_groups,)``, bool."""
        _, mask = self._locked.get(group_set.name, (None, None))
        return torch.zeros(group_set.num_groups, dtype=torch.bool) if mask is None else mask

    def enforce_(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        """Zero every locked group in ``tensors``, whose names start with ``prefix``."""
        if not self._locked:
            return
        if prefix:
            cut = len(prefix)
            tensors = {name[cut:]: t for name, t in tensors.items() if name.startswith(prefix)}
        for group_set, mask in self._locked.values():
            zero_groups_(group_set, mask, tensors)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return plain lists and numbers that :meth:`load_state_dict` reads."""
        return [
            {
                "layer": group_set.layer,
                "kind": group_set.kind,
                "members": [plain(m) for m in group_set.members],
                "companions": [plain(m) for m in group_set.companions],
                "locked": mask.nonzero().flatten().tolist(),
            }
            for group_set, mask in self._locked.values()
        ]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Restore the locks that :meth:`state_dict` described."""
        self._locked = {}
        for entry in state:
            members, companions = (
                tuple(Member(name, *map(tuple, sizes)) for name, *sizes in entry[part])
                for part in ("members", "companions")
            )
            group_set = GroupSet(entry["layer"], entry["kind"], members, companions)
            mask = torch.zeros(group_set.num_groups, dtype=torch.bool)
            mask[entry["locked"]] = True
            self._locked[group_set.name] = (group_set, mask)


def plain(member: Member) -> tuple[str, list[int], list[int], list[int]]:
    """Return a member as plain values."""
    return member.parameter, list(member.shape), list(member.index_dims), list(member.index)
