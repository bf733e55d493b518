"""Penalty functions: what a group costs, as a function of its norm.

The penalty on a set of groups is the sum over its groups of p(n), where n is the norm of a group.
A proximal step shrinks norms: a group's new norm v minimises (v - n)^2 / (2 s) + p(v), where s is
the step size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.steps import StepSize
from ssl_lightning.suggest import shortened


@dataclass(frozen=True)
class PenaltyFunction:
    r"""Base of the penalty functions p: define :meth:`value`, :meth:`slope` and :meth:`shrink`.

    A function of your own is a frozen dataclass, so that checkpoints can hold it; its fields are
    plain values. Its methods take norms in any shape, each norm by itself, do not change them in
    place, and must not read them on the host (no ``float(norm)``, no ``if norm > 1``), which would
    wait for an accelerator. :class:`Regularizer` tries them once on a few norms from 0 to 1e4.

    Example:
        >>> @dataclass(frozen=True)
        ... class Squares(PenaltyFunction):
        ...     "Strength times half the square of the norm: group weight decay."
        ...
        ...     def value(self, norms, strength):
        ...         return (0.5 * strength * norms.square()).sum()
        ...
        ...     def slope(self, norms, strength):
        ...         return strength * norms
        ...
        ...     def shrink(self, norms, step, strength):
        ...         return norms / (1.0 + step * strength)
        >>> Squares().shrink(torch.tensor([4.0]), step=0.5, strength=2.0)
        tensor([2.])
    """

    def value(self, norms: Tensor, strength: float) -> Tensor:
        """Return the sum of p over all norms, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} does not define `value`.")

    def slope(self, norms: Tensor, strength: float) -> Tensor | float:
        """Return the derivative of p at each norm: of their shape, or one number for all.

        It is finite, at 0 too.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `slope`.")

    def shrink(self, norms: Tensor, step: StepSize, strength: float) -> Tensor:
        """Return the norms after a proximal step, of the same shape; exact zeros remove groups.

        None is negative or larger than before.

        Args:
            norms: at least 0.
            step: one number; or a tensor of one element or of the norms' shape.
            strength: positive.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `shrink`.")

    def factors(
        self, norms: list[Tensor], steps: Sequence[StepSize], strengths: Sequence[float]
    ) -> list[Tensor]:
        """Return what a proximal step multiplies groups by, for several sets at once.

        Args:
            norms: of each set's groups; may be overwritten.
            steps: of each set.
            strengths: of each set.
        """
        jobs = zip(norms, steps, strengths, strict=True)
        return [
            self.shrink(n, step, strength) / n.clamp_min(torch.finfo(n.dtype).tiny)
            for n, step, strength in jobs
        ]


@dataclass(frozen=True)
class GroupLasso(PenaltyFunction):
    r"""Group lasso: :math:`p(n) = \lambda n`. On single elements it is l1.

    Reference:
        Yuan & Lin, Model selection and estimation in regression with grouped variables, 2006.

    Example:
        >>> GroupLasso().shrink(torch.tensor([0.5, 3.0]), step=0.5, strength=2.0)
        tensor([0., 2.])
    """

    def value(self, norms: Tensor, strength: float) -> Tensor:
        """Return strength times the sum of the norms."""
        return norms.sum() * strength

    def slope(self, norms: Tensor, strength: float) -> float:
        """Return the strength."""
        return strength

    def shrink(self, norms: Tensor, step: StepSize, strength: float) -> Tensor:
        """Subtract step times strength; norms at or under that become zero."""
        return (norms - step * strength).clamp_min_(0.0)

    def factors(
        self, norms: list[Tensor], steps: Sequence[StepSize], strengths: Sequence[float]
    ) -> list[Tensor]:
        """Return max(0, 1 - step * strength / norm), by few calls for all sets together."""
        if type(self).shrink is not GroupLasso.shrink:  # of a derived class
            return super().factors(norms, steps, strengths)
        torch._foreach_reciprocal_(norms)  # norm 0 gives infinity, and in the end factor 0
        scale_by_(norms, [-positive(s * st) for s, st in zip(steps, strengths, strict=True)])
        torch._foreach_add_(norms, 1.0)
        torch._foreach_clamp_min_(norms, 0.0)
        return norms


