"""The last gate: both networks are run in float64 and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ssl_lightning.compaction.rewrite import apply_slices, check_modules
from ssl_lightning.graph import SiteSlices, working_copy

TOLERANCE = 1e-9  # of the output's scale, in float64


@dataclass(frozen=True)
class Problem:
    """How a compact network fails.

    Attributes:
        text: what happened.
        modules: if it raised, names of the modules that were running, the innermost last.
    """

    text: str
    modules: tuple[str, ...] = ()


def difference(
    model: nn.Module, modules: Mapping[str, SiteSlices], example: tuple[Tensor, ...]
) -> Problem | None:
    """Carry slices out on a copy and say how its outputs differ, or None if they do not.

    Raises:
        ValueError: if the slices do not fit the model's layers.
    """
    check_modules(model, modules)
    network = working_copy(model, torch.float64).eval()
    inputs = random_inputs(example)
    with torch.no_grad():
        expected = [t.clone() for t in tensors_of(network(*clones(inputs)))]
        network = apply_slices(network, modules)
        running: list[str] = []
        watch(network, running)
        try:
            found = tensors_of(network(*clones(inputs)))
        except Exception as error:
            return Problem(f"{type(error).__name__}: {error}", tuple(running))
    text = compare(expected, found)
    return None if text is None else Problem(text)


def watch(network: nn.Module, running: list[str]) -> None:
    """Keep in ``running`` the names of the modules whose ``forward`` is running."""

    def enter(name: str) -> None:
        running.append(name)

    def leave(*_: object) -> None:
        running.pop()

    for name, module in network.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: enter(name))
        module.register_forward_hook(leave)


def random_inputs(example: tuple[Tensor, ...]) -> list[Tensor]:
    """Return normal float64 inputs of the same shapes; integers stay what they are."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        if x.is_floating_point()
        else x
        for x in example
    ]


def clones(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies, for networks that write into their inputs."""
    return [t.clone() for t in tensors]


def tensors_of(outputs: object) -> list[Tensor]:
    """Return all tensors in nested lists, tuples, mappings and registered classes."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def compare(
    expected: list[Tensor], found: list[Tensor], tolerance: float = TOLERANCE
) -> str | None:
    """Say how two lists of outputs differ by more than ``tolerance`` of their scale, or None.

    Example:
        >>> compare([torch.ones(2)], [torch.tensor([1.0, 1.5])])
        'an output differs by 5.0e-01 of its scale'
    """
    if len(expected) != len(found) or not expected:
        return f"it returns {len(found)} tensors instead of {len(expected)}"
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return f"an output has shape {tuple(b.shape)} instead of {tuple(a.shape)}"
        a, b = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
        scale = max(float(a.abs().max()), 1e-30) if a.numel() else 1.0
        error = float((a - b).abs().max()) / scale if a.numel() else 0.0
        if not error <= tolerance:
            return f"an output differs by {error:.1e} of its scale"
    return None
