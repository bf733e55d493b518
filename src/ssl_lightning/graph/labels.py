"""Which slices of which tensors are removed together: a union-find over slice labels.

Every element of every activation carries a label. Elements with the same label are removed together
or not at all; two labels that an operation ties (the operands of an addition, say) are merged.
"""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor

FIXED = 0
"""The label of all that cannot be removed (network inputs and outputs, unknown territory)."""


class Labels:
    """Disjoint sets of labels.

    Attributes:
        cause: what to write down as the reason for the merges that follow.

    Example:
        >>> labels = Labels()
        >>> a, b = labels.fresh(2), labels.fresh(2)
        >>> labels.union(a, b)
        >>> bool((labels.find(a) == labels.find(b)).all())
        True
        >>> labels.cause = "it is an output"
        >>> labels.fix(b[:1])
        >>> labels.find(a).tolist()[0] == FIXED, labels.why_fixed(int(a[0]))
        (True, 'it is an output')
    """

    def __init__(self) -> None:
        self.parent = torch.tensor([FIXED])
        self.merged: dict[int, tuple[int, str]] = {}
        self.cause = ""

    def fresh(self, count: int) -> Tensor:
        """Return ``count`` new labels, shape ``(count,)``."""
        first = len(self.parent)
        labels = torch.arange(first, first + count)
        self.parent = torch.cat([self.parent, labels])
        return labels

    def find(self, labels: Tensor) -> Tensor:
        """Return the representatives of a tensor of labels, same shape: each the least of its set.

        :data:`FIXED` represents its own set.
        """
        found, long = self.parent[labels], False
        while not torch.equal(further := self.parent[found], found):
            found, long = further, True
        if long:
            self.parent[labels] = found
        return found

    def union(self, a: Tensor, b: Tensor) -> None:
        """Merge the sets of corresponding elements of two tensors that broadcast together."""
        a, b = squeeze_expanded(*torch.broadcast_tensors(a, b))
        differ, count = a != b, len(self.parent)
        pairs = (a[differ] * count + b[differ]).unique()
        a, b = self.find(pairs // count), self.find(pairs % count)
        while bool((differ := a != b).any()):
            pairs = torch.maximum(a, b)[differ] * count + torch.minimum(a, b)[differ]
            self._join(*once_each(pairs, count))
            a, b = self.find(a[differ]), self.find(b[differ])

    def _join(self, roots: Tensor, lower: Tensor) -> None:
        """Put each of some sets below another one."""
        self.parent[roots] = lower
        self.merged.update(
            zip(roots.tolist(), zip(lower.tolist(), repeat(self.cause)), strict=False)
        )

    def fix(self, labels: Tensor) -> None:
        """Merge labels into the set of what cannot be removed."""
        self.union(labels, torch.tensor(FIXED))

    def why_fixed(self, label: int) -> str:
        """Return the cause of the merge that put a label's set among what cannot be removed."""
        cause = ""
        while label in self.merged:
            label, cause = self.merged[label]
        return cause

    def per_index(self, labels: Tensor, dim: int) -> Tensor:
        """Merge all labels that share an index along ``dim``; return one label per index."""
        rows = squeeze_expanded(labels)[0].movedim(dim, 0)
        size = labels.shape[dim]
        rows = rows.expand(size, *rows.shape[1:]).reshape(size, -1)
        self.union(rows, rows[:, :1])
        return rows[:, 0]

    def along_one_dim(self, labels: Tensor, dim: int | None = None) -> Tensor:
        """Return labels that vary along one dimension at most, by merging; same shape.

        Only such slices can be taken out of a tensor and leave one of fewer rows or columns.

        Args:
            labels: the labels of a value.
            dim: the dimension to keep if they vary along several; None: the last of those.
        """
        if not labels.numel():
            return torch.zeros((), dtype=torch.long).expand(labels.shape)
        varying = [d for d in range(labels.dim()) if varies(labels, d)]
        if not varying:
            return labels[(slice(0, 1),) * labels.dim()].expand(labels.shape)
        kept = dim % labels.dim() if dim is not None and len(varying) > 1 else varying[-1]
        return spread(self.per_index(labels, kept), tuple(labels.shape), kept)


def once_each(pairs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the pairs ``first * count + second``, of each first number that with the least second.

    Example:
        >>> once_each(torch.tensor([53, 31, 52]), 10)
        (tensor([3, 5]), tensor([1, 2]))
    """
    pairs = pairs.unique()
    first = pairs // count
    new = torch.ones_like(first, dtype=torch.bool)
    new[1:] = first[1:] != first[:-1]
    return first[new], pairs[new] % count


def varies(labels: Tensor, dim: int) -> bool:
    """Whether the labels differ along a dimension."""
    labels = squeeze_expanded(labels)[0]
    return bool(labels.numel()) and not bool((labels == labels.narrow(dim, 0, 1)).all())


def squeeze_expanded(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Narrow to one index every dimension along which all the tensors are merely expanded.

    Labels are per slice, so most of their dimensions are: this keeps the work small.
    """
    for dim in range(tensors[0].dim()):
        if all(t.stride(dim) == 0 for t in tensors):
            tensors = tuple(t.narrow(dim, 0, min(1, t.shape[dim])) for t in tensors)
    return tensors


def spread(labels: Tensor, shape: tuple[int, ...], dim: int) -> Tensor:
    """Expand one label per index of ``dim`` to a whole tensor (no memory is used)."""
    view = [1] * len(shape)
    view[dim] = shape[dim]
    return labels.view(view).expand(shape)
