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
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_lightning.graph import ExampleInput
from ssl_lightning.groups import resolve_each
from ssl_lightning.groups.resolve import repeated_sets
from ssl_lightning.locks import GroupLocks
from ssl_lightning.penalties.attach import Attachment, check_optimizers, held_by, warn_untrained
from ssl_lightning.penalties.functional import any_norms
from ssl_lightning.penalties.functions import check_function
from ssl_lightning.penalties.specs import Penalty, parse_penalties
from ssl_lightning.penalties.terms import (
    Active,
    Term,
    add_subgradient_,
    describe,
    disjoint_stages,
    proximal_maps_,
    say_left_out,
    warn_of_weights_without,
)
from ssl_lightning.steps import has_stepped, idle_parameters, step_sizes
from ssl_lightning.suggest import shortened


class Regularizer:
    """Penalties bound to a model: values, subgradients and proximal steps of all of them.

    A layer and kind that several penalties match gets the sum of their strengths. Coupled groups
    that a more specific kind (head, ffn, filter, neuron_out) penalises too belong to that kind;
    ``left_out`` lists them (name -> name of the other set). Groups with a
    member that the optimizer does not train (``requires_grad`` off, or no step yet) cannot become
    zero and are not shrunk at all for as long as that is so; :meth:`untrained` lists them.

    Args:
        model: the model whose parameters are penalised. They are looked up by name in each step,
            so parameters and modules may be replaced by others of the same shape.
        penalties: :class:`Penalty` objects or mappings as in YAML.
        example_input: inputs of the model, where :func:`resolve_groups` needs them.
        full_sizes: for a model that was compacted: the group sizes before, by group set name. The
            scaling still uses them, for what was removed had no effect, and selectors that match
            nothing any more are passed over.

    Attributes:
        steered: whether something sets :attr:`scales` while training; then penalties need no
            strength of their own.

    Raises:
        ValueError: if a selector matches nothing, a strength is 0, two penalties want the same
            groups with different members, or a penalty function would spoil the weights.

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
        example_input: ExampleInput = None,
        full_sizes: Mapping[str, int] | None = None,
    ) -> None:
        self.model = model
        self.penalties = parse_penalties(penalties)
        for index, penalty in enumerate(self.penalties):
            if penalty.strength == 0:
                raise ValueError(
                    f"{describe(index, penalty)}: its strength is 0 everywhere, so it would do "
                    "nothing. Give a positive strength, or take the penalty out."
                )
            where = describe(index, penalty)
            check_function(where, penalty.function, penalty.mode, penalty.base)
        strict, full_sizes = full_sizes is None, full_sizes or {}
        selectors = [penalty.selector() for penalty in self.penalties]
        resolved = resolve_each(model, selectors, example_input, strict=strict)
        self.left_out = repeated_sets(s for sets in resolved for s in sets)
        say_left_out(tuple(self.left_out.items()))
        for index, sets in enumerate(resolved):
            resolved[index] = [s for s in sets if s.name not in self.left_out]
            if strict and sets and not resolved[index]:
                raise ValueError(
                    f"The penalty coupled on {self.penalties[index].layers!r}: more specific "
                    f"penalties have all of its groups ({self.left_out[sets[0].name]}, ...), so "
                    "it would do nothing. Take it out."
                )
        warn_of_weights_without(model, self.penalties)
        self.group_sets = list({s.name: s for sets in resolved for s in sets}.values())
        terms = [
            Term(index, p, p.group_strength(s, full_sizes.get(s.name)), s)
            for index, (p, sets) in enumerate(zip(self.penalties, resolved, strict=True))
            for s in sets
        ]
        self.terms = sorted(terms, key=lambda term: term.group_set.group_size)
        self._scales = self.first_scales()
        self.steered = False
        self._attachments: list[Attachment] = []

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
            locks: groups that must remain zero; more may be locked later.

        Returns:
            What ends it: ``attachment.detach()``.

        Raises:
            ValueError: if a penalty or lock could not act: no strength, an optimizer without a
                known proximal step, groups whose members are split over optimizers in proximal
                mode, optimizers that hold nothing of what is penalised, or a schedule without
                ``epoch``.

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
        check_optimizers(optimizers)
        self._check_strengths()
        attachment = Attachment(self, optimizers, epoch, locks)
        self._attachments = [a for a in self._attachments if a is not None]  # as in a copy
        for earlier in [a for a in self._attachments if not optimizers_apart(a, attachment)]:
            earlier.detach()
            self._attachments.remove(earlier)
        self._attachments.append(attachment)
        warn_untrained(attachment.untrained)
        return attachment

    def first_scales(self) -> list[float]:
        """Return the scales at the start: 0 where whoever steers the strength must say it."""
        return [0.0 if p.strength is None else 1.0 for p in self.penalties]

    def _check_strengths(self) -> None:
        """Refuse a penalty whose strength nobody says."""
        for index, (penalty, scale) in enumerate(zip(self.penalties, self._scales, strict=True)):
            if penalty.strength is None and scale == 0 and not self.steered:
                raise ValueError(
                    f"{describe(index, penalty)}: it has no strength, and nothing that steers it, "
                    "so it would do nothing. Give a strength, such as 1e-4, or a `Budget` callback "
                    "(in a loop of your own: set `regularizer.scales` first)."
                )

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

    @property
    def scales(self) -> tuple[float, ...]:
        """Factors on the strengths, one per penalty: what a controller sets.

        1 at first, and 0 where a penalty has no strength: there the factor is the strength. They
        act from the next step on. Assign all of them together.

        Raises:
            ValueError: unless each is a finite number >= 0, and there is one per penalty.

        Example:
            >>> regularizer = Regularizer(nn.Linear(2, 2), [{"kind": "neuron_in", "strength": 0.5}])
            >>> regularizer.scales = [2.0]
            >>> regularizer.strengths()
            {':neuron_in': 1.4142135623730951}
        """
        return tuple(self._scales)

    @scales.setter
    def scales(self, given: Sequence[float]) -> None:
        number = isinstance(given, (list, tuple)) and len(given) == len(self.penalties)
        if not number or not all(map(is_factor, given)):
            raise ValueError(
                f"Regularizer.scales: expected {len(self.penalties)} finite numbers >= 0, one per "
                f"penalty, got {shortened(given)}. Give a list of factors on the strengths."
            )
        self._scales = [float(scale) for scale in given]

    def state_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`load_state_dict` reads: the scales."""
        return {"scales": list(self._scales)}

    def load_state_dict(self, state: Any) -> None:
        """Restore what :meth:`state_dict` returned, of a regularizer with as many penalties.

        Raises:
            ValueError: if it is damaged or of another number of penalties; nothing changes then.
        """
        if not isinstance(state, Mapping) or "scales" not in state:
            raise ValueError(
                f"Regularizer.load_state_dict: expected a mapping with `scales`, got "
                f"{shortened(state)}. Give what `state_dict` returned."
            )
        self.scales = state["scales"]

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the model's parameters by qualified name, shared ones under each of theirs."""
        return dict(self.model.named_parameters(remove_duplicate=False))

    @torch.no_grad()
    def values(self, epoch: float = 0.0) -> dict[str, Tensor]:
        """Return, per kind, the sum of strength times norm at a fractional epoch (scalars)."""
        parameters = self.parameters()
        sums: dict[str, list[Tensor]] = {}
        for term, strength in self._in_force(epoch):
            value = term.penalty.function.value(any_norms(term.group_set, parameters), strength)
            sums.setdefault(term.penalty.kind, []).append(value)
        return {kind: torch.stack(values).sum() for kind, values in sums.items()}

    def factors(self, epoch: float) -> list[float]:
        """Return, per penalty, what multiplies its strength at an epoch: schedule times scale.

        Raises:
            ValueError: if a schedule returns no finite number >= 0.
        """
        factors = []
        for index, penalty in enumerate(self.penalties):
            factor = penalty.schedule(epoch)
            if not is_factor(factor):
                raise ValueError(
                    f"{describe(index, penalty)}: expected a finite factor >= 0 of its schedule "
                    f"{penalty.schedule} at epoch {epoch:g}, got {factor!r}. Correct the schedule."
                )
            factors.append(float(factor) * self._scales[index])
        return factors

    def strengths(self, epoch: float = 0.0) -> dict[str, float]:
        """Return the strength in force of every group set at a fractional epoch."""
        result: dict[str, float] = {}
        for term, strength in self._in_force(epoch):
            result[term.name] = result.get(term.name, 0.0) + strength
        return result

    def _in_force(self, epoch: float) -> Active:
        """Return the terms with their strengths at an epoch: the only place that says them."""
        factors = self.factors(epoch)
        return [(term, term.strength * factors[term.index]) for term in self.terms]

    @torch.no_grad()
    def add_subgradient_(self, epoch: float = 0.0, optimizer: Optimizer | None = None) -> None:
        """Add the subgradient of the penalties in subgradient mode to the parameters' ``grad``.

        To be called after clipping and before the optimizer steps. Parameters without a gradient
        are not touched.

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
        idle = idle_parameters(optimizer, parameters)  # sets of which nothing was used
        active = [(term, s) for term, s in active if not idle.issuperset(term.parameters())]
        frozen = (name for name in wanted if not parameters[name].requires_grad)
        steps.update(dict.fromkeys(frozen))  # held by an optimizer or not, they do not step
        stepped = has_stepped(optimizer)
        where = stepped if isinstance(stepped, Tensor) else None
        for stage in disjoint_stages(active, parameters):
            proximal_maps_(stage, parameters, steps, where)

    def _active(self, mode: str, epoch: float) -> Active:
        """Return the terms of a mode that are on, small groups first, one per group set.

        Strengths on the same groups add up for group lasso; other functions act one by one.
        """
        terms: dict[Any, Term] = {}
        strengths: dict[Any, float] = {}
        for term, strength in self._in_force(epoch):
            if term.penalty.mode == mode:
                key = term.name if term.additive else (term.index, term.name)
                terms.setdefault(key, term)
                strengths[key] = strengths.get(key, 0.0) + strength
        return [(term, strengths[key]) for key, term in terms.items() if strengths[key] > 0]


def is_factor(value: Any) -> bool:
    """Whether a value is a finite number >= 0."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and 0 <= float(value) < float("inf")


def optimizers_apart(one: Attachment, other: Attachment) -> bool:
    """Whether two attachments share no optimizer."""
    return set(map(id, one.optimizers)).isdisjoint(map(id, other.optimizers))
