r"""The step size that a proximal step must use after each kind of optimizer step.

A proximal step after an optimizer step must leave the minimiser of loss + penalty where it is. At
a stationary point the optimizer moves a weight by ``-s * gradient``, where s is the *whole* effect
of a constant gradient; the proximal map must use the same s:

* SGD with momentum m and dampening d: a constant gradient moves by lr (1 - d) / (1 - m) per step,
  not by lr. (With lr alone, a strength would act as if it were ten times smaller at momentum 0.9.)
* Adam, AdamW, RMSprop, Adagrad: lr divided by the root of the second moment, element by element, so
  the proximal map is that of a diagonal metric (Deleu & Bengio, 2021).

Optimizers without a row in :data:`STEP_SIZES` are refused: their right step is not known here.

Learning rates, step counters and overflow flags that an optimizer keeps on an accelerator are
computed with there: nothing is read by the host, which would wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

StepSize: TypeAlias = float | Tensor
"""One number for a parameter (a tensor if it is on an accelerator), or one per element."""


Row: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Any]], StepSize]


HOST_DEVICES = frozenset({"cpu"})
"""Types of the devices whose tensors the host reads without waiting."""


def on_host(tensor: Tensor) -> bool:
    """Whether the host can read a tensor at once, instead of waiting for a device."""
    return tensor.device.type in HOST_DEVICES


def number(value: float | Tensor) -> StepSize:
    """Return a setting or a counter as a number, unless it is a tensor on an accelerator."""
    return value if isinstance(value, Tensor) and not on_host(value) else float(value)


def sgd_step(group: Mapping[str, Any], state: Mapping[str, Any]) -> StepSize:
    """Lr (1 - dampening) / (1 - momentum): Nesterov's variant has the same stationary step."""
    momentum, dampening = group["momentum"], group["dampening"]
    if momentum == 0:
        return number(group["lr"])
    return number(group["lr"] * (1.0 - dampening) / (1.0 - momentum))


