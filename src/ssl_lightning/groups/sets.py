"""Group sets: slices of one or more parameters that are zero together or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

CHUNK = 1 << 18
"""Elements of a large tensor to square at a time, so that squares fit the processor's cache."""


@dataclass(frozen=True)
class Member:
    """One parameter's part in a group set: a slice per group.

    Attributes:
        parameter: qualified name.
        shape: the shape in which the parameter is viewed.
        index_dims: dimensions of that view that number the groups, in the order of the groups.
        index: positions along the only index dimension of groups 0, 1, ...; the others belong to
            no group. Empty for all positions in their order.

    Example:
        >>> member = Member("conv.weight", (4, 3, 5, 5), (1,))
        >>> member.num_groups, member.index_shape
        (3, (1, 3, 1, 1))
        >>> Member("norm.weight", (8,), (0,), index=(6, 1)).norms(torch.arange(8.0))
        tensor([6., 1.])
    """

    parameter: str
    shape: tuple[int, ...]
    index_dims: tuple[int, ...]
    index: tuple[int, ...] = ()

    @cached_property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of what :meth:`view` returns: less than ``shape`` if there is an index."""
        indexed = self.index_dims if self.index else ()
        return tuple(len(self.index) if d in indexed else n for d, n in enumerate(self.shape))

    @cached_property
    def num_groups(self) -> int:
        """How many groups the parameter is cut into."""
        return math.prod(self.part_shape[d] for d in self.index_dims)

    @cached_property
    def index_shape(self) -> tuple[int, ...]:
        """Shape of one value per group that broadcasts over the view."""
        return tuple(n if d in self.index_dims else 1 for d, n in enumerate(self.part_shape))

    @cached_property
    def as_slice(self) -> slice | None:
        """The index as a slice, if its positions ascend in equal steps."""
        first, last = self.index[0], self.index[-1]
        step = self.index[1] - first if len(self.index) > 1 else 1
        regular = step > 0 and self.index == tuple(range(first, last + 1, step))
        return slice(first, last + 1, step) if regular else None

    def view(self, tensor: Tensor) -> Tensor:
        """Return the groups' part of the parameter (or of a tensor of its shape).

        It is a view, or a copy if the index has no regular steps: whoever changes it in place
        calls :meth:`store_` afterwards.
        """
        view = tensor if tensor.shape == self.shape else tensor.view(self.shape)
        if not self.index:
            return view
        dim = self.index_dims[0]
        if self.as_slice is not None:
            return view[(slice(None),) * dim + (self.as_slice,)]
        return view.index_select(dim, index_tensor(self.index, tensor.device))

    def store_(self, tensor: Tensor, part: Tensor) -> None:
        """Write what :meth:`view` returned back to the parameter, unless it is a view of it."""
        if self.index and self.as_slice is None:
            index = index_tensor(self.index, tensor.device)
            view = tensor if tensor.shape == self.shape else tensor.view(self.shape)
            view.index_copy_(self.index_dims[0], index, part)

    def broadcast(self, values: Tensor) -> Tensor:
        """Reshape one value per group, shape ``(num_groups,)``, to broadcast over the view."""
        return values.view(self.index_shape)

    def reduce(self, values: Tensor, reduction: Callable[..., Tensor]) -> Tensor:
        """Apply ``torch.sum`` or ``torch.amax`` inside each group; shape ``(num_groups,)``.

        One run of adjacent dimensions after the other, from the front: several times faster than
        one reduction over dimensions that are apart.

        Args:
            values: any tensor of the view's shape.
            reduction: called as ``reduction(values, dims, keepdim=True)``.
        """
        order = memory_order(values)
        values = reorder(values, order)
        for run in inner_runs(order, self.index_dims):
            values = reduction(values, run, keepdim=True)
        return reorder(values, inverse(order)).reshape(-1)

    def norms(self, tensor: Tensor) -> Tensor:
        """Return the 2-norm of every group of a parameter, shape ``(num_groups,)``.

        Norms of half-precision parameters are float32.
        """
        view = self.view(tensor)
        dtype = norm_dtype(tensor)
        order = memory_order(view)
        runs = inner_runs(order, self.index_dims)
        if not runs:
            return view.to(dtype).abs().reshape(-1)
        view = reorder(view, order)
        differentiated = view.requires_grad and torch.is_grad_enabled()
        if differentiated or (len(runs) == 1 and runs[0][-1] == view.dim() - 1):
            dims = [dim for run in runs for dim in run]  # its gradient at 0 is 0, a root's is none
            norms: Tensor = torch.linalg.vector_norm(view, dim=dims, keepdim=True, dtype=dtype)
        else:
            norms = sum_of_squares(view, runs, dtype).sqrt()
        return reorder(norms, inverse(order)).reshape(-1)

    def scale_(self, tensor: Tensor, factors: Tensor) -> None:
        """Multiply every group of a parameter by its factor, in place.

        Args:
            tensor: the parameter.
            factors: shape ``(num_groups,)``; may be of higher precision than the parameter.
        """
        part = self.view(tensor)
        order = memory_order(part)
        view = reorder(part, order)
        factor = reorder(self.broadcast(factors), order)
        runs = inner_runs(order, self.index_dims)
        if len(runs) > 1 and runs[-1][-1] == view.dim() - 1:
            tail = runs[-1][0]  # a factor that varies along the fastest dimensions is faster
            factor = factor.expand(*factor.shape[:tail], *view.shape[tail:])
        view.mul_(factor.contiguous())
        self.store_(tensor, part)


@dataclass(frozen=True)
class GroupSet:
    """All groups of one kind in one layer (coupled: in one family of layers).

    Attributes:
        layer: qualified name of the module; of a family the first.
        kind: one of :data:`~ssl_lightning.groups.kinds.KINDS`.
        members: the parameters whose slices make up a group and its norm.
        companions: further parameters that a zeroed group also zeroes (bias, norm scale and
            shift where they are not members), so that the layer's output is exactly zero.

    Example:
        >>> from ssl_lightning import Selector, create_backbone, resolve_groups
        >>> (group_set,) = resolve_groups(create_backbone("lenet"), [Selector("filter", "conv1")])
        >>> group_set.layer, group_set.num_groups, group_set.group_size  # with the bias
        ('conv1', 20, 26)
    """

    layer: str
    kind: str
    members: tuple[Member, ...]
    companions: tuple[Member, ...] = field(default=())

    @property
    def name(self) -> str:
        """Return ``"layer:kind"``."""
        return f"{self.layer}:{self.kind}"

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return self.members[0].num_groups

    @property
    def group_size(self) -> int:
        """Number of elements in one group, over all members."""
        return sum(math.prod(m.part_shape) for m in self.members) // self.num_groups

    @cached_property
    def elementwise(self) -> bool:
        """Whether each element of a weight is a group: then norms are absolute values."""
        first = self.members[0]
        whole = len(first.index_dims) == len(first.shape) > 1 and not first.index
        return whole and len(self.members) == 1

    def parameters(self) -> list[str]:
        """Names of all parameters that a zeroed group touches."""
        return list(dict.fromkeys(m.parameter for m in (*self.members, *self.companions)))


def group_norms(group_set: GroupSet, tensors: Mapping[str, Tensor]) -> Tensor:
    r"""Return the norm of every group, shape ``(num_groups,)``.

    .. math:: \|w_g\|_2 = \sqrt{\textstyle\sum_{members} \sum_{i \in g} w_i^2}

    Args:
        group_set: which slices make up the groups.
        tensors: qualified name -> parameter (or a tensor of its shape).

    Returns:
        Norms in the unit of the weights; float32 for half-precision parameters.

    Example:
        >>> rows = GroupSet("layer", "filter", (Member("w", (2, 2), (0,)),))
        >>> group_norms(rows, {"w": torch.tensor([[3.0, 4.0], [0.0, 0.0]])})
        tensor([5., 0.])
    """
    parts = [member.norms(tensors[member.parameter]) for member in group_set.members]
    if len(parts) == 1:
        return parts[0]
    norms: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    return norms


@torch.no_grad()
def zero_groups_(group_set: GroupSet, zero: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Set groups to exactly zero in place, companions included; NaN too becomes zero.

    Args:
        group_set: the groups.
        zero: ``(num_groups,)`` bool, True for the groups to zero.
        tensors: qualified name -> parameter.

    Example:
        >>> weights = {"w": torch.ones(2, 2)}
        >>> rows = GroupSet("layer", "filter", (Member("w", (2, 2), (0,)),))
        >>> zero_groups_(rows, torch.tensor([True, False]), weights)
        >>> weights["w"]
        tensor([[0., 0.],
                [1., 1.]])
    """
    for member in (*group_set.members, *group_set.companions):
        tensor = tensors[member.parameter]
        part = member.view(tensor).masked_fill_(member.broadcast(zero.to(tensor.device)), 0.0)
        member.store_(tensor, part)


