"""What a network was before it was compacted in training: described, made again, replaced."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ssl_lightning.graph import ExampleInput
from ssl_lightning.graph.copies import CopyTensors, not_copyable
from ssl_lightning.groups import GroupSet, kept_groups
from ssl_lightning.measure import count_macs
from ssl_lightning.suggest import shortened


@dataclass(frozen=True)
class Origin:
    """What a network was before it was compacted in training for the first time.

    Attributes:
        parameters: names of its parameters.
        group_sizes: group set name -> number of elements in one of its groups.
        groups: layer -> filters, channels, columns -> how many there were.
        macs: multiply-adds of one example; None if its shape is not known.
        singles: layer under an element-wise penalty -> how many weights it had.
        counts: group set name -> number of its groups.
    """

    parameters: list[str]
    group_sizes: dict[str, int]
    groups: dict[str, dict[str, int]]
    macs: int | None = None
    singles: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, network: nn.Module, example: ExampleInput, group_sets: Iterable[GroupSet]
    ) -> Origin:
        """Describe a network, with the group sets of the penalties on it."""
        group_sets = list(group_sets)
        return cls(
            parameters=[name for name, _ in network.named_parameters()],
            group_sizes={s.name: s.group_size for s in group_sets},
            groups={
                layer: {k: of for k, (_, of) in kinds.items()}
                for layer, kinds in kept_groups(network).items()
            },
            macs=None if example is None else count_macs(network, example),
            singles={s.layer: s.num_groups for s in group_sets if s.elementwise},
            counts={s.name: s.num_groups for s in group_sets},
        )

    def with_factors(
        self, layers: Collection[str], small: nn.Module, group_sets: Iterable[GroupSet]
    ) -> Origin:
        """Return what further compaction is compared with once factors have replaced layers.

        The multiply-adds remain those of the network before.

        Args:
            layers: that were replaced.
            small: the network with the factors.
            group_sets: of the penalties on it.
        """
        inside = tuple(f"{layer}." for layer in layers)
        names = [name for name, _ in small.named_parameters() if name.startswith(inside)]
        sizes, singles = dict(self.group_sizes), dict(self.singles)
        counts = dict(self.counts)
        for found in group_sets:
            new = any(m.parameter.startswith(inside) for m in (*found.members, *found.companions))
            if new or found.name not in sizes:
                sizes[found.name], counts[found.name] = found.group_size, found.num_groups
            if found.elementwise and (new or found.layer not in singles):
                singles[found.layer] = found.num_groups
        groups = {name: of for name, of in self.groups.items() if name not in layers}
        for name, kinds in kept_groups(small).items():
            if name.startswith(inside):
                groups[name] = {kind: of for kind, (_, of) in kinds.items()}
        return replace(
            self,
            parameters=[*self.parameters, *(n for n in names if n not in self.parameters)],
            group_sizes=sizes,
            groups=groups,
            singles={name: of for name, of in singles.items() if name not in layers},
            counts=counts,
        )


def read_origin(data: Any) -> Origin | None:
    """Return what a checkpoint holds of the network before it was compacted, or None.

    Raises:
        ValueError: if it is damaged.
    """
    if not data:
        return None
    try:
        names, sizes, groups = data["parameters"], data["group_sizes"], data["groups"]
        return Origin(
            [str(name) for name in names],
            {str(name): int(size) for name, size in sizes.items()},
            {str(n): {str(k): int(of) for k, of in kinds.items()} for n, kinds in groups.items()},
            None if data.get("macs") is None else int(data["macs"]),
            {str(name): int(of) for name, of in data.get("singles", {}).items()},
            {str(name): int(of) for name, of in data.get("counts", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"`origin` is damaged: {type(error).__name__}: {shortened(str(error))}."
        ) from error


def maker(network: nn.Module) -> Callable[[], nn.Module]:
    """Return a function that makes networks of the present layers, whose parameters are NaN.

    Nothing of the parameters is held meanwhile, only their shapes. NaN, so that a parameter which
    is never loaded shows.

    Example:
        >>> make = maker(nn.Linear(2, 3))
        >>> make().weight.shape, bool(make().weight.isnan().all())
        (torch.Size([3, 2]), True)
    """
    shapes = with_parameters(network, partial(torch.empty_like, device="meta"))
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    return partial(with_parameters, shapes, partial(filled, device=device))


def filled(like: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the same shape, type and strides: NaN, or 0 where its type has no NaN."""
    value = math.nan if like.is_floating_point() else 0
    return torch.full_like(like, value, device=device)


def with_parameters(network: nn.Module, make: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """Return a copy of a network in which other tensors take the places of the parameters."""
    memo: dict[int, Any] = {id(shared): shared for shared in not_copyable(network)}
    for parameter in network.parameters():
        tensor = make(parameter.detach())
        memo[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
    with CopyTensors(memo, None):
        return copy.deepcopy(network, memo)


def replace_everywhere(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a submodule under all of the names that it has in a module.

    Example:
        >>> shared, new = nn.ReLU(), nn.Tanh()
        >>> module = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
        >>> replace_everywhere(module, shared, new)
        >>> module["a"] is module["b"][0] is new
        True
    """
    for parent in list(module.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new
