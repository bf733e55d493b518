"""Attention heads in the usual writings: grouped queries, rotary embeddings, torch's own layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer

from nets_with_zeros import assert_same, check_equal
from ssl_lightning.backbones import BACKBONES, create_backbone
from ssl_lightning.compaction import Plan, apply_plan, compact, expand, load_compact
from ssl_lightning.compaction.attention import HeadsAttention
from ssl_lightning.compaction.store import save_compact
from ssl_lightning.groups import resolve_groups
from ssl_lightning.prune import prune_

WIDTH, CHANNELS = 4, 8
X, Y = torch.randn(2, 7, CHANNELS), torch.randn(2, 5, CHANNELS)


@torch.no_grad()
def random_(net):
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    return net.eval()


def pruned(net, *x, kinds=("head",), fraction=0.5):
    """Prune, compact, compare for several batches and lengths, and train a step."""
    random_(net)
    for kind in kinds:
        prune_(net, x, fraction=fraction, kind=kind)
    small, plan = check_equal(net, *x)
    assert plan.notes == ()
    full = net.double()
    cut = compact(full, plan)
    for length in (3, 9):
        other = [torch.randn(2, length, t.shape[2], dtype=torch.float64) for t in x]
        assert_same(full, cut, *other, tolerance=1e-10)
    outputs = small.train()(*x)
    torch.utils._pytree.tree_leaves(outputs)[0].sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    return small.eval(), plan


def repeat_kv(x, times):
    batch, heads, tokens, width = x.shape
    x = x[:, :, None].expand(batch, heads, times, tokens, width)
    return x.reshape(batch, heads * times, tokens, width)


def rotated(x):
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


class RootNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Decoder(nn.Module):
    """A causal block with rotary embeddings and norms of queries and keys, as in Llama and Qwen."""

    def __init__(self, how, heads=4, kv=2):
        super().__init__()
        self.how = how
        self.num_heads, self.num_key_value_heads = heads, kv
        self.num_key_value_groups = heads // kv
        self.norm = nn.LayerNorm(CHANNELS)
        self.q_proj = nn.Linear(CHANNELS, heads * WIDTH, bias=False)
        self.k_proj = nn.Linear(CHANNELS, kv * WIDTH)
        self.v_proj = nn.Linear(CHANNELS, kv * WIDTH)
        self.o_proj = nn.Linear(heads * WIDTH, CHANNELS)
        self.q_norm, self.k_norm = RootNorm(WIDTH), RootNorm(WIDTH)

    def forward(self, x):
        y = self.norm(x)
        batch, tokens, _ = y.shape
        fixed = self.how == "numbers"
        q, k, v = (
            layer(y).view(batch, tokens, heads if fixed else -1, WIDTH)
            for layer, heads in (
                (self.q_proj, self.num_heads),
                (self.k_proj, self.num_key_value_heads),
                (self.v_proj, self.num_key_value_heads),
            )
        )
        q, k, v = (t.transpose(1, 2) for t in (self.q_norm(q), self.k_norm(k), v))
        place = torch.arange(tokens, dtype=x.dtype)[:, None] * torch.tensor([1, 0.1]).to(x.dtype)
        angle = torch.cat((place, place), -1)
        q, k = (t * angle.cos() + rotated(t) * angle.sin() for t in (q, k))
        z = self.attend(q, k, v).transpose(1, 2).contiguous()
        width = self.num_heads * WIDTH if fixed else -1
        return x + self.o_proj(z.reshape(batch, tokens, width))

    def attend(self, q, k, v):
        tokens, groups = q.shape[2], self.num_key_value_groups
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        if self.how == "flag":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        if self.how == "five":
            wide = q.view(len(q), -1, groups, tokens, WIDTH)
            scores = torch.einsum("bkgid,bkjd->bkgij", wide, k).masked_fill(future, -torch.inf)
            z = torch.einsum("bkgij,bkjd->bkgid", scores.softmax(-1), v)
            return z.reshape(len(q), -1, tokens, WIDTH)
        if self.how == "interleave":
            k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
        else:
            k, v = repeat_kv(k, groups), repeat_kv(v, groups)
        if self.how == "fused":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=~future)
        scores = q @ k.transpose(2, 3) * WIDTH**-0.5
        if self.how == "bmm":
            scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
            scores = (scores.view(len(q), -1, tokens, tokens)).masked_fill(future, -torch.inf)
            z = torch.bmm(scores.softmax(-1).flatten(0, 1), v.flatten(0, 1))
            return z.view(len(q), -1, tokens, WIDTH)
        if self.how == "where":
            scores = torch.where(future, torch.tensor(-torch.inf, dtype=q.dtype), scores)
        else:
            scores = scores.masked_fill(future, -torch.inf)
        weights = F.dropout(scores.softmax(-1), 0.1, self.training)
        return weights @ v


WRITINGS = ["flag", "five", "interleave", "fused", "bmm", "where", "expand", "numbers"]


@pytest.mark.parametrize(("how", "kv"), [*((how, 2) for how in WRITINGS), ("where", 4)])
def test_key_and_value_heads_go_with_their_query_heads(how, kv):
    small, _ = pruned(Decoder(how, kv=kv), X)
    assert small.k_proj.out_features == kv // 2 * WIDTH
    assert small.q_proj.out_features == small.o_proj.in_features == 2 * WIDTH
    assert (small.num_heads, small.num_key_value_heads) == (2, kv // 2)
    assert small.num_key_value_groups == 4 // kv


def test_the_values_of_one_head_keep_the_others_apart():
    net = random_(Decoder("flag"))
    with torch.no_grad():
        for p in net.v_proj.parameters():
            p[:WIDTH] = 0
    small, plan = check_equal(net, X)
    assert plan.modules["q_proj"].outputs == tuple(range(2 * WIDTH, 4 * WIDTH))
    assert small.num_key_value_heads == 1


@pytest.mark.parametrize("how", ["flag", "fused"])
def test_query_heads_that_share_keys_and_values_cannot_go_alone(how):
    net = random_(Decoder(how, kv=1))
    with pytest.warns(UserWarning, match="no head groups that compaction could remove, for "):
        assert prune_(net, X, kind="head", fraction=0.5).total == (0, 0)


class Torch(nn.Module):
    """torch's layer between others, called in one of the usual ways."""

    def __init__(self, call, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, 4, **settings)
        self.out, self.call = nn.Linear(CHANNELS, 3), call

    def forward(self, *x):
        return self.out(self.call(self.attention, *x))