def nonzero_groups(group_set: GroupSet, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return which groups have any non-zero element, shape ``(num_groups,)``, bool.

    Members count, companions do not.

    Example:
        >>> rows = GroupSet("layer", "filter", (Member("w", (2, 2), (0,)),))
        >>> nonzero_groups(rows, {"w": torch.tensor([[0.0, 1.0], [0.0, 0.0]])})
        tensor([ True, False])
    """
    found = [m.reduce(m.view(tensors[m.parameter]) != 0, torch.any) for m in group_set.members]
    return torch.stack(found).any(0)


def group_counts(
    group_sets: Sequence[GroupSet], tensors: Mapping[str, Tensor]
) -> dict[str, tuple[int, int]]:
    """Return, per group set name, the number of groups that are not zero, and of all groups.

    Example:
        >>> rows = GroupSet("layer", "filter", (Member("w", (2, 2), (0,)),))
        >>> group_counts([rows], {"w": torch.tensor([[0.0, 1.0], [0.0, 0.0]])})
        {'layer:filter': (1, 2)}
    """
    return {s.name: (int(nonzero_groups(s, tensors).sum()), s.num_groups) for s in group_sets}


def norm_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type norms are summed in: at least float32."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype


@lru_cache(maxsize=4096)
def index_tensor(index: tuple[int, ...], device: torch.device) -> Tensor:
    """Return positions as a tensor; the same one each time."""
    with torch.inference_mode(False):  # so that autograd may save it later
        return torch.tensor(index, device=device)


def memory_order(view: Tensor) -> tuple[int, ...]:
    """Return the dimensions from the slowest to the fastest: not ascending in channels-last."""
    if view.is_contiguous():
        return ascending(view.dim())
    return tuple(sorted(range(view.dim()), key=view.stride, reverse=True))


@lru_cache
def ascending(num_dims: int) -> tuple[int, ...]:
    """Return 0, 1, ..., num_dims - 1."""
    return tuple(range(num_dims))


def reorder(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """Permute the dimensions, at no cost if that changes nothing."""
    return tensor if order == ascending(tensor.dim()) else tensor.permute(order)


@lru_cache
def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """Return the permutation that undoes another."""
    return tuple(order.index(d) for d in range(len(order)))


@lru_cache
def inner_runs(order: tuple[int, ...], index_dims: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the dimensions inside a group, after permuting by ``order``, as adjacent runs.

    Example:
        >>> inner_runs((0, 1, 2, 3), (1,))
        ((0,), (2, 3))
        >>> inner_runs((0, 2, 3, 1), (1,))
        ((0, 1, 2),)
    """
    runs: list[tuple[int, ...]] = []
    for place, dim in enumerate(order):
        if dim in index_dims:
            continue
        if runs and runs[-1][-1] == place - 1:
            runs[-1] += (place,)
        else:
            runs.append((place,))
    return tuple(runs)


def sum_of_squares(view: Tensor, runs: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> Tensor:
    """Sum squares over runs of dimensions, keeping them; a large view chunk by chunk."""

    def whole(part: Tensor) -> Tensor:
        part = part.to(dtype).square()
        for run in runs:
            part = part.sum(run, keepdim=True)
        return part

    if view.numel() <= 4 * CHUNK or runs[0][0] != 0:
        return whole(view)
    rows = max(1, CHUNK * view.shape[0] // view.numel())
    return torch.stack([whole(part) for part in torch.split(view, rows)]).sum(0)
