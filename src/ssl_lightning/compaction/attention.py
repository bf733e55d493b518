"""torch's multi-head attention with only some of its heads, or of its channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
VECTORS = ("in_proj_bias", "bias_k", "bias_v")


class HeadsAttention(nn.Module):
    """Compute what ``nn.MultiheadAttention`` does, of any number of heads of any width.

    torch's own layer asks for ``embed_dim == num_heads * head_dim``, which fails once heads are
    removed. Parameters have the same names and the call is the same.

    Args:
        layer: with the remaining parameters, which become this layer's; its ``num_heads`` says how
            many heads they are.

    Example:
        >>> layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        >>> x = torch.randn(1, 5, 8)
        >>> torch.allclose(HeadsAttention(layer)(x, x, x)[0], layer(x, x, x)[0], atol=1e-6)
        True
    """

    _qkv_same_embed_dim = False  # torch's encoder layer then calls this, not one fused operation

    bias_k: Tensor | None
    bias_v: Tensor

    def __init__(self, layer: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = layer.num_heads
        self.dropout, self.batch_first = layer.dropout, layer.batch_first
        self.add_zero_attn = layer.add_zero_attn
        for name in (*WEIGHTS, *VECTORS):
            self.register_parameter(name, getattr(layer, name))
        self.out_proj: nn.Linear = layer.out_proj
        self.out_proj.out_features, self.out_proj.in_features = layer.out_proj.weight.shape

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values and, if asked for, the weights; see torch's layer."""
        if is_causal and attn_mask is None:
            raise ValueError("HeadsAttention: expected attn_mask with is_causal=True, got none.")
        batched = query.dim() == 3
        tensors = [query, key, value]
        if not batched:
            tensors = [t.unsqueeze(0) for t in tensors]
        elif not self.batch_first:
            tensors = [t.transpose(0, 1) for t in tensors]
        q, k, v = self.project(*tensors)
        mask = self.mask(key_padding_mask, attn_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y if self.batch_first else y.transpose(0, 1), weights

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return queries, keys and values ``(N, heads, tokens, width)``."""
        weights = self.parts("in_proj_weight") or [getattr(self, name) for name in WEIGHTS[1:]]
        biases = self.parts("in_proj_bias") or [None] * 3
        pairs = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (F.linear(x, weight, bias) for x, weight, bias in pairs)
        if self.bias_k is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), 1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), 1, -1)], 1)
        heads = [t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v)]
        if self.add_zero_attn:
            heads[1:] = [F.pad(t, (0, 0, 0, 1)) for t in heads[1:]]
        return heads

    def parts(self, name: str) -> list[Any]:
        """Return a parameter's parts for queries, keys and values; none if there is none."""
        parameter = getattr(self, name)
        return [] if parameter is None else list(parameter.chunk(3))

    def mask(
        self, padding: Tensor | None, mask: Tensor | None, q: Tensor, k: Tensor
    ) -> Tensor | None:
        """Return what is added to the scores, or None; shape ``(N, heads or 1, *, tokens)``."""
        total = None
        if mask is not None:
            total = additive(mask, q)
            total = total.view(len(q), -1, *mask.shape[-2:]) if mask.dim() == 3 else total
        if padding is not None:
            blocked = additive(padding, q).view(-1, 1, 1, padding.shape[-1])
            total = blocked if total is None else total + blocked
        if total is not None and total.shape[-1] < k.shape[2]:
            total = F.pad(total, (0, k.shape[2] - total.shape[-1]))
        return total

    def extra_repr(self) -> str:
        """Show the number of heads."""
        return f"num_heads={self.num_heads}, batch_first={self.batch_first}"


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask as numbers to add: minus infinity where a boolean one is True."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def replace_attention(model: nn.Module, changed: set[str]) -> None:
    """Put :class:`HeadsAttention` where parameters of a multi-head attention were cut, in place.

    An encoder layer of torch of which any part is another module now must not take its fused path,
    which reads the parts' weights itself.

    Args:
        model: the network, its parameters cut.
        changed: names of the modules and parameters that a plan names.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    for name, module in known.items():
        own = {f"{name}.{part}" for part, _ in module.named_parameters()}
        if type(module) is nn.MultiheadAttention and (own | {name}) & changed:
            small = HeadsAttention(module).train(module.training)
            for alias in [n for n, other in known.items() if other is module]:
                model.set_submodule(alias, small)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and not is_plain(module):
            module.activation_relu_or_gelu = 0


def is_plain(layer: nn.TransformerEncoderLayer) -> bool:
    """Whether the parts of an encoder layer are those that torch gives it."""
    linear, norm = (layer.linear1, layer.linear2), (layer.norm1, layer.norm2)
    return all(type(m) is nn.Linear for m in linear) and all(type(m) is nn.LayerNorm for m in norm)
