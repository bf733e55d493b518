"""Penalties and locks that act on optimizers: hooks before and after every step.

Subgradients are added when the gradient is complete: before the step, or, where the optimizer gets
a closure, after each evaluation of it. Either is after clipping and unscaling. Proximal maps and
locks follow each step that was really made.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.locks import GroupLocks
from ssl_lightning.penalties.specs import Penalty
from ssl_lightning.penalties.terms import Term, refuse_metric
from ssl_lightning.schedules import Constant
from ssl_lightning.steps import check_optimizer, has_stepped, moves_evenly

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


ENOUGH = 20
"""Steps after which an optimizer with penalties attached must have made one."""


AT_WORK: WeakKeyDictionary[Optimizer, WeakSet[Attachment]] = WeakKeyDictionary()
"""Optimizer -> what is attached to it."""


class Acting(Protocol):
    """What an attachment asks of a :class:`~ssl_lightning.Regularizer`."""

    model: nn.Module
    penalties: list[Penalty]
    terms: list[Term]

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the model's parameters by qualified name."""

    def has_mode(self, mode: str) -> bool:
        """Whether any penalty is in a mode."""

    def untrained(self, optimizer: Optimizer | Iterable[Optimizer]) -> dict[str, list[str]]:
        """Return the terms that the proximal step of optimizers does not reach, and why."""

    def add_subgradient_(self, epoch: float = 0.0, optimizer: Optimizer | None = None) -> None:
        """Add the subgradients to the gradients."""

    def proximal_step_(self, optimizer: Optimizer, epoch: float = 0.0) -> None:
        """Apply the proximal maps."""


