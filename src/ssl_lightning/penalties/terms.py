"""What a penalty does to one set of groups: its terms, their subgradients and proximal maps."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ssl_lightning.groups import GroupSet
from ssl_lightning.groups.kinds import KINDS, Elements, without_elements
from ssl_lightning.groups.selectors import EVERY
from ssl_lightning.penalties.functional import (
    any_norms,
    inverse_norms,
    shrink_elements_,
    shrink_groups_,
    shrink_groups_in_metric_,
)
from ssl_lightning.penalties.functions import GroupLasso, PenaltyFunction
from ssl_lightning.penalties.specs import Penalty
from ssl_lightning.steps import StepSize, is_shared


@dataclass(frozen=True)
class Term:
    """A penalty on one group set, with its full strength, and its number among the penalties."""

    index: int
    penalty: Penalty
    strength: float
    group_set: GroupSet

    @property
    def name(self) -> str:
        """Return the name of the group set."""
        return self.group_set.name

    @property
    def additive(self) -> bool:
        """Whether strengths of several such penalties on the same groups add up."""
        return type(self.penalty.function) is GroupLasso

    def parameters(self) -> list[str]:
        """Return the names of the parameters that the term shrinks."""
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
    norms = any_norms(term.group_set, parameters)
    slope = term.penalty.function.slope(norms, strength)
    if term.group_set.elementwise:
        weight = parameters[chosen[0]]
        assert weight.grad is not None
        pull = weight.sign().mul_(slope)
        weight.grad.add_(pull if scale is None else pull.mul_(scale.to(weight.device)))
        return
    factors = inverse_norms(norms) * slope
    if scale is not None:
        factors = factors * scale.to(factors.device)
    for member in term.group_set.members:
        weight = parameters[member.parameter]
        if member.parameter in chosen and weight.grad is not None:
            factor = member.broadcast(factors)
            part = member.view(weight.grad).add_(member.view(weight) * factor)
            member.store_(weight.grad, part)


def disjoint_stages(active: Active, parameters: Mapping[str, nn.Parameter]) -> list[Active]:
    """Split terms into stages that share no parameter, keeping their order on each parameter."""
    stages: list[Active] = []
    reached: dict[int, int] = {}
    for term, strength in active:
        keys = [id(parameters[name]) for name in term.parameters()]  # layers may share one
        stage = max(reached.get(key, 0) for key in keys)
        reached.update(dict.fromkeys(keys, stage + 1))
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

    Terms with a parameter that took no step change nothing; nor do any where ``where``, a bool
    tensor of one element on an accelerator, is False.
    """
    functions: list[PenaltyFunction] = []  # no keys: a field that is a list has no hash
    plain: list[list[tuple[GroupSet, StepSize, float]]] = []
    for term, strength in stage:
        sizes = step_of_all(term, steps)
        if sizes is None:
            continue
        function, group_set = term.penalty.function, term.group_set
        if group_set.elementwise:
            weight = parameters[group_set.members[0].parameter]
            shrink_elements_(function, weight, sizes[0], strength, where)
        elif is_shared(sizes):
            if function not in functions:
                functions.append(function)
                plain.append([])
            plain[functions.index(function)].append((group_set, sizes[0], strength))
        elif term.additive:
            names = term.parameters()
            metric = {n: as_tensor(s, parameters[n]) for n, s in zip(names, sizes, strict=True)}
            shrink_groups_in_metric_(group_set, parameters, metric, strength, where)
        else:
            refuse_metric("proximal_step_", term)
    for function, jobs in zip(functions, plain, strict=True):
        sets, shared, strengths = zip(*jobs, strict=True)
        shrink_groups_(function, sets, parameters, shared, strengths, where)


def refuse_metric(where: str, term: Term) -> None:
    """Refuse step sizes that differ inside groups, for a function other than group lasso.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"{where}: no proximal map of {term.penalty.function} is known for the groups {term.name} "
        "where step sizes differ inside a group, as in adaptive optimizers and parameter groups "
        "with rates of their own. Use SGD with one rate for each group, mode: subgradient, or "
        "function: group_lasso."
    )


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
    sizes = [step for name in names if (step := steps.get(name)) is not None]
    return sizes if len(sizes) == len(names) else None


def as_tensor(step: StepSize, like: Tensor) -> Tensor:
    """Return a step size as a tensor (filled on the device: nothing is copied to it)."""
    if isinstance(step, Tensor):
        return step
    return torch.full((), step, dtype=torch.get_default_dtype(), device=like.device)


@lru_cache
def say_left_out(pairs: tuple[tuple[str, str], ...]) -> None:
    """Log, once, which coupled groups belong to more specific kinds."""
    if pairs:
        logging.getLogger(__name__).warning(
            "ssl_lightning: %d coupled group sets belong to more specific penalties on the same "
            "slices, such as %s to %s.",
            len(pairs),
            *pairs[0],
        )


def warn_of_weights_without(model: nn.Module, penalties: Sequence[Penalty]) -> None:
    """Warn where single elements of all layers are penalised, and some weights have no groups."""
    chosen = [p for p in penalties if isinstance(KINDS[p.kind], Elements) and p.layers == EVERY]
    if chosen and (names := list(without_elements(model))):
        warnings.warn(
            f"Regularizer: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''} are not "
            f"penalised: only parameters named `weight` have {chosen[0].kind} groups.",
            stacklevel=3,
        )


def describe(index: int, penalty: Penalty) -> str:
    """Return where a penalty stands, for messages."""
    return f"penalties[{index}] ({penalty.kind} on {penalty.layers!r})"
