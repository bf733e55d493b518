"""Norms over channels of which some were removed, by the statistics of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.compaction.modules import index_device


class WideLayerNorm(nn.Module):
    """Layer normalisation of channels of which some were removed, by the statistics of all.

    The removed channels were zero: they add nothing to the sum, and the squared mean to the
    variance.

    Args:
        norm: the normalisation over all channels.
        kept: positions of the remaining channels, ascending.
        dim: dimension of the input that numbers the channels.

    Example:
        >>> norm = nn.LayerNorm(3)
        >>> x = torch.tensor([[1.0, 0.0, 2.0]])
        >>> torch.allclose(WideLayerNorm(norm, [0, 2], -1)(x[:, [0, 2]]), norm(x)[:, [0, 2]])
        True
    """

    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm, kept: Sequence[int], dim: int) -> None:
        super().__init__()
        self.width, self.dim = norm.normalized_shape[0], dim
        self.eps: Any = norm.eps
        self.weight = take(norm.weight, kept)
        self.bias = take(getattr(norm, "bias", None), kept)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised ``x``, same shape."""
        y = single(x.movedim(self.dim, -1))
        mean = y.sum(-1, keepdim=True) / self.width
        gone = self.width - y.shape[-1]
        y = y - mean
        variance = (y.square().sum(-1, keepdim=True) + gone * mean.square()) / self.width
        y = y * torch.rsqrt(variance + self.eps)
        y = y if self.weight is None else y * self.weight
        y = y if self.bias is None else y + self.bias
        return y.movedim(-1, self.dim).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the old width."""
        return f"width={self.width}, eps={self.eps}"


class WideRMSNorm(WideLayerNorm):
    """RMS normalisation of channels of which some were removed, by the mean over all.

    The removed channels were zero and add nothing to the sum of squares.

    Args:
        norm: the normalisation over all channels.
        kept: positions of the remaining channels, ascending.
        dim: dimension of the input that numbers the channels.

    Example:
        >>> norm = nn.RMSNorm(3)
        >>> x = torch.tensor([[1.0, 0.0, 2.0]])
        >>> torch.allclose(WideRMSNorm(norm, [0, 2], -1)(x[:, [0, 2]]), norm(x)[:, [0, 2]])
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised ``x``, same shape."""
        y = single(x.movedim(self.dim, -1))
        eps = torch.finfo(y.dtype).eps if self.eps is None else self.eps
        y = y * torch.rsqrt(y.square().sum(-1, keepdim=True) / self.width + eps)
        y = y if self.weight is None else y * self.weight
        return y.movedim(-1, self.dim).to(x.dtype)


class WideGroupNorm(nn.Module):
    """Group normalisation of channels of which some were removed, by the statistics of all.

    Args:
        norm: the normalisation over all channels.
        kept: positions of the remaining channels, ascending.

    Example:
        >>> norm = nn.GroupNorm(2, 4)
        >>> x = torch.tensor([1.0, 0.0, 3.0, 4.0]).view(1, 4, 1)
        >>> torch.allclose(WideGroupNorm(norm, [0, 2, 3])(x[:, [0, 2, 3]]), norm(x)[:, [0, 2, 3]])
        True
    """

    member: Tensor

    def __init__(self, norm: nn.GroupNorm, kept: Sequence[int]) -> None:
        super().__init__()
        self.per_group, self.eps = norm.num_channels // norm.num_groups, norm.eps
        self.weight, self.bias = (take(p, kept) for p in (norm.weight, norm.bias))
        device = index_device(norm.weight)
        groups = torch.tensor(list(kept), device=device) // self.per_group
        member = groups == torch.arange(norm.num_groups, device=device)[:, None]
        self.register_buffer("member", member, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised ``x``, same shape ``(N, C, *)``."""
        y = single(x).flatten(2) if x.dim() > 2 else single(x)[..., None]
        member = self.member.to(y.dtype)  # (groups, channels)
        size = self.per_group * y.shape[2]
        mean = y.sum(2) @ member.t() / size  # (N, groups)
        gone = self.per_group - member.sum(1)
        y = y - (mean @ member)[..., None]
        square = y.square().sum(2) @ member.t() + gone * y.shape[2] * mean.square()
        y = y * (torch.rsqrt(square / size + self.eps) @ member)[..., None]
        y = y if self.weight is None else y * self.weight[:, None]
        y = y if self.bias is None else y + self.bias[:, None]
        return y.view(x.shape).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the old width of a group."""
        return f"groups={len(self.member)}, per_group={self.per_group}, eps={self.eps}"


def take(parameter: nn.Parameter | None, kept: Sequence[int]) -> nn.Parameter | None:
    """Return the kept part of a parameter, which needs gradients if the whole one did."""
    if parameter is None:
        return None
    index = torch.tensor(list(kept), dtype=torch.long, device=parameter.device)
    part = parameter.detach().index_select(0, index)
    return nn.Parameter(part, requires_grad=parameter.requires_grad)


def single(x: Tensor) -> Tensor:
    """Return a tensor in at least single precision, in which norms compute."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
