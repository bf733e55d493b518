"""Penalties bound to a model, run in a training loop.

Overlapping kinds (filters and shapes of one layer, say) are stepped one after the other, from small
groups to large ones. Where groups nest (kernel in filter in layer) and all elements have the same
step size, that is the exact proximal map of their sum (Jenatton et al., Proximal Methods for
Hierarchical Sparse Coding, 2011). Where they cross, or nest in an adaptive optimizer's metric, it
differs from the exact map by terms of the order of the squared step size, so that the point to
which training converges is off by the order of the step size: it vanishes with the learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_lightning.groups import GroupSet, Member, group_norms, resolve_each
from ssl_lightning.locks import GroupLocks
from ssl_lightning.penalties.attach import Attachment, held_by, warn_untrained
from ssl_lightning.penalties.functional import (
    inverse_norms,
    prox_l1,
    shrink_groups_,
    shrink_groups_in_metric_,
)
from ssl_lightning.penalties.specs import GroupLasso, Penalty, parse_penalty, penalty_name
from ssl_lightning.steps import StepSize, has_stepped, step_sizes


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


class Regularizer:
    """Penalties bound to a model: values, subgradients and proximal steps of all of them.

    A layer and kind that several penalties match gets the sum of their strengths. Groups with a
    member that the optimizer does not train (``requires_grad`` off, or no step yet) cannot become
    zero and are left alone as a whole for as long as that is so; :meth:`untrained` lists them.

    Args:
        model: the model whose parameters are penalised. They are looked up by name in each step,
            so parameters and modules may be replaced by others of the same shape.
        penalties: :class:`GroupLasso`, :class:`L1` or mappings as in YAML.
        example_input: inputs of the model, where :func:`resolve_groups` needs them.
        full_sizes: for a model that was compacted: the group sizes before, by group set name. The
            scaling goes on with them, for what was removed had no effect, and selectors that match
            nothing any more are passed over.

    Raises:
        ValueError: if a selector matches nothing, a strength is 0, or two penalties want the same
            groups with different members.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> net = create_backbone("lenet")
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> regularizer = Regularizer(net, [{"kind": "filter", "layers": "conv*", "strength": 1.0}])
        >>> attachment = regularizer.attach(sgd)
        >>> net(torch.zeros(2, 1, 28, 28)).sum().backward(); sgd.step()
        >>> sorted(regularizer.values())
        ['filter']
    """

    def __init__(
        self,
        model: nn.Module,
        penalties: Sequence[Penalty | Mapping[str, Any]],
        example_input: Tensor | tuple[Tensor, ...] | None = None,
        full_sizes: Mapping[str, int] | None = None,
    ) -> None:
        self.model = model
        self.penalties = [parse_penalty(given) for given in penalties]
        for index, penalty in enumerate(self.penalties):
            if penalty.strength == 0:
                raise ValueError(
                    f"{describe(index, penalty)}: its strength is 0 everywhere, so it would do "
                    "nothing. Give a positive strength, or take the penalty out."
                )
        lassos = [p for p in self.penalties if isinstance(p, GroupLasso)]
        strict, full_sizes = full_sizes is None, full_sizes or {}
        selectors = [p.selector() for p in lassos]
        resolved = resolve_each(model, selectors, example_input, strict=strict)
        self.group_sets = list({s.name: s for sets in resolved for s in sets}.values())
        terms = [
            Term(p, s.name, p.group_strength(s, full_sizes.get(s.name)), s)
            for p, sets in zip(lassos, resolved, strict=True)
            for s in sets
        ]
        for penalty in self.penalties:
            if not isinstance(penalty, GroupLasso):
                names = weighted_layers(model, penalty, strict=strict)
                terms += [l1_term(penalty, name) for name in names]
        self._attachments: list[Attachment] = []
        self.terms = sorted(terms, key=lambda t: t.group_set.group_size if t.group_set else 0)

    def attach(
        self,
        optimizer: Optimizer | Iterable[Optimizer],
        *,
        epoch: float | Callable[[], float] | None = None,
        locks: GroupLocks | None = None,
    ) -> Attachment:
        """Let the penalties, and locks, act whenever optimizers step.

        Subgradients are added to the gradient before a step (after clipping; multiplied by the
        scale where a fused optimizer unscales inside; after each evaluation of a closure). Proximal
        maps and zeros in locked groups follow each step that was really made. Attached again to
        an optimizer, it replaces the hooks that it had there. Copies of an optimizer have none.

        Args:
            optimizer: the optimizer, or all of them: each acts on the groups that it holds.
            epoch: returns the fractional epoch, for the schedules of strengths.
            locks: groups that must stay zero; more may be locked later.

        Returns:
            What ends it: ``attachment.detach()``.

        Raises:
            ValueError: if a penalty or lock could not act: an optimizer without a known proximal
                step, groups whose members are split over optimizers in proximal mode, optimizers
                that hold nothing of what is penalised, or a schedule without ``epoch``.

        Example:
            >>> net, locks = nn.Linear(2, 2), GroupLocks()
            >>> sgd = torch.optim.SGD(net.parameters(), lr=1.0)
            >>> regularizer = Regularizer(net, [{"kind": "neuron_out", "strength": 9.0}])
            >>> attachment = regularizer.attach(sgd, locks=locks)
            >>> net(torch.ones(1, 2)).sum().backward(); sgd.step()
            >>> net.weight.count_nonzero()
            tensor(0)
        """
        given = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
        optimizers = list(given) if isinstance(given, Iterable) else [given]
        attachment = Attachment(self, optimizers, epoch, locks)
        for earlier in [a for a in self._attachments if not optimizers_apart(a, attachment)]:
            earlier.detach()
            self._attachments.remove(earlier)
        self._attachments.append(attachment)
        warn_untrained(attachment.untrained)
        return attachment

    def has_mode(self, mode: str) -> bool:
        """Whether any penalty is in a mode."""
        return any(penalty.mode == mode for penalty in self.penalties)

    def check_active(self, max_epochs: float | None) -> None:
        """Reject penalties whose schedule is 0 throughout a run.

        Args:
            max_epochs: length of the run in epochs; None, -1 or infinity for one without an end.

        Raises:
            ValueError: naming the penalty, its schedule and the length of the run.

        Example:
            >>> late = {"kind": "neuron_out", "strength": 1e-3, "schedule": {"kind": "ramp"}}
            >>> Regularizer(nn.Linear(2, 2), [late]).check_active(max_epochs=1)
        """
        until = float("inf") if max_epochs is None or max_epochs < 0 else float(max_epochs)
        for index, penalty in enumerate(self.penalties):
            if penalty.schedule.is_zero(until):
                raise ValueError(
                    f"{describe(index, penalty)}: its schedule {penalty.schedule} is 0 during all "
                    f"of the run's {until:g} epochs, so it would do nothing. Let the schedule "
                    "start earlier, train longer, or take the penalty out."
                )

    def untrained(self, optimizer: Optimizer | Iterable[Optimizer]) -> dict[str, list[str]]:
        """Return the terms that the proximal step of optimizers leaves alone, and why.

        Returns:
            Term name -> the parameters in it that are frozen or in none of the optimizers.

        Example:
            >>> net = nn.Linear(2, 2)
            >>> _ = net.bias.requires_grad_(False)
            >>> regularizer = Regularizer(net, [{"kind": "neuron_out", "strength": 1e-3}])
            >>> regularizer.untrained(torch.optim.SGD(net.parameters(), lr=0.1))
            {':neuron_out': ['bias']}
        """
        parameters = self.parameters()
        optimizers = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
        held = set().union(*map(held_by, optimizers))
        trained = {n for n, p in parameters.items() if p.requires_grad and id(p) in held}
        missing = {t.name: [n for n in t.parameters() if n not in trained] for t in self.terms}
        return {name: names for name, names in missing.items() if names}

    def single_weights(self) -> list[GroupSet]:
        """Return the weights under element-wise penalties as sets whose groups are one element.

        Example:
            >>> regularizer = Regularizer(nn.Linear(2, 3), [{"kind": "l1", "strength": 1e-3}])
            >>> [(s.name, s.num_groups) for s in regularizer.single_weights()]
            [(':l1', 6)]
        """
        parameters = self.parameters()
        sets: dict[str, GroupSet] = {}
        for term in self.terms:
            if term.parameter is not None:
                shape = tuple(parameters[term.parameter].shape)
                elements = Member(term.parameter, shape, tuple(range(len(shape))))
                sets[term.name] = GroupSet(term.name.removesuffix(":l1"), "l1", (elements,))
        return list(sets.values())

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the model's parameters by qualified name, shared ones under each of theirs."""
        return dict(self.model.named_parameters(remove_duplicate=False))

    @torch.no_grad()
    def values(self, epoch: float = 0.0) -> dict[str, Tensor]:
        """Return, per kind, the sum of strength times norm at a fractional epoch (scalars)."""
        parameters = self.parameters()
        sums: dict[str, list[Tensor]] = {}
        strengths: dict[str, list[float]] = {}
        for term in self.terms:
            if term.group_set is not None:
                value = group_norms(term.group_set, parameters).sum()
            else:
                value = parameters[term.parameter or ""].abs().sum()
            kind = penalty_name(term.penalty)
            sums.setdefault(kind, []).append(value)
            strengths.setdefault(kind, []).append(term.strength * term.penalty.schedule(epoch))
        return {
            kind: torch.stack(torch._foreach_mul(values, strengths[kind])).sum()
            for kind, values in sums.items()
        }

    def strengths(self, epoch: float = 0.0) -> dict[str, float]:
        """Return the effective strength of every group set at a fractional epoch."""
        result: dict[str, float] = {}
        for term in self.terms:
            strength = term.strength * term.penalty.schedule(epoch)
            result[term.name] = result.get(term.name, 0.0) + strength
        return result

    @torch.no_grad()
    def add_subgradient_(self, epoch: float = 0.0, optimizer: Optimizer | None = None) -> None:
        """Add the subgradient of the penalties in subgradient mode to the parameters' ``grad``.

        To be called after clipping and before the optimizer steps. Parameters without a gradient
        are left alone.

        Args:
            epoch: fractional epoch, for the schedules.
            optimizer: only to parameters that it holds, and multiplied by its ``grad_scale`` if a
                gradient scaler has set one (the optimizer then unscales inside its step).
        """
        parameters = self.parameters()
        held = None if optimizer is None else held_by(optimizer)
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)
        for term, strength in self._active("subgradient", epoch):
            chosen = [
                name
                for name in term.parameters()
                if parameters[name].grad is not None
                and (held is None or id(parameters[name]) in held)
            ]
            if chosen:
                add_subgradient_(term, strength, parameters, chosen, scale)

    @torch.no_grad()
    def proximal_step_(self, optimizer: Optimizer, epoch: float = 0.0) -> None:
        """Apply the proximal maps of the penalties in proximal mode; call it after a real step.

        The step size is that of the parameter in its own parameter group; see
        :mod:`ssl_lightning.steps` for momentum and adaptive optimizers.

        Raises:
            ValueError: if the optimizer has no proximal step that is known to be right, holds none
                of the penalised parameters, or only some of the members of a group.
        """
        active = self._active("proximal", epoch)
        if not active:
            return
        parameters = self.parameters()
        wanted = {name for term, _ in active for name in term.parameters()}
        steps = step_sizes(optimizer, {name: parameters[name] for name in wanted})
        if not steps:
            raise ValueError(
                f"proximal_step_: this {type(optimizer).__name__} holds none of the penalised "
                f"parameters ({active[0][0].parameters()[0]}, ...). Call it with the optimizer "
                "that trains them."
            )
        stepped = has_stepped(optimizer)
        where = stepped if isinstance(stepped, Tensor) else None
        for stage in disjoint_stages(active):
            proximal_maps_(stage, parameters, steps, where)

    def _active(self, mode: str, epoch: float) -> Active:
        """Return the terms of a mode that are on, small groups first, one per group set."""
        terms: dict[str, Term] = {}
        strengths: dict[str, float] = {}
        for term in self.terms:
            if term.penalty.mode == mode:
                strength = term.strength * term.penalty.schedule(epoch)
                terms.setdefault(term.name, term)
                strengths[term.name] = strengths.get(term.name, 0.0) + strength
        return [(term, strengths[name]) for name, term in terms.items() if strengths[name] > 0]

    def needs_proximal_step(self) -> bool:
        """Whether any penalty is in proximal mode."""
        return self.has_mode("proximal")


def optimizers_apart(one: Attachment, other: Attachment) -> bool:
    """Whether two attachments share no optimizer."""
    return set(map(id, one.optimizers)).isdisjoint(map(id, other.optimizers))


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
