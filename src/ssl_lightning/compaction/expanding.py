"""expand: from a compact network back to the one with zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ssl_lightning.compaction.factors import insert_factors_, merge_factors_
from ssl_lightning.compaction.plan import Plan
from ssl_lightning.compaction.rewrite import apply_slices
from ssl_lightning.compaction.sparse import with_dense_layers
from ssl_lightning.graph import LayerWrapper, make_plain_, working_copy


@torch.no_grad()
def expand(small: nn.Module, backbone: nn.Module, plans: Plan | Sequence[Plan]) -> nn.Module:
    """Return the masked network that a compact one stands for: its weights where they came from.

    What the plans removed is zero. Where each weight came from is found by shrinking a copy of the
    backbone whose elements hold their own numbers. Constants that were folded into biases cannot be
    distinguished from them, so the masked network then has the zeros and sizes, not the function.
    Low rank factors are multiplied, so that the layer that they replaced has their product.

    Args:
        small: the compact network.
        backbone: any network of the architecture it was made from; only that is used.
        plans: the plan it was made with, or several carried out one after the other.

    Raises:
        ValueError: if the three do not belong together.

    Example:
        >>> from ssl_lightning import compact, create_backbone, make_plan
        >>> net = create_backbone("mlp", widths=(4,))
        >>> _ = torch.nn.init.zeros_(net.fc1.weight[1:3]), torch.nn.init.zeros_(net.fc1.bias)
        >>> plan = make_plan(net, torch.zeros(1, 1, 28, 28))
        >>> masked = expand(compact(net, plan), net, plan)
        >>> torch.equal(masked.fc1.weight, net.fc1.weight)
        True
    """
    small = with_dense_layers(small)
    plans = (plans,) if isinstance(plans, Plan) else plans
    last = max((i for i, plan in enumerate(plans) if plan.factors), default=None)
    if last is not None:
        before, factors = plans[:last], plans[last].factors
        stage = shrunk_copy(backbone, before)
        wide = expand(small, insert_factors_(working_copy(stage), factors), plans[last + 1 :])
        merge_factors_(stage, factors, wide)
        return expand(stage.train(small.training), backbone, before)
    return put_back(small, backbone, plans)


def shrunk_copy(model: nn.Module, plans: Sequence[Plan]) -> nn.Module:
    """Return a copy of a network with the layers that plans leave of it, whatever its weights."""
    copied = working_copy(model, apart=False)
    for plan in plans:
        apply_slices(insert_factors_(copied, plan.factors), without_constants(plan).modules)
    return copied


def put_back(small: nn.Module, backbone: nn.Module, plans: Sequence[Plan]) -> nn.Module:
    """Return what :func:`expand` does, for plans without factors."""
    shrunk = {name for plan in plans for name in plan.removed()}
    masked = make_plain_(working_copy(backbone, apart=False), shrunk)
    numbers = number_elements_(working_copy(masked).double())
    for plan in plans:
        numbers = apply_slices(numbers, without_constants(plan).modules)
    places, values = numbers.state_dict(), small.state_dict()
    if {k: v.shape for k, v in places.items()} != {k: v.shape for k, v in values.items()}:
        raise ValueError(
            f"expand: the plan does not turn this {type(backbone).__name__} into the compact "
            "network given. Use the backbone, arguments and plan stored with it."
        )
    for parameter in masked.parameters():
        parameter.zero_()
    targets = masked.state_dict()
    for name, value in values.items():
        target = targets.get(unwrapped(numbers, name))
        if target is not None:
            place = places[name].flatten().long()
            flat = target.flatten().clone()  # in memory they may lie in another order
            flat[place] = value.to(target.dtype).flatten()
            target.copy_(flat.view(target.shape))
    return masked.train(small.training)


def without_constants(plan: Plan) -> Plan:
    """Return a plan that folds zeros in the place of its constants."""
    modules = {
        name: replace(slices, constants=(0.0,) * len(slices.constants))
        for name, slices in plan.modules.items()
    }
    return replace(plan, modules=modules)


def unwrapped(model: nn.Module, name: str) -> str:
    """Return a tensor's name in the network before compaction: without the wrapper of its layer."""
    path, _, attribute = name.rpartition(".")
    outer, _, inner = path.rpartition(".")
    if inner == "layer" and isinstance(model.get_submodule(outer), LayerWrapper):
        return f"{outer}.{attribute}"
    return name


def number_elements_(model: nn.Module) -> nn.Module:
    """Give every element of parameters and floating-point buffers its own number in its tensor."""
    for tensor in model.state_dict().values():
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    return model
