"""What a rule of an operation is, and the answers that several operations share.

Four questions are asked of an operation:

* ``support``: which elements of its result can be non-zero, given which of its inputs can?
* ``labels``: which slices of its inputs and its result must be removed together?
* ``needs``: which elements of its inputs does a set of elements of its result depend on?
* ``varies``: which elements of its result can depend on the network's inputs?

Masks are float tensors of the values' own shapes. Support functions are monotone: the more elements
of the inputs can be non-zero, the more of the result can. So a mask remains right when elements
that are not needed are removed. The labels of every value vary along one dimension at most: only
then is a tensor without some slices a tensor again; :meth:`Labels.along_one_dim` sees to that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ssl_lightning.graph.flow import Flow, Value, as_list, binary, filled, like
from ssl_lightning.graph.labels import spread
from ssl_lightning.graph.ops import Op, Ref, refs


@dataclass(frozen=True)
class Rule:
    """The answers of one operation to the four questions, and the uses of it that they cover.

    Of another use (other operands, several results) everything is taken to be unknown. The
    ready-made rules :meth:`pointwise`, :meth:`identity`, :meth:`moving` and :meth:`by_channel` are
    enough for most operations; :func:`register_rule` also takes the name of a built-in operation.
    They run the operation on masks, in float32 on the CPU.

    Attributes:
        support: ``(op, masks by value name) -> mask``: which elements of the result can be
            non-zero.
        labels: ``(op, flow) -> labels``: which slices are removed together.
        needs: ``(op, flow, mask) -> masks by value name``: which elements of the operands are
            needed for those of the result; None: the transpose of ``support``, which autograd
            computes.
        varies: ``(op, flow) -> mask``: which elements of the result can depend on the inputs; None:
            those that ``support`` finds if only what can depend on them counts as non-zero.
        constants: whether a slice of an operand that is constant, but not zero, may be removed.
        operands: what it must read: ``"any"`` number of values, at least one (``"first"``), exactly
            ``"one"``, or ``"two"`` operands by position, values or numbers.
        results: whether it returns ``"one"`` tensor, ``"several"``, or ``"any"`` of both.
        in_place: whether the rule also covers the operation that writes into its input.
        sized: whether the model's code may have its sizes as fixed numbers.
        aliases: whether it may return its input itself, though torch's schema does not say so.
        variant: the rule instead, where that depends on the operation's arguments.

    Example:
        >>> Rule.pointwise().operands, Rule.unknown().constants
        ('one', False)
    """

    support: Callable[[Op, Mapping[str, Value]], Value]
    labels: Callable[[Op, Flow], Value]
    needs: Callable[[Op, Flow, Value], dict[str, Value]] | None = None
    varies: Callable[[Op, Flow], Value] | None = None
    constants: bool = True
    operands: Literal["any", "first", "one", "two"] = "any"
    results: Literal["one", "any", "several"] = "one"
    in_place: bool = True
    sized: bool = False
    aliases: bool = False
    variant: Callable[[Op], Rule] | None = None

    def covers(self, op: Op) -> bool:
        """Whether an operation is used in the way that the rule is for."""
        wrong = "one" if isinstance(op.shape, list) else "several"
        return (
            not any(True for _ in refs(op.kwargs))
            and self.results != wrong
            and (self.in_place or not op.written())
            and (self.operands == "any" or bool(op.inputs()))
            and (self.operands != "one" or len(op.inputs()) == 1)
            and (self.operands != "two" or has_two_operands(op))
        )

    @classmethod
    def pointwise(cls) -> Rule:
        """Return the rule of a function of each element alone; whether it maps 0 to 0 is asked."""
        return cls(pointwise, keep_labels, same_elements, same_varies, operands="one")

    @classmethod
    def identity(cls) -> Rule:
        """Return the rule of an operation whose result is its input, as far as zeros matter."""
        return cls(same, keep_labels, same_elements, operands="one")

    @classmethod
    def moving(cls, *, sized: bool = False) -> Rule:
        """Return the rule of an operation that only moves, repeats or drops elements.

        It is run on masks (float32) and on numbers (int64), so it must accept those.

        Args:
            sized: whether code may call it with sizes as fixed numbers, as with ``view``.
        """
        return cls(literal, move_labels, moved_needs, operands="one", in_place=False, sized=sized)

    @classmethod
    def by_channel(cls, dim: int = 1) -> Rule:
        """Return the rule of an operation on each channel alone, such as a pooling or a filter.

        Whether zeros give zeros is asked.

        Args:
            dim: the dimension of the input and the result that numbers the channels.
        """
        return cls(
            partial(channel_support, dim=dim),
            partial(channel_labels, dim=dim),
            partial(channel_needs, dim=dim),
            as_alive,
            constants=False,
            operands="one",
        )

    @classmethod
    def unknown(cls) -> Rule:
        """Return the rule that is always right: everything is alive and needed, nothing removed."""
        return UNKNOWN


# --- how an operation is read ---------------------------------------------------------------------


def has_two_operands(op: Op) -> bool:
    """Whether both operands are given by position, and are values or numbers."""
    return len(op.args) >= 2 and all(isinstance(a, (Ref, int, float)) for a in op.args[:2])


def first(op: Op) -> str:
    """Name of the first value that the operation reads."""
    return op.inputs()[0]


def leaf(op: Op) -> Any:
    """Return the module that a merged operation is."""
    return op.target.__self__  # type: ignore[attr-defined]


def spatial_dims(op: Op) -> int:
    """Return 2 for ``max_pool2d``."""
    found = re.search(r"(\d)d", op.kind)
    assert found is not None, f"{op.kind} has no number of dimensions in its name"
    return int(found[1])


def rows(rule: Rule, *names: str) -> Iterable[tuple[str, Rule]]:
    """Return table rows of one rule; each argument holds names separated by blanks."""
    return ((name, rule) for line in names for name in line.split())


# --- which elements of a result can be non-zero ---------------------------------------------------


def ones(op: Op, alive: Mapping[str, Value]) -> Value:
    """Everything can be non-zero."""
    if isinstance(op.shape, list):
        return [torch.ones(shape) for shape in op.shape]
    return torch.ones(op.shape or ())


def literal(op: Op, values: Mapping[str, Value]) -> Value:
    """Run the operation itself: right for whatever only moves elements or adds them up."""
    return op.run(values)


def same(op: Op, alive: Mapping[str, Value]) -> Value:
    """Zero exactly where the input is."""
    return alive[first(op)]


def pointwise(op: Op, alive: Mapping[str, Value]) -> Value:
    """Zero where the input is zero, if the function maps 0 to 0 (it is asked)."""
    probe = op.run({first(op): torch.zeros([1] * alive[first(op)].dim())})
    return alive[first(op)] if bool((probe == 0).all()) else torch.ones(op.shape)


def channel_support(op: Op, alive: Mapping[str, Value], dim: int) -> Value:
    """Zero in channels that are zero everywhere, if zeros give zeros (the operation is asked)."""
    x: Tensor = alive[first(op)]
    if bool((op.run({first(op): torch.zeros(x.shape)}) != 0).any()):
        return torch.ones(op.shape)
    return spread(any_in(x, dim), op.shape, dim)


def any_in(mask: Tensor, dim: int) -> Tensor:
    """Return where anything is not zero, per index of a dimension."""
    return mask.movedim(dim, 0).reshape(mask.shape[dim], -1).amax(1)


# --- which slices are removed together ------------------------------------------------------------


def fixed(shape: Any) -> Value:
    """Return labels for a result of that shape (or those shapes) that cannot be removed."""
    if isinstance(shape, list):
        return [fixed(each) for each in shape]
    return torch.zeros((), dtype=torch.long).expand(shape or ())


def fix_all(op: Op, flow: Flow) -> Value:
    """Nothing that this operation touches can be removed, if anything depends on its result."""
    if op.name in flow.unread and not op.written():
        return fixed(op.shape)
    for name in op.inputs():
        for labels in as_list(flow.slices[name]):
            flow.labels.fix(labels)
    return fixed(op.shape)


def untouched(op: Op, flow: Flow) -> Value:
    """The operation reads no values, only shapes or types, and its result has no slices."""
    return fixed(op.shape)


def keep_labels(op: Op, flow: Flow) -> Value:
    """The result has its input's slices."""
    return flow.slices[first(op)]


