"""Attention heads and feed-forward neurons: removed, or left with a reason; kinds head and ffn."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nets_with_zeros import assert_same, check_equal, kept, randomise_
from ssl_lightning.backbones import create_backbone
from ssl_lightning.compaction import Plan, apply_plan
from ssl_lightning.groups import resolve_groups, zero_groups_
from ssl_lightning.groups.members import members_of
from ssl_lightning.prune import prune_

HEADS, WIDTH, CHANNELS = 4, 3, 10
X = torch.zeros(1, 6, CHANNELS)


class Attention(nn.Module):
    """Self-attention as people write it: fused or not, by the fused operation or by hand."""

    def __init__(self, fused=True, product="fast", code="own", mask=None):
        super().__init__()
        self.num_heads, self.inner_dim = HEADS, HEADS * WIDTH
        self.fused, self.product, self.code = fused, product, code
        names = ["qkv"] if fused else ["q", "k", "v"]
        for name in names:
            setattr(self, name, nn.Linear(CHANNELS, len(name) * HEADS * WIDTH))
        self.proj = nn.Linear(HEADS * WIDTH, CHANNELS)
        if mask is not None:
            self.mask = nn.Parameter(torch.randn(mask))

    def forward(self, x):
        batch, tokens, _ = x.shape
        heads = HEADS if self.code == "fixed" else self.num_heads
        if self.fused:
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, heads, WIDTH).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (
                layer(x).view(batch, tokens, heads, WIDTH).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
        mask = getattr(self, "mask", None)
        if self.product == "fast":
            x = F.scaled_dot_product_attention(q, k, v, mask)
        else:
            scores = (q * WIDTH**-0.5) @ k.transpose(-2, -1)
            scores = scores if mask is None else scores + mask
            x = F.dropout(scores.softmax(-1), 0.1, self.training) @ v
        width = self.inner_dim if self.code == "own" else -1
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(CHANNELS), Attention(**settings)
        self.up, self.down = nn.Linear(CHANNELS, 16), nn.Linear(16, CHANNELS)

    def forward(self, x):
        x = x + self.attn(self.norm(x))
        return x + self.down(F.gelu(self.up(x)))


@torch.no_grad()
def zero_values_(attention, heads):
    """Zero the values of some heads: what a head computes is then zero, whatever it attends to."""
    layer, start = (attention.qkv, 2 * HEADS) if attention.fused else (attention.v, 0)
    for head in heads:
        rows = slice((start + head) * WIDTH, (start + head + 1) * WIDTH)
        layer.weight[rows] = 0
        layer.bias[rows] = 0


CASES = [
    {}, {"fused": False}, {"product": "by hand"}, {"fused": False, "product": "by hand"},
    {"mask": (1, 1, 6, 6)}, {"product": "by hand", "mask": (6, 6)}, {"code": "minus one"},
]  # fmt: skip


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_zero_heads_go(settings):
    net = randomise_(Block(**settings)).eval()
    zero_values_(net.attn, [1, 3])
    small, plan = check_equal(net, X)
    assert plan.notes == ()
    assert kept(plan)["attn.proj"] == (2 * WIDTH, CHANNELS)
    assert small.attn.num_heads == 2
    assert net.attn.num_heads == HEADS
    assert plan.modules["attn"].outputs == (0, 2)
    rebuilt = apply_plan(Block(**settings), Plan.from_json(plan.to_json()))
    rebuilt.load_state_dict(small.state_dict())
    assert_same(small, rebuilt.eval(), torch.randn(2, 6, CHANNELS), tolerance=0.0)
    small.train()(torch.randn(2, 6, CHANNELS)).sum().backward()
    assert all(p.grad is not None for n, p in small.named_parameters() if "mask" not in n)


@pytest.mark.parametrize("settings", [{"code": "fixed"}, {"mask": (1, HEADS, 6, 6)}], ids=str)
def test_heads_that_the_code_or_a_mask_fixes_stay(settings):
    net = randomise_(Block(**settings)).eval()
    zero_values_(net.attn, [1, 3])
    small, plan = check_equal(net, X)
    assert small.attn.num_heads == HEADS
    assert plan.modules["attn.proj"].of == (HEADS * WIDTH, CHANNELS)
    assert len(plan.modules["attn.qkv"].outputs) == 3 * HEADS * WIDTH
    assert plan.notes or plan.modules["attn.qkv"].reason


def test_a_part_of_a_head_stays():
    net = randomise_(Block()).eval()
    with torch.no_grad():
        net.attn.qkv.weight[2 * HEADS * WIDTH] = 0
        net.attn.qkv.bias[2 * HEADS * WIDTH] = 0
    small, _ = check_equal(net, X)
    assert small.attn.num_heads == HEADS


def test_a_plan_for_heads_needs_the_module_it_was_made_for():
    net = randomise_(Block()).eval()
    zero_values_(net.attn, [0])
    _, plan = check_equal(net, X)
    other = Block()
    del other.attn.inner_dim
    with pytest.raises(ValueError, match="expects `attn` to have a number `inner_dim`"):
        apply_plan(other, plan)


@pytest.mark.parametrize("settings", CASES[:4], ids=str)
def test_kinds_head_and_ffn(settings):
    net = Block(**settings)
    (heads,) = resolve_groups(net, [{"kind": "head"}], X)
    (neurons,) = resolve_groups(net, [{"kind": "ffn"}], X)
    assert (heads.kind, heads.num_groups) == ("head", HEADS)
    assert heads.group_size == 3 * WIDTH * (CHANNELS + 1)
    assert len(heads.members) == (2 if net.attn.fused else 6)
    assert (neurons.name, neurons.num_groups, neurons.group_size) == ("up:ffn", 16, CHANNELS + 1)
    zero_groups_(heads, torch.arange(HEADS) == 2, dict(net.named_parameters()))
    layer = net.attn.qkv if net.attn.fused else net.attn.v
    zero = (layer.weight == 0).all(1).view(-1, HEADS, WIDTH)
    assert zero[:, 2].all()
    assert not zero[:, [0, 1, 3]].any()


def test_pruned_heads_and_neurons_of_a_vision_transformer_go():
    net = randomise_(create_backbone("timm:vit_tiny_patch16_224", img_size=32, depth=2))
    x = torch.zeros(1, 3, 32, 32)
    prune_(net, x, kind="head", fraction=0.4)
    prune_(net, x, kind="ffn", fraction=0.5)
    small, plan = check_equal(net.eval(), x)
    assert plan.notes == ()
    left = [block.attn.num_heads for block in small.blocks]
    assert sum(left) == 4
    assert [b.attn.qkv.out_features for b in small.blocks] == [3 * 64 * n for n in left]
    assert sum(b.mlp.fc1.out_features for b in small.blocks) == 768


def test_gated_feed_forward_neurons():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(10, 6), nn.Linear(10, 6), nn.Linear(6, 10)

        def forward(self, x):
            return x + self.c(F.silu(self.a(x)) * self.b(x))

    net = randomise_(Gated())
    (neurons,) = resolve_groups(net, [{"kind": "ffn"}], X)
    assert (neurons.num_groups, neurons.group_size) == (6, 22)
    prune_(net, X, kind="ffn", fraction=0.5)
    _, plan = check_equal(net, X)
    assert kept(plan)["c"] == (3, 10)


def test_networks_without_heads_say_so():
    with pytest.raises(ValueError, match="matches no layer that has them"):
        resolve_groups(create_backbone("lenet"), [{"kind": "head"}], torch.zeros(1, 1, 28, 28))


@pytest.mark.parametrize(("rows", "view"), [
    ([(0, 1, 2)], (3, 5)),
    ([(0, 2, 4), (1, 3, 5)], (1, 3, 2, 5)),
    ([(0, 1, 2), (3, 4, 5)], (2, 3, 1, 5)),
])  # fmt: skip
def test_members_of_regular_rows_are_one_view(rows, view):
    (member,) = members_of("w", (3 * len(rows), 5), rows)
    assert member.shape == view
    weight = torch.arange(15.0 * len(rows)).view(-1, 5)
    expected = torch.stack([weight[list(group)].norm() for group in zip(*rows, strict=True)])
    torch.testing.assert_close(member.norms(weight), expected)


def test_members_of_irregular_rows_are_one_a_row():
    rows = [(0, 4), (1, 3)]
    members = members_of("w", (6, 2), rows)
    assert [m.index for m in members] == rows
    assert copy.copy(members[0]).norms(torch.ones(6, 2)).shape == (2,)
