"""The state of one analysis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.graph.labels import Labels
from ssl_lightning.graph.layers import FOLDING
from ssl_lightning.graph.ops import Op, Trace, has_hooks, refs

Value = Any  # a Tensor, or a list of Tensors for operations that return several


@dataclass
class Site:
    """A module whose weights are numbered by slices: one label per input and output channel.

    Attributes:
        dim: dimension of its operations' results that numbers the output channels.
        module_dim: the dimension of the module's own input that does, if a norm replaces it.
    """

    module: str
    inputs: Tensor
    outputs: Tensor
    dim: int = 1
    groups: int = 1
    module_dim: int | None = None
    ops: list[Op] = field(default_factory=list)


@dataclass
class Matrix:
    """A stored matrix that numbers slices along both dimensions, but is the weight of no layer.

    Attributes:
        dim: the dimension that numbers the outputs; the other one numbers the inputs.
        outputs: one label per output.
        inputs: one label per input.
        ops: names of the operations that read it, or a transposed view of it.
        values: its name in the trace, and those of its transposed views.
    """

    dim: int
    outputs: Tensor
    inputs: Tensor
    ops: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)


@dataclass
class Flow:
    """Masks and labels of every value so far, and the sites.

    Attributes:
        alive: value name -> where it can be non-zero.
        varies: value name -> where it can depend on the inputs, or is not known to be what it is.
        values: value name -> what it is for one random input; empty if constants do not count.
        needed: value name -> where it is needed.
        slices: value name -> the label of every element.
        parameters: qualified name of a parameter or buffer that no layer owns -> the dimension
            along which it can be sliced, and its labels there.
        matrices: qualified name of a parameter -> its slices, of matrices that no layer owns.
        heads: module name -> the heads into which its code splits channels.
        sizes: module name -> (attributes, labels): numbers of slices that the module holds.
        views: module name -> dimension and labels of the channels that an ``nn.Unflatten`` makes.
        balanced: rows of labels of which equally many must be kept.
        inner: operation name -> labels that no value has, and which of them are useful.
        read_by: operation name -> what it alone needs of the first value it reads.
        rules: operation name -> its rule here: unknown if it is blocked, or failed.
        failed: operation name -> why its rule failed (a bug, or an unforeseen use).
    """

    model: nn.Module
    trace: Trace
    alive: dict[str, Value] = field(default_factory=dict)
    varies: dict[str, Value] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    needed: dict[str, Value] = field(default_factory=dict)
    slices: dict[str, Value] = field(default_factory=dict)
    labels: Labels = field(default_factory=Labels)
    sites: dict[str, Site] = field(default_factory=dict)
    parameters: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    matrices: dict[str, Matrix] = field(default_factory=dict)
    heads: dict[str, list[Any]] = field(default_factory=dict)
    sizes: dict[str, list[tuple[tuple[str, ...], Tensor]]] = field(default_factory=dict)
    views: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    balanced: list[Tensor] = field(default_factory=list)
    inner: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    read_by: dict[str, Value] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @cached_property
    def names_of_parameters(self) -> frozenset[str]:
        """Qualified names of the model's parameters and buffers."""
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        return frozenset(name for name, _ in named)

    def add_site(
        self,
        op: Op,
        inputs: Tensor,
        outputs: Tensor,
        dim: int = 1,
        groups: int = 1,
        module_dim: int | None = None,
    ) -> None:
        """Record the labels of a module's channels; a module that is run again ties both runs."""
        new = Site(op.module, inputs, outputs, dim, groups, module_dim)
        site = self.sites.setdefault(op.module, new)
        site.ops.append(op)
        self.labels.union(site.inputs, inputs)
        self.labels.union(site.outputs, outputs)

    @cached_property
    def producers(self) -> dict[str, Op]:
        """Value name -> the operation that returns it."""
        return {op.name: op for op in self.trace.ops}

    @cached_property
    def unread(self) -> frozenset[str]:
        """Names of the operations that no output depends on and that write nothing."""
        read = set(self.trace.outputs)
        for op in reversed(self.trace.ops):
            if op.name in read or op.written():
                read.update(op.inputs())
        return frozenset(op.name for op in self.trace.ops if op.name not in read)

    def add_matrix(self, op: Op, value: str, outputs: Tensor, inputs: Tensor, dim: int = 0) -> None:
        """Record the slices of a stored matrix; one that is read again ties both times."""
        name = self.trace.names[value]
        matrix = self.matrices.setdefault(name, Matrix(dim, outputs, inputs))
        if matrix.dim != dim:
            outputs, inputs = inputs, outputs
        self.labels.union(matrix.outputs, outputs)
        self.labels.union(matrix.inputs, inputs)
        matrix.ops.add(op.name)
        matrix.values.add(value)

    def useful(self, name: str) -> list[Tensor]:
        """Return where a value's tensors are both varying and needed, not zero there."""
        both = zip(as_list(self.varies[name]), as_list(self.needed[name]), strict=True)
        return [varies * needed for varies, needed in both]

    def absorbs(self, op: Op) -> bool:
        """Whether an operation is a layer that can be given a bias, or skip channels.

        That takes a module that is no subclass, which may do more; has no hooks, which would see
        other tensors; runs once; and shares no weights.
        """
        site = self.sites.get(op.module)
        if site is None or len(site.ops) != 1 or site.ops[0] is not op or op.outside:
            return False
        module = self.model.get_submodule(op.module)
        if type(module) not in FOLDING or has_hooks(module):
            return False
        own = [ref.name for ref in refs(op.args[1:3])]
        runs = [other for other in self.trace.ops if other.module == op.module]
        return runs == [op] and all(self.trace.users[name] == [op] for name in own)


@contextmanager
def masks_in_float32() -> Iterator[None]:
    """Let masks be made in float32, whatever type new tensors have by default.

    Example:
        >>> with masks_in_float32():
        ...     torch.ones(()).dtype
        torch.float32
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def as_list(value: Value) -> list[Tensor]:
    """Return a value's tensors."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def like(value: Value, tensors: list[Tensor]) -> Value:
    """Return tensors in the form of a value: a list if it is one, else the only one."""
    return tensors if isinstance(value, (list, tuple)) else tensors[0]


def binary(mask: Tensor) -> Tensor:
    """Return 1 where a mask is not zero, in float32; written at once, which is faster."""
    return torch.ne(mask, 0, out=torch.empty(mask.shape, dtype=torch.float32, device=mask.device))


def somewhere(mask: Tensor, dims: Sequence[int] = (), *, keepdim: bool = False) -> Tensor:
    """Whether a mask is not zero anywhere along dimensions, or at all; bool.

    What ``any`` returns for a mask of no negative numbers, in an eighth of its time.

    Example:
        >>> somewhere(torch.tensor([[0.0, 0.0], [0.0, 1.0]]), [1]).tolist()
        [False, True]
    """
    if not mask.numel():
        return mask.any(tuple(dims), keepdim) if dims else mask.any()
    return ~(mask.amax(tuple(dims), keepdim=keepdim) <= 0)  # also for NaN


def filled(value: Value, number: float) -> Value:
    """Return masks of the same shapes, filled with a number."""
    return like(value, [torch.full_like(t, number) for t in as_list(value)])
