"""The baseline of the paper: layers with single zeros, as products of a sparse matrix."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class CsrProduct(nn.Module):
    """Matrices in compressed sparse rows, and a bias per row of all of them.

    Each is three buffers, in which bytes can be counted, types converted and
    copies made; torch's sparse tensors over the same memory stand beside them.

    Args:
        weights: matrices ``(rows, columns)`` with zeros; their numbers are copied.
        bias: ``(all rows,)`` or None.
    """

    bias: Tensor | None

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self.shapes = [tuple(weight.shape) for weight in weights]
        for i, weight in enumerate(weights):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sparse")
                rows = weight.detach().to_sparse_csr()
            self.register_buffer(f"starts{i}", rows.crow_indices().int())
            self.register_buffer(f"columns{i}", rows.col_indices().int())
            self.register_buffer(f"values{i}", rows.values())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._assemble()

    def _assemble(self) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse")
            self.matrices = [
                torch.sparse_csr_tensor(
                    self.get_buffer(f"starts{i}"),
                    self.get_buffer(f"columns{i}"),
                    self.get_buffer(f"values{i}"),
                    shape,
                    check_invariants=False,
                )
                for i, shape in enumerate(self.shapes)
            ]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._assemble()
        return result

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the sparse tensors, which cannot be copied."""
        return {key: value for key, value in self.__dict__.items() if key != "matrices"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put them together again."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._assemble()

    def multiply(self, columns: Tensor) -> Tensor:
        """Return the products with equal parts of ``columns``, below each other, and the bias."""
        parts = columns.chunk(len(self.matrices))
        products = [w @ part for w, part in zip(self.matrices, parts, strict=True)]
        product = torch.cat(products) if len(products) > 1 else products[0]
        return product if self.bias is None else product + self.bias[:, None]


class CsrConv2d(CsrProduct):
    """Multiply the whole lowered input by the weight in compressed sparse rows, per conv-group.

    Only for inference and comparison: it is what element-wise (l1) sparsity can be run with.

    Args:
        conv: convolution with zeros; its numbers are copied.

    Example:
        >>> conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        >>> x = torch.randn(2, 4, 5, 5)
        >>> torch.testing.assert_close(CsrConv2d(conv)(x), conv(x).detach())
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.weight.detach().flatten(1).chunk(conv.groups), conv.bias)
        sizes: tuple[Any, ...] = (conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        self.sizes = tuple(zip(*sizes, strict=True))  # per dimension
        self.unfold = nn.Unfold(*sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, H', W')``."""
        y = torch.stack([self.multiply(lowered) for lowered in self.unfold(x)])
        height, width = (
            (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for length, (kernel, dilation, padding, stride) in zip(
                x.shape[2:], self.sizes, strict=True
            )
        )
        output: Tensor = y.unflatten(2, (height, width))
        return output


class CsrLinear(CsrProduct):
    """A linear layer whose weight stands in compressed sparse rows; as :class:`CsrConv2d`.

    Example:
        >>> linear, x = nn.Linear(4, 3), torch.randn(2, 5, 4)
        >>> torch.testing.assert_close(CsrLinear(linear)(x), linear(x).detach())
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__([linear.weight], linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(..., out_features)``."""
        output: Tensor = self.multiply(x.flatten(0, -2).T).T.unflatten(0, x.shape[:-1])
        return output


def with_csr_layers(model: nn.Module) -> nn.Module:
    """Return a copy that runs convolutions and linear layers with zero weights as CSR products.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     _ = net[0].weight[0, 0, 0].zero_()
        >>> [type(layer).__name__ for layer in with_csr_layers(net)]
        ['CsrConv2d', 'Flatten', 'Linear']
    """
    result = copy.deepcopy(model)
    made: dict[nn.Module, nn.Module] = {}
    for name, layer in list(result.named_modules(remove_duplicate=False)):
        csr = made.get(layer) or _csr_layer(layer)
        if csr is not None:
            made[layer] = csr
            if not name:
                return csr
            result.set_submodule(name, csr)
    return result


def _csr_layer(layer: nn.Module) -> CsrProduct | None:
    """Return the layer as a CSR product; None if it has no zeros, or is not of such a kind."""
    if type(layer) is nn.Conv2d and not layer.weight.all():
        known = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return CsrConv2d(layer) if known else None
    if type(layer) is nn.Linear and not layer.weight.all():
        return CsrLinear(layer)
    return None