@dataclass(frozen=True)
class MCP(PenaltyFunction):
    r"""Minimax concave penalty: slope :math:`\lambda - n / \gamma` up to :math:`n = \gamma\lambda`.

    Norms above that cost no more than it, so that large groups are not shrunk at all. Below a step
    size of gamma the proximal map is firm thresholding. From there on the problem is not convex:
    its minimiser is the norm itself above :math:`\lambda \sqrt{\gamma s}`, and 0 under it.

    Attributes:
        gamma: how fast the slope falls, in the unit of the step size; towards infinity the
            function becomes group lasso.

    Raises:
        ValueError: if ``gamma`` is not positive and finite.

    Reference:
        Zhang, Nearly unbiased variable selection under minimax concave penalty, 2010; for groups
        Huang, Breheny & Ma, A selective review of group selection, 2012.

    Example:
        >>> MCP(gamma=3.0).shrink(torch.tensor([0.5, 2.0, 3.5]), step=1.0, strength=1.0)
        tensor([0.0000, 1.5000, 3.5000])
    """

    gamma: float = 3.0

    def __post_init__(self) -> None:
        check_argument("MCP", "gamma", self.gamma, 0.0, 3)

    def value(self, norms: Tensor, strength: float) -> Tensor:
        """Return the sum of strength * n - n^2 / (2 gamma), of n = gamma * strength at most."""
        n = norms.clamp_max(self.gamma * strength)
        return (strength * n - n.square() / (2.0 * self.gamma)).sum()

    def slope(self, norms: Tensor, strength: float) -> Tensor:
        """Return strength - n / gamma, at least 0."""
        return (strength - norms / self.gamma).clamp_min(0.0)

    def shrink(self, norms: Tensor, step: StepSize, strength: float) -> Tensor:
        """Apply the firm threshold, or the hard one if the step is not smaller than gamma."""

        def firm() -> Tensor:
            raised = (norms - step * strength) / (1.0 - step / self.gamma)
            return torch.minimum(norms, raised).clamp_min_(0.0)

        def hard() -> Tensor:
            return torch.where(norms > strength * (self.gamma * step) ** 0.5, norms, 0.0)

        return either(step < self.gamma, firm, hard)


@dataclass(frozen=True)
class SCAD(PenaltyFunction):
    r"""Smoothly clipped absolute deviation: slope :math:`\lambda` up to :math:`n = \lambda`.

    From there it falls linearly to 0 at :math:`n = a \lambda`, above which groups are not shrunk.
    From a step size of a - 1 on the problem is not convex; the map is exact there too: norms above
    a threshold are retained as they are, those under it are shrunk as by group lasso.

    Attributes:
        a: where the slope reaches 0, in units of the strength.

    Raises:
        ValueError: if ``a`` is not greater than 2 and finite.

    Reference:
        Fan & Li, Variable selection via nonconcave penalized likelihood, 2001, equation 2.7.

    Example:
        >>> SCAD(a=3.0).shrink(torch.tensor([0.5, 1.5, 2.5, 3.5]), step=1.0, strength=1.0)
        tensor([0.0000, 0.5000, 2.0000, 3.5000])
    """

    a: float = 3.7

    def __post_init__(self) -> None:
        check_argument("SCAD", "a", self.a, 2.0, 3.7)

    def value(self, norms: Tensor, strength: float) -> Tensor:
        """Return the sum of the integrals of the slope."""
        n = norms.clamp(strength, self.a * strength)
        bend = self.a * strength * (n - strength) - (n.square() - strength**2) / 2.0
        return (strength * norms.clamp_max(strength) + bend / (self.a - 1.0)).sum()

    def slope(self, norms: Tensor, strength: float) -> Tensor:
        """Return (a * strength - n) / (a - 1), at least 0 and at most the strength."""
        return ((self.a * strength - norms) / (self.a - 1.0)).clamp(0.0, strength)

    def shrink(self, norms: Tensor, step: StepSize, strength: float) -> Tensor:
        """Apply the three-part threshold, or the one with a jump if the step is at least a - 1."""
        below, width = (norms - step * strength).clamp_min_(0.0), self.a - 1.0

        def convex() -> Tensor:
            middle = (width * norms - self.a * step * strength) / (width - step)
            return torch.maximum(below, torch.minimum(norms, middle))

        def jump() -> Tensor:  # where the minima on both sides of it are equally deep
            high = self.a + 1.0
            return either(
                step < high,
                lambda: torch.where(norms > strength * (high + step) / 2.0, norms, below),
                lambda: torch.where(norms > strength * (high * step) ** 0.5, norms, below),
            )

        return either(step < width, convex, jump)