def move_labels(op: Op, flow: Flow) -> Value:
    """Labels move as the elements do.

    A dimension that is split (channel shuffle, attention heads) has slices along its last part, so
    that slices of all parts are tied.
    """
    return flow.labels.along_one_dim(op.run(flow.slices))


def channel_labels(op: Op, flow: Flow, dim: int) -> Value:
    """All positions of a channel are removed together."""
    labels = flow.slices[first(op)]
    if labels.shape[dim] != op.shape[dim]:
        return fix_all(op, flow)
    return spread(flow.labels.per_index(labels, dim), op.shape, dim)


# --- which elements of the operands are needed ----------------------------------------------------


def transpose(op: Op, flow: Flow, needed: Value, support: Callable[..., Value]) -> dict[str, Value]:
    r"""Run ``support`` backwards: an input is needed where it changes a needed result.

    .. math:: need(x)_i = [\textstyle\sum_j need(y)_j \, \partial y_j / \partial x_i \ne 0]

    All terms are non-negative, because support functions are monotone, so nothing cancels.
    """
    names = [n for n in dict.fromkeys(op.inputs()) if n not in flow.trace.tensors]
    masks = {n: flow.alive[n] for n in op.inputs()}
    leaves = {n: [t.clone().requires_grad_() for t in as_list(flow.alive[n])] for n in names}
    masks.update({n: like(flow.alive[n], tensors) for n, tensors in leaves.items()})
    with torch.enable_grad():
        outs = as_list(support(op, masks))
    pairs = [p for p in zip(outs, as_list(needed), strict=True) if p[0].requires_grad]
    flat = [t for tensors in leaves.values() for t in tensors]
    grads: tuple[Tensor | None, ...] = (None,) * len(flat)
    if pairs:
        results, cotangents = zip(*pairs, strict=True)
        grads = torch.autograd.grad(results, flat, cotangents, allow_unused=True)
    hits = iter(
        torch.zeros_like(t) if g is None else binary(g) for t, g in zip(flat, grads, strict=True)
    )
    return {n: like(flow.alive[n], [next(hits).detach() for _ in leaves[n]]) for n in names}


