"""Cutting what is no layer: single parameters, and sizes that modules hold as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.graph import WEIGHTED, SiteSlices
from ssl_lightning.suggest import shortened


def check_parameter(model: nn.Module, name: str, parameter: Tensor, slices: SiteSlices) -> None:
    """Compare a parameter with what the plan expects there."""
    dim, known = slices.dim, parameter.dim()
    fits = dim is not None and 0 <= dim < known and parameter.shape[dim] == slices.of[1]
    if slices.of[0]:  # a matrix, of which both dimensions are cut
        fits = fits and known == 2 and parameter.shape[1 - (dim or 0)] == slices.of[0]
    if not fits:
        raise ValueError(
            f"The plan expects `{name}` with {slices.of[1]} elements in dimension {dim}, "
            f"{type(model).__name__} has it with the shape {tuple(parameter.shape)}. Use the plan "
            "with the backbone and arguments it was made for."
        )


def slice_parameter(model: nn.Module, name: str, slices: SiteSlices) -> None:
    """Cut a parameter or buffer that belongs to no layer, in all modules that have it.

    A matrix is cut both ways.
    """
    path, _, attribute = name.rpartition(".")
    whole = getattr(model.get_submodule(path), attribute)
    dim = slices.dim or 0
    part: Tensor = select(whole, slices.outputs, dim=dim)
    part = select(part, slices.inputs, dim=1 - dim) if slices.of[0] else part
    if isinstance(whole, nn.Parameter):
        part = replace_parameter(whole, part)
    for module in model.modules():
        for key, other in [*module._parameters.items(), *module._buffers.items()]:
            if other is whole:
                setattr(module, key, part)


def check_unflatten(name: str, module: nn.Unflatten, slices: SiteSlices) -> None:
    """Make sure that a module makes the channels that the plan cuts."""
    sizes: Any = module.unflattened_size
    dim = slices.dim
    if dim is None or not 0 <= dim < len(sizes) or sizes[dim] not in (-1, slices.of[1]):
        raise ValueError(
            f"The plan expects `{name}` to make {slices.of[1]} channels in dimension {dim}, it "
            f"makes {sizes}. Use the plan with the backbone and arguments it was made for."
        )


def shrink_unflatten(module: nn.Unflatten, slices: SiteSlices) -> None:
    """Let a module make only the remaining channels; -1 is any number of them."""
    sizes: Any = list(module.unflattened_size)
    if slices.dim is not None and sizes[slices.dim] != -1:
        sizes[slices.dim] = len(slices.outputs)
    module.unflattened_size = tuple(sizes)


def check_attributes(name: str, module: nn.Module, slices: SiteSlices) -> None:
    """Make sure that a module has the numbers that the plan changes."""
    missing = [key for key in slices.attributes if type(module.__dict__.get(key)) is not int]
    if missing:
        raise ValueError(
            f"The plan expects `{name}` to have a number `{missing[0]}`, {type(module).__name__} "
            "has none. Use the plan with the backbone and arguments it was made for."
        )


def check_counts(model: nn.Module, sites: Mapping[str, SiteSlices], where: str) -> None:
    """Make sure that the attributes of a plan are counts of the network's own, none larger.

    Raises:
        ValueError: naming the first that is not.
    """
    known = dict(model.named_modules())
    for name, slices in sites.items():
        for key, value in slices.attributes.items():
            module = known.get(name)
            old = getattr(module, "__dict__", {}).get(key)
            layer = isinstance(module, WEIGHTED)
            if type(old) is not int or not 0 <= value <= old or layer:
                raise ValueError(
                    f"{where}: the plan sets {shortened(key)} of `{shortened(name)}` to "
                    f"{shortened(value)}, expected a number of heads or channels that the module "
                    f"holds, up to {shortened(old)}. Make the plan again."
                )


def select(tensor: Tensor, kept: tuple[int, ...] | list[int], dim: int = 0) -> Tensor:
    """Return a copy with only the kept indices along ``dim``."""
    index = torch.tensor(kept, dtype=torch.long, device=tensor.device)
    return tensor.detach().index_select(dim, index)


def replace_parameter(old: Tensor | None, new: Tensor | None) -> Any:
    """Return a parameter with new values that needs gradients if the old one did; None for None."""
    if old is None or new is None:
        return None
    return nn.Parameter(new, requires_grad=old.requires_grad)
