"""The baseline of the paper: a convolution with single zeros, as a sparse product."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


class CsrConv2d(nn.Module):
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
        super().__init__()
        weight = conv.weight.detach().flatten(1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            warnings.filterwarnings("ignore", "Sparse invariant checks")
            self.weights = [part.to_sparse_csr() for part in weight.chunk(conv.groups)]
        self.bias = None if conv.bias is None else conv.bias.detach()[:, None]
        self.unfold = nn.Unfold(conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, H', W')``."""
        images = []
        for lowered in self.unfold(x):
            parts = lowered.chunk(len(self.weights))
            images.append(
                torch.cat([w @ part for w, part in zip(self.weights, parts, strict=True)])
            )
        y = torch.stack(images)
        y = y if self.bias is None else y + self.bias
        output: Tensor = y.unflatten(2, self._size(x))
        return output

    def _size(self, x: Tensor) -> tuple[int, int]:
        c = self.conv
        sizes = [
            (x.shape[2 + i] + 2 * int(c.padding[i]) - c.dilation[i] * (c.kernel_size[i] - 1) - 1)
            // c.stride[i]
            + 1
            for i in range(2)
        ]
        return sizes[0], sizes[1]