def everything(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """All inputs are needed."""
    return {name: filled(flow.alive[name], 1.0) for name in op.inputs()}


def nothing(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """No input is needed: only its shape is read."""
    return {}


def same_elements(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """Each element of the result depends on the same element of the input."""
    return {first(op): needed}


def moved_needs(op: Op, flow: Flow, needed: Value) -> dict[str, Value]:
    """Each element of the result depends on the one that was moved there; numbers tell which."""
    x: Tensor = flow.alive[first(op)]
    source = op.run({first(op): torch.arange(1, x.numel() + 1).view(x.shape)})
    mask = torch.zeros(x.numel() + 1)  # 0 stands for what the operation filled in
    mask[source[needed > 0]] = 1
    return {first(op): mask[1:].view(x.shape)}


def channel_needs(op: Op, flow: Flow, needed: Value, dim: int) -> dict[str, Value]:
    """A needed element of a channel may depend on the whole channel."""
    return {first(op): spread(any_in(needed, dim), flow.alive[first(op)].shape, dim)}


# --- which elements of a result can depend on the network's inputs --------------------------------


def as_alive(op: Op, flow: Flow) -> Value:
    """Whatever can be non-zero counts as varying."""
    return flow.alive[op.name]


def never(op: Op, flow: Flow) -> Value:
    """Nothing varies."""
    return filled(flow.alive[op.name], 0.0)


def same_varies(op: Op, flow: Flow) -> Value:
    """A function of each element: constant where the element is."""
    return flow.varies[first(op)]


UNKNOWN = Rule(ones, fix_all, everything, as_alive, constants=False)
"""Everything returned can be non-zero, all is needed, and nothing can be removed."""
