"""Low rank factors: layers in a row that stand for one, described by data, built and multiplied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.compaction.factor_layers import METHODS, Layer, is_plain, is_spatial
from ssl_lightning.compaction.rewrite import replace_in_attributes
from ssl_lightning.graph import same_random_state
from ssl_lightning.suggest import check_keys, nearest, pick, shortened

LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Factors:
    """How a layer is replaced by several in a row.

    Attributes:
        method: a name of :data:`METHODS`.
        ranks: numbers of channels between the new layers: one for ``svd`` and ``cp``; for
            ``tucker`` those that the core writes and those that it reads.

    Example:
        >>> Factors("tucker", (8, 4)).ranks
        (8, 4)
    """

    method: str
    ranks: tuple[int, ...]


def insert_factors_(model: nn.Module, factors: Mapping[str, Factors]) -> nn.Module:
    """Replace layers by an ``nn.Sequential`` of factors with fresh weights, in place.

    The random generators are left as they were.

    Raises:
        ValueError: as :func:`check_factors`; nothing is changed then.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
        >>> insert_factors_(net, {"0": Factors("svd", (2,))})[0]
        Sequential(
          (0): Linear(in_features=8, out_features=2, bias=False)
          (1): Linear(in_features=2, out_features=6, bias=True)
        )
    """
    check_factors(model, factors)
    known = dict(model.named_modules(remove_duplicate=False))
    replaced: dict[nn.Module, nn.Module] = {}
    with same_random_state():
        for name, factor in factors.items():
            old: Any = known[name]
            new = nn.Sequential(*METHODS[factor.method].build(old, factor.ranks, old.weight.device))
            replaced[old] = like(new, old)
    for alias, module in known.items():
        if module in replaced:
            model.set_submodule(alias, replaced[module])
    replace_in_attributes(model, replaced)
    return model


def like(new: nn.Sequential, old: Layer) -> nn.Sequential:
    """Give new layers the type of weights, the mode and the frozen parts of the old layer."""
    new.to(old.weight.dtype).train(old.training)
    for part in new:
        part.weight.requires_grad_(old.weight.requires_grad)
    if old.bias is not None:
        new[-1].bias.requires_grad_(old.bias.requires_grad)
    return new


def check_factors(model: nn.Module, factors: Mapping[str, Factors]) -> None:
    """Compare factors with the layers of a model, before anything is allocated.

    Raises:
        ValueError: if a layer is missing or of another kind, a method is not for it, or the ranks
            are larger than can be of use, so that the factors would hold more weights.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    seen: set[nn.Module] = set()
    for name, factor in factors.items():
        layer: Any = known.get(name)
        where = f"The plan's factors of `{shortened(name)[1:-1]}`"
        if not name or not is_plain(layer) or layer in seen:
            found = "no such layer" if layer is None else shortened(str(layer))
            raise ValueError(
                f"{where}: expected a linear layer or an ungrouped convolution inside of "
                f"{type(model).__name__}, found {found}. Use the plan with the backbone and "
                "arguments it was made for."
            )
        seen.add(layer)
        check_ranks(where, layer, factor)
        before, after = layer.weight.numel(), num_weights(layer, factor)
        if after > before:
            raise ValueError(
                f"{where}: the factors would hold {after} weights, the layer holds {before}. "
                "Expected fewer; take lower ranks, or leave the layer as it is."
            )


def check_ranks(where: str, layer: Layer, factor: Factors) -> None:
    """Refuse a method that is not for a layer, and ranks that it cannot have.

    Raises:
        ValueError: saying which it can have.
    """
    method = pick("method of factors", factor.method, METHODS)
    if method.spatial and not is_spatial(layer):
        raise ValueError(
            f"{where}: {factor.method!r} is for convolutions with a kernel of more than one "
            f"position, got {shortened(str(layer))}. Expected 'svd' there."
        )
    most = method.largest(layer)
    fits = len(factor.ranks) == len(most)
    if not fits or any(not 1 <= r <= m for r, m in zip(factor.ranks, most, strict=True)):
        raise ValueError(
            f"{where}: expected {len(most)} of the ranks 1 to {' and 1 to '.join(map(str, most))}"
            f", got {shortened(list(factor.ranks))}. Give ranks that the layer can have."
        )