def lengths(x):
    return torch.arange(x.shape[1])[None].expand(len(x), -1) > 1


def future(x):
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)


CALLS = {
    "weights": (lambda m, x: m(x, x, x)[0], {}, (X,)),
    "no weights": (lambda m, x: m(x, x, x, need_weights=False)[0], {}, (X,)),
    "cross": (lambda m, x, y: m(x, y, y)[0], {}, (X, Y)),
    "three inputs": (lambda m, x, y: m(x, y, y + 1)[0], {"bias": False}, (X, Y)),
    "other widths": (
        lambda m, x, y: m(x, y[..., :6], y[..., :4])[0],
        {"kdim": 6, "vdim": 4, "add_bias_kv": True},
        (X, Y),
    ),
    "biases": (lambda m, x: m(x, x, x, need_weights=False)[0], {"add_bias_kv": True}, (X,)),
    "causal": (lambda m, x: m(x, x, x, attn_mask=future(x), need_weights=False)[0], {}, (X,)),
    "causal hint": (
        lambda m, x: m(x, x, x, attn_mask=future(x), is_causal=True, need_weights=False)[0],
        {},
        (X,),
    ),
    "both masks": (
        lambda m, x: m(x, x, x, key_padding_mask=lengths(x), attn_mask=future(x))[0],
        {},
        (X,),
    ),
    "padding": (
        lambda m, x: m(x, x, x, key_padding_mask=lengths(x), need_weights=False)[0],
        {},
        (X,),
    ),
}


MASKED = ("causal", "causal hint", "both masks", "padding")  # made for the batch in front
LAYOUTS = [
    (name, first) for name in CALLS for first in (True, False) if first or name not in MASKED
]


@pytest.mark.parametrize(("name", "first"), LAYOUTS)
def test_heads_of_torchs_attention_go(name, first):
    call, settings, x = CALLS[name]
    x = x if first else (X, torch.randn(4, 7, CHANNELS))[: len(x)]
    net = Torch(call, batch_first=first, **settings)
    small, plan = pruned(net, *x)
    inner = small.attention
    assert isinstance(inner, HeadsAttention)
    assert inner.out_proj.in_features == 4
    assert inner.out_proj.weight.shape == (CHANNELS, 4)
    assert inner.num_heads == 2
    fresh = apply_plan(Torch(call, batch_first=first, **settings), Plan.from_json(plan.to_json()))
    fresh.load_state_dict(small.state_dict())
    assert_same(small, fresh.eval(), *x, tolerance=0.0)
    again, _ = check_equal(small, *x)  # a compact network can be planned and compacted again
    assert again.attention.num_heads == 2