@dataclass(frozen=True)
class CappedLasso(PenaltyFunction):
    r"""Group lasso that costs no more above a norm: :math:`p(n) = \lambda \min(n, \theta)`.

    Groups that are larger than theta are not shrunk. The proximal map takes the lower of the two
    minima: with a step size s, norms above :math:`\theta + s \lambda / 2` are retained and others
    shrunk as by group lasso; where :math:`s \lambda > 2 \theta`, norms above
    :math:`\sqrt{2 s \lambda \theta}` are retained and all others become zero.

    Attributes:
        theta: norm from which a group costs no more, in the unit of the norms.

    Raises:
        ValueError: if ``theta`` is not positive and finite.

    Reference:
        Zhang, Analysis of multi-stage convex relaxation for sparse regularization, 2010; of filter
        shapes the truncated penalty of Lebedev & Lempitsky, Fast ConvNets using group-wise brain
        damage, 2016.

    Example:
        >>> CappedLasso(theta=2.0).shrink(torch.tensor([0.5, 2.4, 2.6]), step=1.0, strength=1.0)
        tensor([0.0000, 1.4000, 2.6000])
    """

    theta: float = 0.1

    def __post_init__(self) -> None:
        check_argument("CappedLasso", "theta", self.theta, 0.0, 0.1)

    def value(self, norms: Tensor, strength: float) -> Tensor:
        """Return strength times the sum of the norms, of theta at most."""
        return norms.clamp_max(self.theta).sum() * strength

    def slope(self, norms: Tensor, strength: float) -> Tensor:
        """Return the strength below theta, 0 from there on."""
        return strength * (norms < self.theta).to(norms.dtype)

    def shrink(self, norms: Tensor, step: StepSize, strength: float) -> Tensor:
        """Shrink norms under the threshold as group lasso does; retain those above."""
        below, width = (norms - step * strength).clamp_min_(0.0), step * strength

        def soft() -> Tensor:
            return torch.where(norms > self.theta + width / 2.0, norms, below)

        def hard() -> Tensor:
            return torch.where(norms > (2.0 * width * self.theta) ** 0.5, norms, 0.0)

        return either(width < 2.0 * self.theta, soft, hard)


FUNCTIONS: dict[str, type[PenaltyFunction]] = {
    "group_lasso": GroupLasso,
    "capped": CappedLasso,
    "mcp": MCP,
    "scad": SCAD,
}
"""Name, as in YAML -> class."""


def check_function(where: str, function: PenaltyFunction, mode: str, strength: float) -> None:
    """Try the methods that a mode needs on a few norms.

    Raises:
        ValueError: naming the method, if one fails or returns what would spoil the weights.
    """
    probe = torch.tensor([[0.0, 1e-8, 1e-3], [0.5, 2.0, 1e4]])
    calls: dict[str, tuple[Any, ...]] = {"value": (strength,)}
    calls |= {"shrink": (0.01, strength)} if mode == "proximal" else {"slope": (strength,)}
    for name, arguments in calls.items():
        norms = probe.clone()
        try:
            found = getattr(function, name)(norms, *arguments)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        if wrong := wrong_result(name, found, probe):
            raise ValueError(
                f"{where}: `{name}` of {function}: expected {wrong}, got {shortened(found, 120)} "
                f"for the norms {probe.tolist()}. Correct the penalty function."
            )
        if not torch.equal(norms, probe):
            raise ValueError(
                f"{where}: `{name}` of {function}: expected that the norms are not changed in "
                "place, got others after the call. Return new tensors."
            )


def wrong_result(name: str, found: Any, norms: Tensor) -> str:
    """Return what was expected of a method's result; empty if that is what it is."""
    number = isinstance(found, (int, float)) and name == "slope"
    tensor = torch.as_tensor(found) if number or isinstance(found, Tensor) else None
    shape = torch.Size() if name == "value" or number else norms.shape
    if tensor is None or tensor.shape != shape or not bool(tensor.isfinite().all()):
        size = "one element" if name == "value" else f"the norms' shape {tuple(norms.shape)}"
        return f"a finite tensor of {size}"
    if name == "shrink" and bool(((tensor < 0) | (tensor > norms * 1.0001)).any()):
        return "norms between 0 and what they were"
    return ""


def either(
    condition: bool | Tensor, first: Callable[[], Tensor], second: Callable[[], Tensor]
) -> Tensor:
    """Return what one of two functions does, or where the condition is a tensor, that of each."""
    if isinstance(condition, Tensor):
        return torch.where(condition, first(), second())
    return first() if condition else second()


def check_argument(where: str, name: str, value: object, above: float, usual: float) -> None:
    """Refuse an argument that is no finite number above a limit."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not above < float(value) < math.inf:  # type: ignore[arg-type]
        raise ValueError(
            f"{where}: expected a finite {name} > {above:g}, got {value!r}. The usual one is "
            f"{usual:g}."
        )


def positive(threshold: StepSize) -> StepSize:
    """Return a threshold as at least the smallest number: a norm of 0 divided by it is 0."""
    if not isinstance(threshold, Tensor):
        return max(threshold, torch.finfo(torch.float32).tiny)
    return threshold.clamp_min(torch.finfo(threshold.dtype).tiny)


def scale_by_(tensors: list[Tensor], factors: list[StepSize]) -> None:
    """Multiply each tensor by its factor, in place, reading none."""
    numbers = [factor for factor in factors if not isinstance(factor, Tensor)]
    if len(numbers) == len(tensors):
        torch._foreach_mul_(tensors, numbers)
        return
    for tensor, factor in zip(tensors, factors, strict=True):
        tensor.mul_(factor)
