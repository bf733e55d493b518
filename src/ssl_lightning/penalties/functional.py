"""Group lasso as pure functions, and proximal maps in place over group sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ssl_lightning.groups import GroupSet, Member, group_norms
from ssl_lightning.groups.sets import norm_dtype
from ssl_lightning.penalties.functions import GroupLasso, PenaltyFunction
from ssl_lightning.steps import StepSize, on_host

MAX_NEWTON_STEPS = 100

NEWTON_STEPS_ON_DEVICES = 16
"""Newton steps where asking whether they are enough would wait for a device.

The most that :func:`metric_norms` needed in 2.4 million random groups, whose weights and step sizes
spread over up to 30 decades, was 9 in float32 and 13 in float64. Further steps change
nothing but rounding.
"""


def group_lasso(weight: Tensor, index_dims: tuple[int, ...]) -> Tensor:
    r"""Return the sum of the group norms, a scalar.

    .. math:: R(w) = \sum_g \|w_g\|_2

    Args:
        weight: any shape, e.g. ``(O, I, H, W)``.
        index_dims: dimensions that number the groups; ``()`` makes the whole tensor one group.

    Reference:
        Wen et al., 2016, equation 2.

    Example:
        >>> group_lasso(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), (0,))
        tensor(5.)
    """
    return group_norms(single(weight, index_dims), {"w": weight}).sum()


def group_lasso_subgradient(weight: Tensor, index_dims: tuple[int, ...]) -> Tensor:
    r"""Return the subgradient of smallest norm: w / ||w_g||, and 0 in a group that is zero.

    Args:
        weight: any shape.
        index_dims: dimensions that number the groups.

    Returns:
        New tensor, same shape.

    Reference:
        Wen et al., 2016; the authors' Caffe code.

    Example:
        >>> group_lasso_subgradient(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), (0,))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    group_set = single(weight, index_dims)
    norms = group_norms(group_set, {"w": weight})
    return (weight * group_set.members[0].broadcast(inverse_norms(norms))).to(weight.dtype)


def prox_group_lasso(weight: Tensor, index_dims: tuple[int, ...], threshold: float) -> Tensor:
    r"""Shrink each group by its norm; a norm at or under ``threshold`` becomes exactly zero.

    .. math:: \arg\min_v \tfrac12 \|v - w\|^2 + t \sum_g \|v_g\|_2

    Args:
        weight: any shape, e.g. ``(O, I, H, W)``.
        index_dims: dimensions that number the groups.
        threshold: step size times strength, in the unit of the weights.

    Returns:
        New tensor, same shape.

    Raises:
        ValueError: if ``threshold`` is negative or NaN.

    Reference:
        Parikh & Boyd, Proximal Algorithms, 2014, section 6.5.1.

    Example:
        >>> prox_group_lasso(torch.tensor([[3.0, 4.0], [0.1, 0.1]]), (0,), 1.0)
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])
    """
    check_threshold("prox_group_lasso", threshold)
    result = weight.detach().clone()
    shrink_groups_(GroupLasso(), [single(weight, index_dims)], {"w": result}, [threshold], [1.0])
    return result


def prox_group_lasso_metric(
    weight: Tensor, index_dims: tuple[int, ...], step: Tensor, strength: float
) -> Tensor:
    r"""Return the proximal map of group lasso in a diagonal metric (adaptive optimizers).

    .. math:: \arg\min_v \tfrac12 \sum_i (v_i - w_i)^2 / s_i + \lambda \sum_g \|v_g\|_2

    A group becomes exactly zero where the norm of w / s is at most lambda. Otherwise its norm n
    solves :math:`\sum_i w_i^2 / (n + \lambda s_i)^2 = 1`, found by Newton's method.

    Args:
        weight: any shape.
        index_dims: dimensions that number the groups.
        step: step size s of every element, same shape, not negative; 0 holds an element fixed.
        strength: lambda, not negative.

    Returns:
        New tensor, same shape.

    Raises:
        ValueError: if ``strength`` is negative or NaN.

    Reference:
        Deleu & Bengio, Structured Sparsity Inducing Adaptive Optimizers, 2021, section 3.

    Example:
        >>> w = torch.tensor([[3.0, 4.0]])
        >>> prox_group_lasso_metric(w, (0,), torch.ones(1, 2), 1.0)
        tensor([[2.4000, 3.2000]])
    """
    check_threshold("prox_group_lasso_metric", strength)
    result = weight.detach().clone()
    shrink_groups_in_metric_(single(weight, index_dims), {"w": result}, {"w": step}, strength)
    return result