@pytest.mark.parametrize("settings", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_heads_attention_is_torchs_attention(settings, average, first):
    layer = random_(nn.MultiheadAttention(CHANNELS, 2, batch_first=first, **settings).double())
    query, key = (torch.randn(3, 3, CHANNELS, dtype=torch.float64) for _ in range(2))
    masks = {
        "attn_mask": torch.randn(6, 3, 3, dtype=torch.float64),
        "key_padding_mask": torch.tensor([[0.0, 0.0, -torch.inf]] * 3).double(),
    }
    expected = layer(query, key, key, average_attn_weights=average, **masks)
    own = HeadsAttention(layer)
    found = own(query, key, key, average_attn_weights=average, **masks)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(own(query[0], key[0], key[0]), layer(query[0], key[0], key[0]))


@pytest.mark.parametrize("average", [True, False])
def test_weights_that_are_read_keep_the_heads(average):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(CHANNELS, 4, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, average_attn_weights=average)

    net = random_(Both())
    with pytest.warns(UserWarning, match="heads of `attention` are fixed"):
        prune_(net, X, kind="head", fraction=0.5)
    with torch.no_grad():
        net.attention.in_proj_weight[2 * CHANNELS :] = 0
        net.attention.in_proj_bias[2 * CHANNELS :] = 0
    check_equal(net, X)


def encoder(norm_first, activation="relu"):
    layer = nn.TransformerEncoderLayer(
        CHANNELS, 4, 12, batch_first=True, norm_first=norm_first, activation=activation
    )
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(CHANNELS, CHANNELS), stack, nn.Linear(CHANNELS, 3))


@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_layers_of_torch(norm_first):
    small, _ = pruned(encoder(norm_first), X, kinds=("coupled", "head"))
    assert small[0].out_features == 3
    for layer in small[1].layers:
        assert layer.self_attn.num_heads == 2
        assert layer.self_attn.in_proj_weight.shape == (12, 3)
    assert sum(layer.linear1.out_features for layer in small[1].layers) == 13


def test_neurons_alone_leave_the_fused_encoder_layer_exact():
    small, _ = pruned(encoder(False, "gelu"), X, kinds=("ffn",))
    assert all(type(layer.self_attn) is nn.MultiheadAttention for layer in small[1].layers)
    assert sum(layer.linear1.out_features for layer in small[1].layers) == 12


def test_an_encoder_layer_whose_neurons_are_all_zero():
    net = random_(encoder(True))
    with torch.no_grad():
        for p in net[1].layers[0].linear1.parameters():
            p.zero_()
    check_equal(net, X)


def test_decoder_layers_of_torch():
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerDecoderLayer(CHANNELS, 4, 12, batch_first=True)
            self.decoder, self.out = nn.TransformerDecoder(layer, 2), nn.Linear(CHANNELS, 3)

        def forward(self, x, memory):
            y = self.decoder(x, memory, tgt_mask=future(x), tgt_is_causal=True)
            return self.out(y)

    small, _ = pruned(Causal(), X, Y, kinds=("head", "ffn"))
    layers = small.decoder.layers
    heads = [m.num_heads for layer in layers for m in (layer.self_attn, layer.multihead_attn)]
    assert sum(heads) == 8


def test_torchvisions_vision_transformer_is_saved_and_loaded(tmp_path, monkeypatch):
    def small_vit():
        return VisionTransformer(32, 16, 2, 4, 16, 32, num_classes=3)

    monkeypatch.setitem(BACKBONES, "small_vit", small_vit)
    net, x = random_(small_vit()), torch.randn(1, 3, 32, 32)
    (first, second) = resolve_groups(net, [{"kind": "head"}], x)
    assert (first.num_groups, first.group_size) == (4, 3 * 4 * 17)
    assert second.layer == "encoder.layers.encoder_layer_1.self_attention"
    prune_(net, x, kind="head", fraction=0.5)
    small, plan = check_equal(net, x)
    assert [layer.self_attention.num_heads for layer in small.encoder.layers] == [2, 2]
    save_compact(tmp_path, small, plan, "small_vit", {})
    assert_same(small, load_compact(tmp_path), x, tolerance=0.0)
    masked = expand(small, net, plan).state_dict()
    key = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"
    assert torch.equal(masked[key], net.state_dict()[key])


def test_networks_without_attention_say_what_was_looked_for():
    with pytest.warns(UserWarning, match="no product of two activations"):
        prune_(create_backbone("lenet"), torch.zeros(1, 1, 28, 28), kind="head", fraction=0.5)
