"""Layers whose weight is computed from other tensors: weight norm, spectral norm, pruning masks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ssl_lightning.graph.copies import working_copy

OLD_STYLE: dict[Any, str] = {WeightNorm: "remove_weight_norm", SpectralNorm: "remove_spectral_norm"}
"""Hooks that compute a tensor before every call -> the function that removes them."""


def computed_tensors(module: nn.Module) -> dict[str, str]:
    """Return each tensor that a module computes from others -> the call that makes it plain.

    In the call, ``net`` stands for the module.

    Example:
        >>> layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        >>> computed_tensors(layer)
        {'weight': 'torch.nn.utils.parametrize.remove_parametrizations(net, "weight")'}
    """
    found = {}
    if parametrize.is_parametrized(module):
        for name in module.parametrizations:  # type: ignore[union-attr]
            found[name] = f'torch.nn.utils.parametrize.remove_parametrizations(net, "{name}")'
    hook: Any
    for hook in module._forward_pre_hooks.values():
        if issubclass(type(hook), prune.BasePruningMethod):
            found[hook._tensor_name] = f'torch.nn.utils.prune.remove(net, "{hook._tensor_name}")'
        for kind, function in OLD_STYLE.items():
            if type(hook) is kind:
                found[hook.name] = f'torch.nn.utils.{function}(net, "{hook.name}")'
    return found


def how_to_remove(name: str, module: nn.Module) -> str:
    """Return the call that makes the first computed tensor of a module plain, with its name."""
    return next(iter(computed_tensors(module).values())).replace("(net,", f"({accessor(name)},")


def accessor(name: str) -> str:
    """Return Python code for a module of ``net``.

    Example:
        >>> accessor("blocks.0.conv"), accessor("")
        ('net.blocks[0].conv', 'net')
    """
    parts = (f"[{part}]" if part.isdigit() else f".{part}" for part in name.split(".") if part)
    return "net" + "".join(parts)


def computing_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) of all modules that compute some of their tensors from others."""
    for name, module in model.named_modules():
        if computed_tensors(module):
            yield name, module


def with_plain_weights(model: nn.Module) -> nn.Module:
    """Return the model, or a copy that holds as parameters what the model computes in eval.

    Example:
        >>> net = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        >>> plain = with_plain_weights(net)
        >>> isinstance(plain.weight, nn.Parameter), torch.equal(plain.weight, net.weight)
        (True, True)
    """
    if not any(True for _ in computing_modules(model)):
        return model
    return make_plain_(working_copy(model))


def make_plain_(model: nn.Module, names: Collection[str] | None = None) -> nn.Module:
    """Let modules hold as parameters what they compute in eval; in place.

    Args:
        model: the network.
        names: of the modules; None for all.
    """
    for name, module in list(computing_modules(model)):
        if names is None or name in names:
            if parametrize.is_parametrized(module):
                drop_parametrizations_(module)
            remove_hooks_(module)
    return model


def drop_parametrizations_(module: nn.Module) -> None:
    """Make the parametrised tensors of a module parameters (or buffers, as they were).

    ``remove_parametrizations`` also changes the class, which copies share with the original.
    """
    parametrizations: nn.ModuleDict = module._modules["parametrizations"]  # type: ignore[assignment]
    parametrizations.eval()  # else spectral norm makes a step of its iteration
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in parametrizations}
    originals = {name: list(steps.parameters()) for name, steps in parametrizations.items()}
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        if originals[name]:
            trained = any(p.requires_grad for p in originals[name])
            module.register_parameter(name, nn.Parameter(value, requires_grad=trained))
        else:
            module.register_buffer(name, value)


def remove_hooks_(module: nn.Module) -> None:
    """Make the tensors parameters that old-style norms and pruning masks compute."""
    hooks: list[tuple[int, Any]] = list(module._forward_pre_hooks.items())
    for key, hook in hooks:
        if type(hook) in OLD_STYLE or isinstance(hook, prune.BasePruningMethod):
            modes = module.training
            module.eval()
            hook.remove(module)
            module.train(modes)
            del module._forward_pre_hooks[key]


def scale_of_outputs(module: nn.Module, name: str) -> str | None:
    """Return the parameter of a weight norm that has one factor per output, if it has.

    Zeroing factors zeroes those outputs' weights and changes no others. Of a spectral norm, say,
    there is no such parameter.

    Example:
        >>> scale_of_outputs(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "weight")
        'parametrizations.weight.original0'
    """
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return None  # its factors belong to inputs
    if parametrize.is_parametrized(module, name):
        steps = module.parametrizations[name]  # type: ignore[index]
        norms = [s for s in steps if isinstance(s, _WeightNorm) and s.dim == 0]
        return f"parametrizations.{name}.original0" if len(norms) == len(steps) == 1 else None
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name and hook.dim == 0:
            return f"{name}_g"
    return None
