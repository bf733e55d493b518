"""Layers of several models that stand side by side, each called alone on its real input."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from ssl_lightning import graph

Call = Callable[[], object]


def layer_names(models: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of all convolutions and linear layers, in the order of the first model.

    Layers inside of one that another model has whole, such as low rank factors, are part of it.

    Example:
        >>> layer_names({"dense": nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))})
        ['0', '2']
    """
    names = [name for model in models.values() for name in graph.layer_names(model, graph.WEIGHTED)]
    names = list(dict.fromkeys(names))
    inside = tuple(f"{name}." for name in names if name)
    return [name for name in names if not name.startswith(inside)]


def layer_macs(
    models: Mapping[str, nn.Module], own: Mapping[str, Mapping[str, int]], layer: str
) -> dict[str, int]:
    """Return model -> multiply-adds of the layer and all in it, where the model has the layer."""
    return {
        name: sum(n for path, n in own[name].items() if f"{path}.".startswith(f"{layer}."))
        for name, model in models.items()
        if _has_layer(dict(model.named_modules()), layer)
    }


def layer_calls(
    models: Mapping[str, nn.Module], inputs: graph.Inputs
) -> dict[str, dict[str, Call]]:
    """Return layer -> model -> call of that layer alone on its real input.

    A model in which the layer is missing, is an identity or is never called has no entry; a layer
    that no model calls has none.
    """
    names = layer_names(models)
    calls = {name: _calls(model, names, inputs) for name, model in models.items()}
    by_layer = {
        layer: {model: calls[model][layer] for model in models if layer in calls[model]}
        for layer in names
    }
    return {layer: found for layer, found in by_layer.items() if found}


def _calls(model: nn.Module, names: Sequence[str], inputs: graph.Inputs) -> dict[str, Call]:
    """Run the model once and keep the arguments that reach each named layer first."""
    modules = dict(model.named_modules())
    calls: dict[str, Call] = {}

    def keep(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.setdefault(name, partial(module, *args, **kwargs))

    handles = [
        modules[name].register_forward_pre_hook(partial(keep, name), with_kwargs=True)
        for name in names
        if _has_layer(modules, name)
    ]
    try:
        inputs.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _has_layer(modules: Mapping[str, nn.Module], name: str) -> bool:
    return name in modules and not isinstance(modules[name], nn.Identity)