class Attachment:
    """Penalties and locks at work on optimizers; made by :meth:`Regularizer.attach`.

    Attributes:
        optimizers: those that step the model's parameters.
        untrained: group set -> its parameters that are frozen or in no optimizer, for the
            penalties that have no effect as long as that is so.
    """

    def __init__(
        self,
        regularizer: Acting,
        optimizers: Iterable[Optimizer],
        epoch: float | Callable[[], float] | None,
        locks: GroupLocks | None,
    ) -> None:
        self.regularizer = regularizer
        self.optimizers = tuple(dict.fromkeys(optimizers))
        self.locks = locks
        self._epoch = epoch
        self._evaluated: set[int] = set()
        self._called = False
        check_epoch(regularizer, epoch)
        parameters = regularizer.parameters()
        holders = [o for o in self.optimizers if holds_any(o, parameters)]
        check_holders(regularizer, self.optimizers, parameters, locks)
        if locks is not None:
            locks.refuse(self, next(filter(None, map(why_no_locks, holders)), ""))
        self.untrained = regularizer.untrained(self.optimizers)
        self._handles = []
        warn_of_others(self, holders)
        for optimizer in holders:
            AT_WORK.setdefault(optimizer, WeakSet()).add(self)
            if regularizer.has_mode("subgradient"):
                self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        for optimizer in self.optimizers if holders else ():
            if optimizer not in holders:  # of another network, such as a discriminator's
                self._handles.append(optimizer.register_step_post_hook(self._note_call))

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of what holds an attachment is attached to no optimizer."""

    def __reduce__(self) -> Any:
        """As for a copy: pickled, it is None."""
        return type(None), ()

    def detach(self) -> None:
        """Take the hooks off the optimizers; steps already made are not undone."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for optimizer in self.optimizers:
            AT_WORK.get(optimizer, WeakSet()).discard(self)
        if self.locks is not None:
            self.locks.refuse(self, "")

    def check_called(self, steps: int) -> None:
        """Refuse a loop that trains without stepping the optimizers.

        Args:
            steps: how many steps it counts since the penalties were attached. The first few may
                have been skipped for gradients that were not finite.

        Raises:
            ValueError: if none of the optimizers made one of many.
        """
        if steps >= ENOUGH and self._handles and not self._called:
            names = ", ".join(dict.fromkeys(type(o).__name__ for o in self.optimizers))
            raise ValueError(
                f"Penalties and locks act when an optimizer steps, but in {steps} training steps "
                f"{names} did not: call `optimizer.step()` in an `optimizer_step` of your own."
            )

    def epoch(self) -> float:
        """Return the fractional epoch that schedules are asked for."""
        return float(self._epoch() if callable(self._epoch) else self._epoch or 0.0)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        """Add the subgradients now, or have the closure add them to the gradients it computes."""
        if "grad_scaler" in kwargs:
            raise ValueError(
                f"{type(optimizer).__name__} unscales gradients inside its step, by an argument "
                "`grad_scaler`, so that subgradients cannot be added to unscaled ones. Use mode: "
                "proximal, or another optimizer."
            )
        self._evaluated.discard(id(optimizer))
        if kwargs.get("closure") is not None:
            return args, {
                **kwargs,
                "closure": partial(self._evaluate, optimizer, kwargs["closure"]),
            }
        if len(args) > 1 and args[1] is not None:
            return (args[0], partial(self._evaluate, optimizer, args[1]), *args[2:]), kwargs
        self._add_subgradient(optimizer)
        return None

    def _evaluate(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Any:
        result = closure()
        self._add_subgradient(optimizer)
        return result

    def _add_subgradient(self, optimizer: Optimizer) -> None:
        self._evaluated.add(id(optimizer))
        self.regularizer.add_subgradient_(self.epoch(), optimizer)

    def _note_call(self, *_: Any) -> None:
        self._called = True

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._called = True
        if self.regularizer.has_mode("subgradient") and id(optimizer) not in self._evaluated:
            raise ValueError(
                f"{type(optimizer).__name__} did not call the closure that its step was given, so "
                "that the subgradients of penalties were not added. Step without a closure."
            )
        stepped = has_stepped(optimizer)
        if stepped is not False:
            self.regularizer.proximal_step_(optimizer, self.epoch())
            if self.locks:
                self.locks.enforce_(named_tensors(self.regularizer.model))


def warn_of_others(attachment: Attachment, optimizers: Iterable[Optimizer]) -> None:
    """Warn where another regularizer penalises the same parameters in the steps of an optimizer."""
    own = penalised(attachment.regularizer)
    for optimizer in optimizers:
        others = (a.regularizer for a in AT_WORK.get(optimizer, WeakSet()))
        for other in others:
            twice = [own[key] for key in own.keys() & penalised(other).keys()]
            if twice and other is not attachment.regularizer:
                warnings.warn(
                    f"Another Regularizer is attached to this {type(optimizer).__name__} and "
                    f"penalises the same parameters, such as {min(twice)}: both act in each step. "
                    "End the first with `attachment.detach()`, or give one Regularizer all "
                    "penalties.",
                    stacklevel=4,
                )


def penalised(regularizer: Acting) -> dict[int, str]:
    """Return the ids and names of the parameters that penalties act on."""
    parameters = regularizer.parameters()
    names = {name for term in regularizer.terms for name in term.parameters()}
    return {id(parameters[name]): name for name in names}


def check_epoch(regularizer: Acting, epoch: float | Callable[[], float] | None) -> None:
    """Refuse schedules that would never see the epoch change."""
    late = [p for p in regularizer.penalties if p.schedule != Constant()]
    if late and epoch is None:
        raise ValueError(
            f"Regularizer.attach: the schedule {late[0].schedule} follows the epoch. Pass `epoch`, "
            "a function that returns the epoch, such as `epoch=lambda: step / steps_per_epoch`."
        )


def check_holders(
    regularizer: Acting,
    optimizers: tuple[Optimizer, ...],
    parameters: Mapping[str, nn.Parameter],
    locks: GroupLocks | None,
) -> None:
    """Refuse optimizers with which penalties or locks could not act.

    Raises:
        ValueError: naming the optimizer, or the parameter that none holds.
    """
    if not regularizer.penalties and locks is None:
        raise ValueError(
            "Regularizer.attach: there are no penalties and no locks, so that nothing would act. "
            "Give the Regularizer penalties, such as [{'kind': 'coupled', 'strength': 1e-3}]."
        )
    warn_of_rounding(regularizer, parameters)
    for optimizer in optimizers:
        check_hooks(optimizer)
        for term in regularizer.terms:
            if holds_any(optimizer, parameters, term.parameters()):
                check_term(term, optimizer, parameters)
    acted_on = {"penalised": set(penalised(regularizer).values())}
    acted_on |= {"locked": set(parameters) if locks else set()}
    for what, names in acted_on.items():
        if names and not any(holds_any(o, parameters, names) for o in optimizers):
            raise ValueError(
                f"Regularizer.attach: expected an optimizer that holds a {what} parameter "
                f"({min(names)}, ...), got {len(optimizers) or 'none'} without. Attach to the "
                "optimizers that train the model (from configure_optimizers, in a LightningModule)."
            )


def warn_of_rounding(regularizer: Acting, parameters: Mapping[str, nn.Parameter]) -> None:
    """Warn where weights of 16 bits round away what a proximal step takes off them."""
    half = (torch.bfloat16, torch.float16)
    for term in regularizer.terms:
        low = [n for n in term.parameters() if parameters[n].dtype in half]
        if low and term.penalty.mode == "proximal":
            kind = parameters[low[0]].dtype
            warnings.warn(
                f"Regularizer.attach: `{low[0]}` is {str(kind).removeprefix('torch.')}, which "
                f"rounds away shrinking by less than {torch.finfo(kind).eps / 2:.2%} of a weight: "
                "penalties act less than their strength says. Train with weights in float32, such "
                "as precision bf16-mixed.",
                stacklevel=4,
            )
            return


def check_hooks(optimizer: Optimizer) -> None:
    """Refuse what calls no hooks around its step.

    Raises:
        ValueError: saying what to attach to instead.
    """
    hooked = isinstance(optimizer, Optimizer) and hasattr(optimizer, "_optimizer_step_post_hooks")
    if not hooked or not getattr(type(optimizer).step, "hooked", False):
        raise ValueError(
            f"Regularizer.attach: expected a torch.optim.Optimizer, whose step calls hooks, got "
            f"{type(optimizer).__name__}. Attach to the optimizer that it wraps."
        )
    if any("lookahead_k" in group for group in optimizer.param_groups):
        raise ValueError(
            f"Regularizer.attach: Lookahead moves the weights of this {type(optimizer).__name__} "
            "after its step, so that groups would not remain zero. Train without Lookahead."
        )


def check_term(term: Term, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse an optimizer that holds parameters of a term and could not step it rightly.

    Raises:
        ValueError: for an optimizer without a known proximal step, one that holds only some
            members of a group, that maximises, or that searches along lines.
    """
    name = type(optimizer).__name__
    if term.penalty.mode == "proximal":
        check_optimizer(optimizer)
        held = held_by(optimizer)
        outside = [n for n in term.parameters() if id(parameters[n]) not in held]
        if outside and any(parameters[n].requires_grad for n in outside):
            raise ValueError(
                f"Regularizer.attach: the groups {term.name} need one optimizer for all their "
                f"members, but this {name} does not hold {', '.join(outside)}. Add them to it, "
                "penalise the weight alone (members: weight), or use mode: subgradient."
            )
        members = {n: parameters[n] for n in term.parameters()}
        one_map = term.additive or term.group_set.elementwise
        if not one_map and not moves_evenly(optimizer, members):
            refuse_metric("Regularizer.attach", term)
    elif any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError(
            f"Regularizer.attach: this {name} maximises, so that it would maximise the penalty "
            f"on {term.name} too. Minimise the negative of the objective instead."
        )
    elif isinstance(optimizer, LBFGS) and optimizer.param_groups[0]["line_search_fn"] is not None:
        raise ValueError(
            "Regularizer.attach: LBFGS with a line search compares values of the closure, which "
            f"do not contain the penalty on {term.name}. Take line_search_fn=None."
        )
    elif len(owners := [c for c in steppers(optimizer) if c is not Optimizer]) > 1:
        raise ValueError(
            f"Regularizer.attach: {name} overrides the step of {owners[1].__name__}; if it calls "
            f"that too, hooks run twice, and the subgradient on {term.name} would be added twice. "
            "Use mode: proximal with a supported optimizer, or derive from Optimizer."
        )


def steppers(optimizer: Optimizer) -> list[type]:
    """Return the classes of an optimizer that define a step of their own, the most derived first.

    Torch may wrap an inherited step for hooks in the subclass, which defines none by that.
    """
    classes = [cls for cls in type(optimizer).__mro__ if "step" in vars(cls)]
    owners = {inspect.unwrap(vars(cls)["step"]): cls for cls in classes}
    return list(owners.values())


def why_no_locks(optimizer: Optimizer) -> str:
    """Say why groups cannot be locked under an optimizer; nothing if they can."""
    if callable(getattr(optimizer, "eval", None)) and callable(getattr(optimizer, "train", None)):
        return (
            f"{type(optimizer).__name__} swaps the weights between training and evaluation "
            "(`optimizer.eval()`), so that locked groups would not remain zero. Prune after "
            "training, or use another optimizer."
        )
    return ""


def check_optimizers(given: Sequence[Any]) -> None:
    """Refuse what is no optimizer.

    Raises:
        ValueError: if it has no parameter groups.
    """
    for each in given:
        if not hasattr(each, "param_groups"):
            raise ValueError(
                f"attach: expected an optimizer, or several, got {type(each).__name__}. Give the "
                "one whose steps train the network."
            )


def held_by(optimizer: Optimizer) -> set[int]:
    """Return the ids of the parameters that an optimizer holds."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def holds_any(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    names: Iterable[str] | None = None,
) -> bool:
    """Whether an optimizer holds any of the parameters, or of those with given names."""
    held = held_by(optimizer)
    return any(id(parameters[n]) in held for n in (parameters if names is None else names))


def warn_untrained(untrained: Mapping[str, list[str]]) -> None:
    """Warn of penalties that have no effect because parameters of their groups are not trained."""
    if untrained:
        term, names = next(iter(untrained.items()))
        warnings.warn(
            f"{len(untrained)} penalties have no effect while parameters of their groups are "
            f"frozen or in no optimizer, such as {term} ({', '.join(names)}): a group becomes zero "
            "as a whole or not at all.",
            stacklevel=3,
        )
