"""How two networks' outputs are compared, in which precision, and how one fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_lightning.compaction.thresholds import Comparison, watched_sizes
from ssl_lightning.graph import Inputs

TOLERANCE = 1e-9  # of the output's scale, in float64
LOWER = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Least tolerance where something is computed in a lower precision."""

LARGEST = 0.1  # no difference above is called rounding
SPREADS = 10  # rounding within differs from rounding of the inputs by no more than this factor


@dataclass(frozen=True)
class Problem:
    """How a compact network fails.

    Attributes:
        text: what happened.
        modules: if it raised, names of the modules that were running, the innermost last.
        train: whether it failed in train mode.
        values: whether its outputs have the right shapes, but other values.
    """

    text: str
    modules: tuple[str, ...] = ()
    train: bool = False
    values: bool = False


@contextmanager
def watched(network: nn.Module, running: list[str], ran: list[str]) -> Iterator[None]:
    """Keep in ``running`` the modules whose ``forward`` is running, in ``ran`` all that did."""

    def enter(name: str) -> None:
        running.append(name)
        ran.append(name)

    def leave(*_: object) -> None:
        running.pop()

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Path(TorchFunctionMode):
    """Records which functions a network calls in which modules: the path that its code takes.

    Of padding also is recorded where there is any, since none and some are different paths.

    Attributes:
        steps: the functions, with the modules.
        compared: sizes of tensors and the numbers that the code compared them with, if ``watch``.
    """

    def __init__(self, running: list[str], *, watch: bool = False) -> None:
        super().__init__()
        self.running, self.watch = running, watch
        self.steps: list[tuple[str, ...]] = []
        self.compared: list[Comparison] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name not in ("__get__", "size", "dim", "__len__"):
            where = self.running[-1] if self.running else ""
            self.steps.append((where, name, signs(args[1:], kwargs) if "pad" in name else ""))
        result = func(*args, **(kwargs or {}))
        if self.watch and name in ("__get__", "size", "numel", "nelement"):
            return watched_sizes(result, self.compared)
        return result


def signs(*arguments: Any) -> str:
    """Return nested arguments with + and - for numbers above and below 0.

    Example:
        >>> signs([0, 3, 0, -1], {"value": 0.5})
        '0+0-+'
    """
    leaves = pytree.tree_leaves(arguments)
    numbers = [leaf for leaf in leaves if isinstance(leaf, (int, float))]
    return "".join("+" if n > 0 else "-" if n < 0 else "0" for n in numbers)


class Precision(TorchDispatchMode):
    """Records the floating-point types of all results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
                self.found.add(leaf.dtype.to_real() if leaf.is_complex() else leaf.dtype)
        return out

    @property
    def lowest(self) -> torch.dtype | None:
        """The lowest of those below float64."""
        lower = [kind for kind in LOWER if kind in self.found]
        return max(lower, key=lambda kind: torch.finfo(kind).eps) if lower else None


def random_inputs(inputs: Inputs, dtype: torch.dtype = torch.float64) -> Inputs:
    """Return normal inputs of the same shapes; integers are unchanged."""
    generator = torch.Generator().manual_seed(0)

    def draw(x: Tensor) -> Tensor:
        if x.is_complex():
            return torch.randn(x.shape, generator=generator, dtype=dtype.to_complex()).to(x.device)
        if not x.is_floating_point():
            return x
        return torch.randn(x.shape, generator=generator, dtype=dtype).to(x.device)

    return inputs.map(draw)


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
    if (text := compare_shapes(expected, found)) is not None:
        return text
    for a, b in zip(expected, found, strict=True):
        if not (error := relative(a, b)) <= tolerance:
            return f"an output differs by {error:.1e} of its scale"
    return None


def compare_shapes(expected: list[Tensor], found: list[Tensor]) -> str | None:
    """Say how two lists of outputs differ in number or shape, or None."""
    if len(expected) != len(found) or not expected:
        return f"it returns {len(found)} tensors instead of {len(expected)}"
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return f"an output has shape {tuple(b.shape)} instead of {tuple(a.shape)}"
    return None


def difference(expected: object, found: object) -> float:
    """Return how far the tensors of two outputs are from each other.

    Args:
        expected: tensors, also in nested lists, tuples and mappings.
        found: the same.

    Returns:
        The largest difference, of the scale of the expected tensor; infinity if the outputs have
        other numbers of tensors or other shapes, or only one of them has a NaN.

    Example:
        >>> difference(torch.tensor([2.0, 5.0]), [torch.tensor([1.0, 5.0])])
        0.2
        >>> difference(torch.ones(1), torch.tensor([torch.nan])), difference(torch.ones(1), [])
        (inf, inf)
    """
    one, other = tensors_of(expected), tensors_of(found)
    if compare_shapes(one, other) is not None:
        return math.inf
    return max(relative(a, b) for a, b in zip(one, other, strict=True))


def relative(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference of two tensors of one shape, of the scale of the first.

    What is NaN or infinite in both (an empty mean, a mask) is no difference; a NaN in one of them
    is an infinite one.

    Example:
        >>> relative(torch.tensor([2.0, torch.nan]), torch.tensor([1.5, torch.nan]))
        0.25
    """
    kind = torch.complex128 if expected.is_complex() else torch.float64
    a, b = expected.to(kind), found.to(kind)
    differ = ~((a == b) | (a.isnan() & b.isnan()))
    if not bool(differ.any()):
        return 0.0
    finite = a[a.isfinite()].abs()
    scale = max(float(finite.max()), 1e-30) if finite.numel() else 1.0
    error = float((a - b)[differ].abs().max()) / scale
    return math.inf if math.isnan(error) else error