def num_weights(layer: Layer, factor: Factors) -> int:
    """Return how many weights the factors of a layer hold, without making them; no biases.

    Example:
        >>> num_weights(nn.Conv2d(16, 32, 3), Factors("tucker", (8, 4)))
        608
    """
    times = METHODS[factor.method].channels(layer, factor.ranks)
    units = unit_weights(layer, factor.method)
    return sum(unit * n for unit, n in zip(units, times, strict=True))


def unit_weights(layer: Layer, method: str) -> list[int]:
    """Return how many weights each factor of a layer holds at rank 1.

    Example:
        >>> unit_weights(nn.Conv2d(16, 32, 3), "tucker")
        [16, 9, 32]
    """
    row = METHODS[method]
    parts: list[Any] = row.build(layer, (1,) * row.num_ranks, torch.device("meta"))
    return [part.weight.numel() for part in parts]


def product(layers: Iterable[Any]) -> Tensor:
    """Return the weight of the one layer that factors in a row stand for.

    Args:
        layers: linear layers, or convolutions of which at most one has a kernel of more than one
            position in each dimension; each ungrouped or depthwise.

    Returns:
        ``(O, I)`` or ``(O, I, *kernel_size)``, without history.

    Example:
        >>> first, last = nn.Conv2d(4, 2, 3, bias=False), nn.Conv2d(2, 5, 1)
        >>> product([first, last]).shape
        torch.Size([5, 4, 3, 3])
    """
    first, *rest = layers
    merged: Tensor = first.weight.detach()
    for layer in rest:
        weight: Tensor = layer.weight.detach()
        if getattr(layer, "groups", 1) > 1:
            merged = weight * merged
        else:
            merged = torch.einsum("or...,ri...->oi...", weight, merged)
    return merged


@torch.no_grad()
def merge_factors_(model: nn.Module, factors: Mapping[str, Factors], source: nn.Module) -> None:
    """Give a network with the layers before factors the weights that a factorised one stands for.

    Args:
        model: with the layers, changed in place.
        factors: that replaced layers in ``source``.
        source: the network with the factors.
    """
    inside = tuple(f"{name}." for name in factors)
    targets, values = model.state_dict(), source.state_dict()
    for name, value in values.items():
        if name in targets and not name.startswith(inside):
            targets[name].copy_(value)
    for name in factors:
        layer: Any = model.get_submodule(name)
        parts: Any = source.get_submodule(name)
        layer.weight.copy_(product(parts))
        if layer.bias is not None:
            layer.bias.copy_(parts[-1].bias)


def read_factors(data: Any) -> dict[str, Factors]:
    """Return factors from their JSON form: layer -> method and ranks.

    Raises:
        ValueError: if they are damaged.

    Example:
        >>> read_factors({"conv2": {"method": "svd", "ranks": [8]}})
        {'conv2': Factors(method='svd', ranks=(8,))}
    """
    if not isinstance(data, dict):
        raise ValueError(f"Plan: expected `factors` as an object, got {shortened(data)}.")
    found = {}
    for name, given in data.items():
        where = f"Plan, factors of `{shortened(name)[1:-1]}`"
        if not isinstance(given, dict):
            raise ValueError(f"{where}: expected method and ranks, got {shortened(given)}.")
        check_keys(where, given, ["method", "ranks"])
        method, ranks = given.get("method"), given.get("ranks", [])
        if not isinstance(method, str) or method not in METHODS:
            raise ValueError(
                f"{where}: unknown method {shortened(method)}. {nearest(str(method)[:40], METHODS)}"
            )
        listed = isinstance(ranks, list) and len(ranks) == METHODS[method].num_ranks
        if not listed or not all(type(r) is int and 1 <= r <= LARGEST for r in ranks):
            raise ValueError(
                f"{where}: expected {METHODS[method].num_ranks} positive ranks, got "
                f"{shortened(ranks)}."
            )
        found[name] = Factors(method, tuple(ranks))
    return found
