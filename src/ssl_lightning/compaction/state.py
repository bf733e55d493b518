"""What training keeps beside the weights, sliced as the weights are: optimizer state and masks.

No index bookkeeping: a copy of the model carries the tensors in its parameters' place, is shrunk by
the very code that shrinks the weights, and the tensors are read back by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adadelta, Adamax, NAdam, Optimizer, RAdam

from ssl_lightning.compaction.plan import Plan
from ssl_lightning.compaction.planning import apply_plan
from ssl_lightning.graph import how_to_remove, working_copy
from ssl_lightning.steps import STEP_SIZES

SLICEABLE: tuple[type[Optimizer], ...] = (*STEP_SIZES, Adadelta, Adamax, NAdam, RAdam)
"""Optimizers whose state is one number per element of a parameter, or one per parameter."""


def slice_tensors(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the plan keeps of tensors that belong to a model's parameters.

    Args:
        model: the network that the plan was made for; it is not changed.
        plan: from :func:`~ssl_lightning.compaction.make_plan` with ``constants=False``.
        tensors: parameter name -> tensor of the parameter's shape, any type.

    Returns:
        Parameter name -> new tensor of the compact network's shape; names that the compact network
        does not have any more are missing.

    Raises:
        ValueError: if a tensor belongs to no parameter, or has another shape, or if the plan does
            more than to leave slices out.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> from ssl_lightning.graph import SiteSlices
        >>> plan = Plan({"": SiteSlices((0, 2), (0, 1), (3, 2), False)}, ((1, 3),), ("float32",))
        >>> slice_tensors(nn.Sequential(net)[0], plan, {"weight": torch.arange(6.0).view(2, 3)})
        {'weight': tensor([[0., 2.],
                [3., 5.]])}
    """
    check_pure(plan)
    carrier = working_copy(model)
    parameters = dict(carrier.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            found = parameters[name].shape if name in parameters else None
            raise ValueError(
                f"slice_tensors: expected tensors of the shapes of {type(model).__name__}'s "
                f"parameters, got {tuple(tensor.shape)} for `{name}`, which "
                + (f"has {tuple(found)}." if found is not None else "it does not have.")
            )
        parameters[name].requires_grad_(False).data = tensor.detach().clone()
    apply_plan(carrier, plan)
    inside = tuple(f"{layer}." for layer in plan.factors)
    names = [name for name, _ in carrier.named_parameters() if not name.startswith(inside)]
    if new := [name for name in names if name not in parameters]:
        layer = new[0].rpartition(".")[0]
        raise ValueError(
            f"slice_tensors: `{new[0]}` is computed from other parameters, whose optimizer state "
            "cannot be sliced. Before training call "
            f"{how_to_remove(layer, model.get_submodule(layer))}."
        )
    return {n: p.detach() for n, p in carrier.named_parameters() if n in tensors}


def check_pure(plan: Plan) -> None:
    """Refuse a plan that folds constants into biases or lets layers skip channels.

    Raises:
        ValueError: naming the first such module.
    """
    for name, slices in plan.modules.items():
        if slices.folded or slices.is_subset():
            raise ValueError(
                f"The plan moves constants into the bias of `{name}`, or lets it skip channels; "
                "what belongs to its weights cannot be sliced then. Make a plan for training: "
                "make_plan(model, example_input, constants=False)."
            )


def check_sliceable(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose state cannot be sliced along with the weights.

    Raises:
        ValueError: naming the optimizers that are supported.
    """
    if type(optimizer) not in SLICEABLE:
        raise ValueError(
            f"The state of {type(optimizer).__name__} is not known to hold one number per weight, "
            "so it cannot be sliced when the network is compacted during training. Use one of "
            f"{', '.join(cls.__name__ for cls in SLICEABLE)}."
        )


def slice_optimizer_(optimizer: Optimizer, model: nn.Module, plan: Plan, small: nn.Module) -> None:
    """Let an optimizer continue with the compact network's parameters, in place.

    Its state (momentum, moments, sums) is sliced as the weights were; parameter groups keep their
    settings, their order and their number, even those that lost all parameters. Parameters that
    are not the model's remain. Low rank factors take the place of the weight that they replace,
    in its group, and begin without a state.

    Args:
        optimizer: one of :data:`SLICEABLE`; learning-rate schedulers that hold it continue.
        model: the network it trains now; it is not changed.
        plan: the plan that leads from ``model`` to ``small``.
        small: the compact network.

    Raises:
        ValueError: as :func:`check_sliceable` and :func:`slice_tensors`.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> from ssl_lightning.compaction import compact, make_plan
        >>> net, x = create_backbone("lenet"), torch.zeros(1, 1, 28, 28)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> net(x).sum().backward(); sgd.step()
        >>> with torch.no_grad():
        ...     net.conv1.weight[3:] = 0
        ...     net.conv1.bias[3:] = 0
        >>> plan = make_plan(net, x, constants=False)
        >>> small = compact(net, plan)
        >>> slice_optimizer_(sgd, net, plan, small)
        >>> sgd.state[small.conv1.weight]["momentum_buffer"].shape
        torch.Size([3, 1, 5, 5])
    """
    check_sliceable(optimizer)
    names = {id(p): name for name, p in model.named_parameters()}
    kept = dict(small.named_parameters())
    states = sliced_states(optimizer, model, plan, kept)
    for group in optimizer.param_groups:
        parameters: list[nn.Parameter] = []
        for parameter in group["params"]:
            name = names.get(id(parameter))
            if name is None:
                parameters.append(parameter)
                continue
            optimizer.state.pop(parameter, None)
            parameters += [kept[new] for new in successors(name, plan, kept)]
        group["params"] = parameters
    for name, state in states.items():
        optimizer.state[kept[name]] = state


def successors(name: str, plan: Plan, kept: Mapping[str, nn.Parameter]) -> list[str]:
    """Return the names of the parameters that take a parameter's place: itself, or factors."""
    layer, _, attribute = name.rpartition(".")
    if layer not in plan.factors:
        return [name] if name in kept else []
    start, end = f"{layer}.", f".{attribute}"
    return [new for new in kept if new.startswith(start) and new.endswith(end)]


def sliced_states(
    optimizer: Optimizer, model: nn.Module, plan: Plan, kept: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Any]]:
    """Return the state of every parameter that is kept, by name, in the parameter's layout."""
    parameters = {n: p for n, p in model.named_parameters() if optimizer.state.get(p)}
    states = {n: dict(optimizer.state[p]) for n, p in parameters.items() if n in kept}
    for key in dict.fromkeys(key for state in states.values() for key in state):
        held = {n: s[key] for n, s in states.items() if is_elementwise(s.get(key), parameters[n])}
        for name, tensor in slice_tensors(model, plan, held).items():
            like = kept[name].detach()
            assert tensor.shape == like.shape
            states[name][key] = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
    return states


def is_elementwise(value: Any, parameter: Tensor) -> bool:
    """Whether a part of a parameter's state has one number per element (a step count has not)."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape
