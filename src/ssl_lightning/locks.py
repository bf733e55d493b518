"""Locked groups: zero from the moment they are locked to the end of training, whatever happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.groups import GroupSet, Member, zero_groups_
from ssl_lightning.groups.resolve import splits
from ssl_lightning.suggest import shortened


class GroupLocks:
    """Which groups of which sets must remain zero.

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
        self._elements: dict[str, Tensor] = {}
        self._copies: dict[tuple[str, torch.device], Tensor] = {}
        self._refusals: list[tuple[Any, str]] = []

    def __len__(self) -> int:
        return sum(int(mask.sum()) for _, mask in self._locked.values())

    def __bool__(self) -> bool:
        """Whether anything is locked (single elements count too, unlike in ``len``)."""
        return bool(self._locked) or bool(self._elements)

    def refuse(self, by: Any, reason: str) -> None:
        """Let no group be locked from now on, for a reason that errors say; "" ends it.

        Args:
            by: whoever says so (an attachment, of which copies are None: then it ends).
            reason: a sentence.

        Raises:
            ValueError: the reason, if anything is locked already.
        """
        self._refusals = [(who, why) for who, why in self._refusals if who not in (None, by)]
        if reason and self:
            raise ValueError(reason)
        if reason:
            self._refusals.append((by, reason))

    def _check(self, anything: bool) -> None:
        for who, reason in self._refusals if anything else ():
            if who is not None:
                raise ValueError(reason)

    def lock(self, group_set: GroupSet, mask: Tensor) -> int:
        """Lock groups, in addition to those that are locked already.

        Args:
            group_set: the groups.
            mask: ``(num_groups,)`` bool, True for the groups to lock.

        Returns:
            How many of them were not locked before.

        Raises:
            ValueError: if locked groups would not remain zero under the optimizer of the run.
        """
        mask = mask.detach().cpu()
        before = self.mask(group_set)
        if bool(mask.any()):
            self._check(True)
            self._locked[group_set.name] = (group_set, before | mask)
            self._copies.clear()
        return int((mask & ~before).sum())

    def mask(self, group_set: GroupSet) -> Tensor:
        """Return which groups of a set are locked, shape ``(num_groups,)``, bool."""
        _, mask = self._locked.get(group_set.name, (None, None))
        return torch.zeros(group_set.num_groups, dtype=torch.bool) if mask is None else mask

    def enforce_(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        """Zero every locked group in ``tensors``, whose names start with ``prefix``.

        Masks are copied to the tensors' device once, and again only when something more is locked:
        a training step copies nothing.
        """
        if not self:
            return
        if prefix:
            cut = len(prefix)
            tensors = {name[cut:]: t for name, t in tensors.items() if name.startswith(prefix)}
        for name, (group_set, mask) in self._locked.items():
            device = tensors[group_set.members[0].parameter].device
            zero_groups_(group_set, self._on(device, name, mask), tensors)
        for name, mask in self._elements.items():
            mask = self._on(tensors[name].device, name, mask)
            tensors[name].detach().masked_fill_(mask, 0.0)

    def _on(self, device: torch.device, name: str, mask: Tensor) -> Tensor:
        """Return a mask on a device; ``name`` is that of the group set or the parameter."""
        if mask.device == device:
            return mask
        if (name, device) not in self._copies:
            self._copies[name, device] = mask.to(device)
        return self._copies[name, device]

    def marks(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return which elements of parameters are locked.

        Args:
            tensors: qualified name -> parameter.

        Returns:
            Name -> bool tensor of the parameter's shape, for the parameters that have any.

        Example:
            >>> group_set = GroupSet("layer", "filter", (Member("w", (2, 2), (0,)),))
            >>> locks = GroupLocks()
            >>> _ = locks.lock(group_set, torch.tensor([True, False]))
            >>> locks.marks({"w": torch.ones(2, 2), "b": torch.ones(2)})
            {'w': tensor([[ True,  True],
                    [False, False]])}
        """
        ones = {name: torch.ones(tensor.shape) for name, tensor in tensors.items()}
        self.enforce_(ones)
        return {name: tensor == 0 for name, tensor in ones.items() if not bool(tensor.all())}

    def carry_over(self, marks: Mapping[str, Tensor], group_sets: Sequence[GroupSet]) -> None:
        """Lock these elements and nothing else: what locked groups become in compaction.

        Args:
            marks: those of :meth:`marks` that remain, by parameter name.
            group_sets: groups of the compact network; those of which everything is locked count
                as locked.
        """
        self._locked, self._copies = {}, {}
        self._elements = {n: m.bool().cpu() for n, m in marks.items() if bool(m.any())}
        for group_set in group_sets:
            parts = (*group_set.members, *group_set.companions)
            if all(part.parameter in self._elements for part in parts):
                masks = [p.reduce(p.view(self._elements[p.parameter]), torch.all) for p in parts]
                self.lock(group_set, torch.stack(masks).all(0))

    def state_dict(self) -> list[dict[str, Any]]:
        """Return plain lists and numbers that :meth:`load_state_dict` reads."""
        groups = [
            {
                "layer": group_set.layer,
                "kind": group_set.kind,
                "members": [plain(m) for m in group_set.members],
                "companions": [plain(m) for m in group_set.companions],
                "locked": mask.nonzero().flatten().tolist(),
            }
            for group_set, mask in self._locked.values()
        ]
        elements = [
            {"parameter": n, "shape": list(m.shape), "locked": m.flatten().nonzero()[:, 0].tolist()}
            for n, m in self._elements.items()
        ]
        return [*groups, *elements]

    def load_state_dict(
        self, state: Any, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        """Restore the locks that :meth:`state_dict` described.

        Args:
            state: what it returned.
            shapes: parameter -> its shape, to compare the locks with.

        Raises:
            ValueError: if it is damaged, of parameters of other shapes, or nothing may be locked;
                nothing changes then.
        """
        again = GroupLocks()
        try:
            for entry in state:
                again._add(entry, shapes)
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise ValueError(
                f"`locks` are damaged or of another network: {type(error).__name__}: "
                f"{shortened(str(error), 200)}"
            ) from error
        self._check(bool(again))
        self._locked, self._elements, self._copies = again._locked, again._elements, {}

    def _add(self, entry: Mapping[str, Any], shapes: Mapping[str, Sequence[int]] | None) -> None:
        """Restore one entry of the state, after comparing it with the parameters' shapes."""
        if "parameter" in entry:
            check_shape(entry["parameter"], entry["shape"], shapes)
            flat = torch.zeros(entry["shape"], dtype=torch.bool).flatten()
            flat[entry["locked"]] = True
            self._elements[entry["parameter"]] = flat.view(entry["shape"])
            return
        members, companions = (
            tuple(Member(name, *map(tuple, sizes)) for name, *sizes in entry[part])
            for part in ("members", "companions")
        )
        for member in (*members, *companions):
            check_shape(member.parameter, member.shape, shapes, split=True)
        group_set = GroupSet(entry["layer"], entry["kind"], members, companions)
        mask = torch.zeros(group_set.num_groups, dtype=torch.bool)
        mask[entry["locked"]] = True
        self._locked[group_set.name] = (group_set, mask)


def check_shape(
    name: Any, found: Any, shapes: Mapping[str, Sequence[int]] | None, split: bool = False
) -> None:
    """Make sure that a parameter has the shape that a file says.

    Args:
        name: of the parameter.
        found: the shape in the file.
        shapes: parameter -> its shape; None: nothing is compared.
        split: whether dimensions may be split, such as rows into groups and rows in each.

    Raises:
        ValueError: if it has another, or there is no such parameter.

    Example:
        >>> check_shape("w", [10**12], {"w": (2, 2)})
        Traceback (most recent call last):
        ...
        ValueError: expected 'w' with the shape (2, 2), got [1000000000000]
    """
    if shapes is None:
        return
    wanted = tuple(shapes[name]) if name in shapes else "of the network"
    same = wanted == tuple(found)
    if not (same or (split and name in shapes and splits(tuple(found), tuple(shapes[name])))):
        raise ValueError(
            f"expected {shortened(name)} with the shape {wanted}, got {shortened(found)}"
        )


def plain(member: Member) -> tuple[str, list[int], list[int], list[int]]:
    """Return a member as plain values."""
    return member.parameter, list(member.shape), list(member.index_dims), list(member.index)
