"""What a penalty does to one set of groups: its terms, their subgradients and proximal maps."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ssl_lightning.groups import GroupSet, group_norms
from ssl_lightning.penalties.functional import (
    inverse_norms,
    prox_l1,
    shrink_groups_,
    shrink_groups_in_metric_,
)
from ssl_lightning.penalties.specs import Penalty, penalty_name
from ssl_lightning.steps import StepSize


@dataclass(frozen=True)
class Term:
    """A penalty on one group set (or, for l1, one parameter), with its full strength."""

    penalty: Penalty
    name: str
    strength: float
    group_set: GroupSet | None
    parameter: str | None = None

    def parameters(self) -> list[str]:
        """Return the names of the parameters that the term shrinks."""
        if self.group_set is None:
            return [self.parameter or ""]
        return list(dict.fromkeys(member.parameter for member in self.group_set.members))


Active: TypeAlias = list[tuple[Term, float]]
"""Terms with their strengths at some epoch."""


def add_subgradient_(
    term: Term,
    strength: float,
    parameters: Mapping[str, nn.Parameter],
    chosen: Sequence[str],
    scale: Tensor | None,
) -> None:
    """Add the subgradient of one term to the gradients of the chosen of its parameters.

    It is multiplied by ``scale``, a tensor of one element on any device, if there is one.
    """
    if term.group_set is None:
        weight = parameters[chosen[0]]
        assert weight.grad is not None
        sign = weight.sign() if scale is None else weight.sign() * scale.to(weight.device)
        weight.grad.add_(sign, alpha=strength)
        return
    factors = inverse_norms(group_norms(term.group_set, parameters)) * strength
    if scale is not None:
        factors = factors * scale.to(factors.device)
    for member in term.group_set.members:
        weight = parameters[member.parameter]
        if member.parameter in chosen and weight.grad is not None:
            factor = member.broadcast(factors)
            part = member.view(weight.grad).add_(member.view(weight) * factor)
            member.store_(weight.grad, part)


def disjoint_stages(active: Active) -> list[Active]:
    """Split terms into stages that share no parameter, keeping their order on each parameter."""
    stages: list[Active] = []
    reached: dict[str, int] = {}
    for term, strength in active:
        names = term.parameters()
        stage = max(reached.get(name, 0) for name in names)
        reached.update(dict.fromkeys(names, stage + 1))
        stages.extend([] for _ in range(stage + 1 - len(stages)))
        stages[stage].append((term, strength))
    return stages


def proximal_maps_(
    stage: Active,
    parameters: Mapping[str, Tensor],
    steps: Mapping[str, StepSize | None],
    where: Tensor | None = None,
) -> None:
    """Apply the proximal maps of terms without common parameters, in place.

    Terms with a parameter that took no step are left alone; so are all where ``where``, a bool
    tensor of one element on an accelerator, is False.
    """
    plain: list[GroupSet] = []
    thresholds: list[StepSize] = []
    for term, strength in stage:
        taken = step_of_all(term, steps)
        if taken is None:
            continue
        if term.group_set is None:
            weight = parameters[term.parameter or ""]
            threshold = taken[0] * strength
            if where is not None:
                threshold = torch.where(where, threshold, 0.0)
            weight.copy_(prox_l1(weight, threshold))
        elif is_shared(taken):
            plain.append(term.group_set)
            thresholds.append(taken[0] * strength)
        else:
            names = term.parameters()
            metric = {n: as_tensor(s, parameters[n]) for n, s in zip(names, taken, strict=True)}
            shrink_groups_in_metric_(term.group_set, parameters, metric, strength, where)
    shrink_groups_(plain, parameters, thresholds, where)


def is_shared(taken: Sequence[StepSize]) -> bool:
    """Whether all step sizes are the same number, or the same tensor of one element."""
    first = taken[0]
    if isinstance(first, Tensor):
        return first.dim() == 0 and all(step is first for step in taken[1:])
    return all(not isinstance(step, Tensor) and step == first for step in taken[1:])


def step_of_all(term: Term, steps: Mapping[str, StepSize | None]) -> list[StepSize] | None:
    """Return the step size of each of a term's parameters, or None unless all of them stepped.

    Raises:
        ValueError: if the optimizer holds some of them and does not hold others.
    """
    names = term.parameters()
    outside = [name for name in names if name not in steps]
    if outside and len(outside) < len(names):
        raise ValueError(
            f"proximal_step_: the groups {term.name} need one optimizer for all their members, but "
            f"this one does not hold {', '.join(outside)}. Add them to it, or penalise the weight "
            "alone (members: weight)."
        )
    taken = [step for name in names if (step := steps.get(name)) is not None]
    return taken if len(taken) == len(names) else None


def as_tensor(step: StepSize, like: Tensor) -> Tensor:
    """Return a step size as a tensor (filled on the device: nothing is copied to it)."""
    if isinstance(step, Tensor):
        return step
    return torch.full((), step, dtype=torch.get_default_dtype(), device=like.device)


@lru_cache
def say_left_out(pairs: tuple[tuple[str, str], ...]) -> None:
    """Log, once, which coupled groups are left to more specific kinds."""
    if pairs:
        logging.getLogger(__name__).warning(
            "ssl_lightning: %d coupled group sets are left to more specific penalties on the same "
            "slices, such as %s to %s.",
            len(pairs),
            *pairs[0],
        )


def describe(index: int, penalty: Penalty) -> str:
    """Return where a penalty stands, for messages."""
    return f"penalties[{index}] ({penalty_name(penalty)} on {penalty.layers!r})"


def l1_term(penalty: Penalty, layer: str) -> Term:
    """Return the term of an element-wise penalty on one layer's weight."""
    parameter = f"{layer}.weight" if layer else "weight"
    return Term(penalty, f"{layer}:l1", penalty.strength, None, parameter)


def weighted_layers(model: nn.Module, penalty: Penalty, *, strict: bool = True) -> list[str]:
    """Return the names of the layers with a weight of two or more dimensions that l1 applies to.

    Raises:
        ValueError: if ``strict`` and there are none for one of the patterns.
    """
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.dim() > 1
    ]
    for pattern in penalty.patterns():
        if strict and not any_match(layers, [pattern]):
            raise ValueError(
                f"The penalty l1: the pattern {pattern!r} matches no layer with weights. Layers "
                f"that have: {', '.join(layers) or 'none'}."
            )
    return any_match(layers, penalty.patterns())


def any_match(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that match any of the globs."""
    return [name for name in names if any(fnmatchcase(name, p) for p in patterns)]