def single(weight: Tensor, index_dims: tuple[int, ...]) -> GroupSet:
    """Return the group set of one tensor.

    Raises:
        ValueError: for dims that the tensor does not have, or one twice.
    """
    dims = sorted({d + weight.dim() if d < 0 else d for d in index_dims})
    if len(dims) < len(index_dims) or any(not 0 <= d < weight.dim() for d in dims):
        raise ValueError(
            f"Expected `index_dims` to be different dimensions of a tensor of the shape "
            f"{tuple(weight.shape)}, got {index_dims}. Give (0,) for rows, say."
        )
    return GroupSet("", "", (Member("w", tuple(weight.shape), tuple(dims)),))


def check_threshold(where: str, value: float) -> None:
    """Reject a negative threshold or strength."""
    if not value >= 0:
        raise ValueError(f"{where}: expected a number >= 0, got {value}. Give a positive strength.")


def inverse_norms(norms: Tensor) -> Tensor:
    """Return 1 / norm, and 0 where the norm is 0 or too small to be inverted."""
    tiny = torch.finfo(norms.dtype).tiny
    return torch.where(norms > tiny, norms.clamp_min(tiny).reciprocal(), 0.0)


def any_norms(group_set: GroupSet, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the norms of all groups in some shape and order: of elements, without a copy."""
    if not group_set.elementwise:
        return group_norms(group_set, tensors)
    weight = tensors[group_set.members[0].parameter].detach()
    return weight.to(norm_dtype(weight)).abs()


@torch.no_grad()
def shrink_groups_(
    function: PenaltyFunction,
    group_sets: Sequence[GroupSet],
    tensors: Mapping[str, Tensor],
    steps: Sequence[StepSize],
    strengths: Sequence[float],
    where: Tensor | None = None,
) -> None:
    """Apply the proximal map of a function in place to group sets that share no parameter.

    Args:
        function: of the groups' norms.
        group_sets: the groups.
        tensors: qualified name -> parameter.
        steps: one step size >= 0 per group set; 0 changes nothing. A tensor of one element where
            it is on an accelerator; it is not read.
        strengths: one per group set, >= 0; 0 changes nothing.
        where: a bool tensor of one element: False leaves all groups as they are.
    """
    chosen = [
        (group_set, step, strength)
        for group_set, step, strength in zip(group_sets, steps, strengths, strict=True)
        if isinstance(step, Tensor) or step * strength > 0
    ]
    if not chosen:
        return
    norms = [group_norms(group_set, tensors) for group_set, _, _ in chosen]
    factors = function.factors(norms, [s for _, s, _ in chosen], [s for _, _, s in chosen])
    if where is not None:
        factors = [torch.where(where, factor, 1.0) for factor in factors]
    for (group_set, _, _), factor in zip(chosen, factors, strict=True):
        for member in group_set.members:
            member.scale_(tensors[member.parameter], factor)


@torch.no_grad()
def shrink_elements_(
    function: PenaltyFunction,
    weight: Tensor,
    step: StepSize,
    strength: float,
    where: Tensor | None = None,
) -> None:
    """Apply the proximal map of a function in place to every element of a parameter.

    Args:
        function: of the elements' absolute values.
        weight: any shape.
        step: step size >= 0, a number, or a tensor that broadcasts to the weight's shape.
        strength: lambda, positive.
        where: a bool tensor of one element: False leaves all elements as they are.
    """
    sizes = weight.to(norm_dtype(weight)).abs()
    shrunk = function.shrink(sizes, step, strength).to(weight.dtype)
    if where is not None:
        shrunk = torch.where(where, shrunk, weight.abs())
    torch.copysign(shrunk, weight, out=weight).add_(0.0)  # so that no zero is a negative one


@torch.no_grad()
def shrink_groups_in_metric_(
    group_set: GroupSet,
    tensors: Mapping[str, Tensor],
    steps: Mapping[str, Tensor],
    strength: float,
    where: Tensor | None = None,
) -> None:
    """Apply :func:`prox_group_lasso_metric` in place to all members of a group set.

    Args:
        group_set: the groups.
        tensors: qualified name -> parameter.
        steps: qualified name -> step size, of the parameter's shape or a scalar.
        strength: lambda, not negative.
        where: a bool tensor of one element: False leaves all groups as they are.
    """
    if strength == 0:
        return
    weights, shifts = [], []
    for member in group_set.members:
        tensor = tensors[member.parameter]
        dtype = norm_dtype(tensor)
        shift = (steps[member.parameter].to(dtype) * strength).clamp_min(torch.finfo(dtype).tiny)
        weights.append(member.view(tensor).to(dtype))
        shifts.append(member.view(shift.expand_as(tensor)))
    norms = metric_norms(group_set.members, weights, shifts)
    for member, shift in zip(group_set.members, shifts, strict=True):
        n = member.broadcast(norms)
        below = n + shift
        factor = torch.div(n, below, out=below)
        if where is not None:
            factor = torch.where(where, factor, 1.0)
        part = member.view(tensors[member.parameter]).mul_(factor)
        member.store_(tensors[member.parameter], part)


def metric_norms(
    members: Sequence[Member], weights: Sequence[Tensor], shifts: Sequence[Tensor]
) -> Tensor:
    r"""Return the norm of every group after the proximal step in a metric, shape ``(num_groups,)``.

    It is the root n of :math:`f(n) = \sum_i w_i^2 / (n + a_i)^2 = 1`, or 0 if f(0) is at most 1.
    Newton's method runs on 1 / sqrt(f), which is concave in n (a power mean of n + a_i) and nearly
    linear: from a lower bound it rises to the root without overshooting.

    Args:
        members: which slices make up the groups.
        weights: w of every member, viewed.
        shifts: a, strength times step size, positive, viewed alike.
    """
    norms = lower_bound(members, weights, shifts)
    tiny, eps = torch.finfo(norms.dtype).tiny, torch.finfo(norms.dtype).eps
    may_ask = on_host(norms)
    for _ in range(MAX_NEWTON_STEPS if may_ask else NEWTON_STEPS_ON_DEVICES):
        f, slope = torch.zeros_like(norms), torch.zeros_like(norms)
        for member, w, a in zip(members, weights, shifts, strict=True):
            below = member.broadcast(norms) + a
            part = (w / below).square_()
            f += member.reduce(part, torch.sum)
            slope += member.reduce(part.div_(below), torch.sum)
        step = f * (f.sqrt() - 1.0) / slope.clamp_min_(tiny)
        norms = (norms + step).clamp_min_(0.0)
        if may_ask and not bool((step > 0.25 * eps**0.5 * norms).any()):
            break  # the error that remains is the square of the step
    return norms


def lower_bound(
    members: Sequence[Member], weights: Sequence[Tensor], shifts: Sequence[Tensor]
) -> Tensor:
    """Return a lower bound of :func:`metric_norms`, close to it where the shifts are small.

    It is the asymptote of 1 / sqrt(f) at infinity. Where that is small beside the norm, the
    largest of all |w| - a is one too, and keeps every |w| / (n + a) at or under 1, so that nothing
    overflows.
    """
    parts = list(zip(members, weights, shifts, strict=True))
    squares = [w.square() for w in weights]
    total = sum_members([m.reduce(q, torch.sum) for m, q in zip(members, squares, strict=True)])
    moved = [m.reduce(q.mul_(a), torch.sum) for (m, _, a), q in zip(parts, squares, strict=True)]
    norms = total.sqrt()
    bound = norms - sum_members(moved) / total.clamp_min(torch.finfo(total.dtype).tiny)
    if not on_host(bound) or bool((bound < 1e-3 * norms).any()):
        largest = [m.reduce(w.abs().sub_(a), torch.amax) for m, w, a in parts]
        bound = torch.stack([bound, *largest]).amax(0)
    return bound.clamp_min_(0.0)


def sum_members(parts: Sequence[Tensor]) -> Tensor:
    """Sum one value per group over the members."""
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)