def adam_step(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    """Lr / (sqrt(second moment, bias-corrected) + eps)."""
    second: Tensor = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    second = second / bias_correction(number(group["betas"][1]), number(state["step"]))
    return over_root(number(group["lr"]), second, group["eps"])


def bias_correction(beta: StepSize, step: StepSize) -> StepSize:
    """Return 1 - beta^step; on a device without the cancellation of float32."""
    if isinstance(step, Tensor) and isinstance(beta, float) and beta > 0:
        return torch.expm1(step * math.log(beta)).neg_()
    return 1.0 - beta**step


def rmsprop_step(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    """Lr / (1 - momentum) / (sqrt(second moment) + eps); ``centered`` subtracts the mean first."""
    second: Tensor = state["square_avg"].clone()
    if group["centered"]:
        second.addcmul_(state["grad_avg"], state["grad_avg"], value=-1.0).clamp_min_(0.0)
    return over_root(number(group["lr"]) / (1.0 - group["momentum"]), second, group["eps"])


def adagrad_step(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    """Lr, decayed, / (sqrt(sum of squares) + eps)."""
    decayed = number(group["lr"]) / (1.0 + (number(state["step"]) - 1.0) * group["lr_decay"])
    return over_root(decayed, state["sum"].clone(), group["eps"])


def over_root(lr: StepSize, second: Tensor, eps: float) -> Tensor:
    """Return lr / (sqrt(second) + eps), at least in float32; overwrites ``second``."""
    if second.dtype in (torch.float16, torch.bfloat16):
        second = second.float()
    return second.sqrt_().add_(eps).reciprocal_().mul_(lr)


STEP_SIZES: dict[type[Optimizer], Row] = {
    SGD: sgd_step,
    Adam: adam_step,
    AdamW: adam_step,
    RMSprop: rmsprop_step,
    Adagrad: adagrad_step,
}
"""Optimizer class -> function of a parameter group and a parameter's state."""


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer for which no proximal step is known to be right.

    Raises:
        ValueError: naming the optimizers that are supported and the way out.
    """
    if type(optimizer) in STEP_SIZES and not any(g.get("maximize") for g in optimizer.param_groups):
        return
    raise ValueError(
        f"No proximal step is known for {type(optimizer).__name__}: shrinking by its learning rate "
        "alone would minimise another objective. Use one of "
        f"{', '.join(cls.__name__ for cls in STEP_SIZES)} (without maximize), or mode: subgradient "
        "for every penalty."
    )


def step_sizes(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, StepSize | None]:
    """Return the step size of each parameter that the optimizer holds.

    Args:
        optimizer: one that just stepped.
        parameters: name -> parameter; several names may share one.

    Returns:
        Name -> step size, or None for a parameter that did not step: one that is frozen, or that an
        adaptive optimizer has no state for because it never had a gradient. Parameters that the
        optimizer does not hold are missing.

    Raises:
        ValueError: as :func:`check_optimizer`.

    Example:
        >>> w = nn.Parameter(torch.ones(2))
        >>> sgd = SGD([w], lr=0.1, momentum=0.9)
        >>> w.sum().backward(); sgd.step()
        >>> round(step_sizes(sgd, {"w": w})["w"], 6)
        1.0
    """
    check_optimizer(optimizer)
    row = STEP_SIZES[type(optimizer)]
    wanted = {id(parameter) for parameter in parameters.values()}
    found: dict[int, StepSize | None] = {}
    for group in optimizer.param_groups:
        shared = row(group, {}) if row is sgd_step else None
        for parameter in group["params"]:
            if id(parameter) in wanted:
                state = optimizer.state.get(parameter, {})
                if not parameter.requires_grad or (shared is None and not state):
                    found[id(parameter)] = None
                else:
                    found[id(parameter)] = row(group, state) if shared is None else shared
    return {name: found[id(p)] for name, p in parameters.items() if id(p) in found}


def idle_parameters(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> set[str]:
    """Return the names of parameters that have no gradient while others of the optimizer have one.

    The layers of these were not used in the step: LayerDrop, experts, heads of other tasks. Where
    none has one, the gradients were cleared.

    Example:
        >>> w, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        >>> w.sum().backward()
        >>> idle_parameters(SGD([w, b], lr=0.1), {"w": w, "b": b})
        {'b'}
    """
    members = [p for group in optimizer.param_groups for p in group["params"]]
    if all(p.grad is None for p in members):
        return set()
    idle = {id(p) for p in members if p.grad is None}
    return {name for name, parameter in parameters.items() if id(parameter) in idle}


def is_shared(sizes: Sequence[StepSize]) -> bool:
    """Whether all step sizes are the same number, or the same tensor of one element."""
    first = sizes[0]
    if isinstance(first, Tensor):
        return first.dim() == 0 and all(step is first for step in sizes[1:])
    return all(not isinstance(step, Tensor) and step == first for step in sizes[1:])


def moves_evenly(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether an optimizer steps all elements of parameters by the same step size.

    Example:
        >>> w, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        >>> both = {"w": w, "b": b}
        >>> moves_evenly(SGD([w, b], lr=0.1), both), moves_evenly(Adam([w, b]), both)
        (True, False)
        >>> moves_evenly(SGD([{"params": [w]}, {"params": [b], "lr": 0.2}], lr=0.1), both)
        False
    """
    if STEP_SIZES.get(type(optimizer)) is not sgd_step:
        return False
    found = step_sizes(optimizer, parameters).values()
    sizes = [step for step in found if step is not None]
    return not sizes or is_shared(sizes)


def has_stepped(optimizer: Optimizer) -> bool | Tensor:
    """Whether a call of ``step`` that just returned really stepped.

    A fused optimizer under a gradient scaler is called even when gradients overflowed, and skips
    the step inside; ``found_inf`` says so.

    Returns:
        True or False, or a bool tensor of one element if the answer is on an accelerator.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is None:
        return True
    overflow = torch.as_tensor(found_inf)
    return not bool(overflow.any()) if on_host(overflow) else ~overflow.any()
