"""Which layers of a network can be replaced by factors, what each costs, and why others cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ssl_lightning.compaction.factor_layers import METHODS, Layer, is_plain, is_spatial
from ssl_lightning.compaction.factors import unit_weights
from ssl_lightning.graph import (
    WEIGHTED,
    ExampleInput,
    LayerWrapper,
    as_inputs,
    same_random_state,
    working_copy,
)
from ssl_lightning.groups.selectors import as_patterns
from ssl_lightning.low_rank.ranks import Candidate
from ssl_lightning.measure import count_macs

READ_BY_CODE = (LayerWrapper, nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""Modules whose code reads the weights of the layers in them."""


@dataclass(frozen=True)
class Found:
    """The layers of a network.

    Attributes:
        candidates: those that can be replaced.
        left: layer -> why it cannot.
        macs: multiply-adds of the network on the example.
    """

    candidates: dict[str, Candidate]
    left: dict[str, str]
    macs: int


def find_layers(
    model: nn.Module,
    example_input: ExampleInput,
    method: str,
    layers: str | Sequence[str],
    excluded: Mapping[str, str],
) -> Found:
    """Return what can be replaced among the layers that patterns match.

    Args:
        model: any network; it is not changed.
        example_input: of the network, on which multiply-adds are counted.
        method: a name of :data:`~ssl_lightning.compaction.factor_layers.METHODS`.
        layers: glob, or globs, on names.
        excluded: layer -> why it is to remain as it is.

    Raises:
        ValueError: if a pattern matches no convolution or linear layer.
    """
    all_layers: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, WEIGHTED)
    }
    chosen = matching(all_layers, layers)
    left = {name: why for name in chosen if (why := reason(model, name, all_layers[name]))}
    left |= {name: why for name, why in excluded.items() if name in chosen}
    able = {name: all_layers[name] for name in chosen if name not in left}
    shapes = input_shapes(model, example_input, able)
    own = count_macs(model, example_input, per_layer=True)
    candidates = {}
    for name, layer in able.items():
        if not shapes[name]:
            left[name] = "it is not called with this input"
            continue
        kind = method if is_spatial(layer) or not METHODS[method].spatial else "svd"
        units = unit_costs(layer, kind, shapes[name])
        candidates[name] = Candidate(
            layer, kind, own.get(name, 0), units, tuple(unit_weights(layer, kind))
        )
    left = {name: left[name] for name in chosen if name in left}
    return Found(candidates, left, sum(own.values()))


def matching(names: Collection[str], layers: str | Sequence[str]) -> list[str]:
    """Return the names that patterns match.

    Raises:
        ValueError: if one matches none.
    """
    patterns = as_patterns("factorise", layers)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"factorise: the pattern {pattern!r} in `layers` matches no convolution or linear "
                f"layer. Layers: {', '.join(names) or 'none'}."
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def reason(model: nn.Module, name: str, layer: Layer) -> str | None:
    """Say why a layer must remain as it is, or return None."""
    if not name:
        return "it is the network itself"
    if not is_plain(layer):
        if getattr(layer, "groups", 1) > 1:
            return "it is grouped or depthwise"
        return f"it is a {type(layer).__name__}, no plain convolution or linear layer"
    if isinstance(parent := model.get_submodule(name.rpartition(".")[0]), READ_BY_CODE):
        return f"{type(parent).__name__} reads its weights"
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        return "it has hooks, or a forward of its own"
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    if owners[id(layer.weight)] > 1:
        return "it shares its weight with another layer"
    return None


def input_shapes(
    model: nn.Module, example_input: ExampleInput, layers: Collection[str]
) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes of the inputs with which each layer is called."""
    copied = working_copy(model).requires_grad_(False).eval()
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in layers}
    for name in layers:

        def keep(_: nn.Module, args: Any, name: str = name) -> None:
            shapes[name].append(tuple(args[0].shape))

        copied.get_submodule(name).register_forward_pre_hook(keep)
    with same_random_state(), torch.no_grad():
        as_inputs(example_input).run(copied)
    return shapes


def unit_costs(layer: Layer, method: str, shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the multiply-adds of each factor of a layer at rank 1.

    Args:
        layer: to be replaced.
        method: of the factors.
        shapes: of the inputs with which the layer is called.

    Example:
        >>> unit_costs(nn.Conv2d(4, 8, 3), "svd", [(1, 4, 6, 6)])
        (576, 128)
    """
    row, device = METHODS[method], torch.device("meta")
    parts: list[Any] = row.build(layer, (1,) * row.num_ranks, device)
    costs = [0] * len(parts)
    for shape in shapes:
        x = torch.empty(tuple(shape), device=device)
        for place, part in enumerate(parts):
            x = part(x)
            positions = x.numel() // part.weight.shape[0]
            costs[place] += positions * part.weight.numel()
    return tuple(costs)
