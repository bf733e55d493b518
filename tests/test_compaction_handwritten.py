"""Networks as people write them, zeroed in many ways: exact, whatever can be removed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nets_with_zeros import assert_same, randomise_
from ssl_lightning.compaction import compact, make_plan
from ssl_lightning.prune import prune_
from toy import Fn


def conv(i, o, k=3, **kwargs):
    return nn.Conv2d(i, o, k, padding=kwargs.pop("padding", k // 2), **kwargs)


def encoder():
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def with_buffer(net):
    net.register_buffer("k", torch.randn(1, 8, 1, 1))
    return net


IMAGES, TOKENS = torch.zeros(1, 3, 16, 16), torch.zeros(1, 7, 12)
NETS = {
    "mha": (
        lambda: Fn(
            lambda m, x: m.o(m.l(x + m.a(x, x, x)[0])),
            a=nn.MultiheadAttention(12, 3, batch_first=True),
            l=nn.LayerNorm(12),
            o=nn.Linear(12, 4),
        ),
        TOKENS,
    ),
    "encoder": (lambda: encoder(), TOKENS),
    "lstm": (
        lambda: Fn(
            lambda m, x: m.o(m.a(x)[0]), a=nn.LSTM(12, 8, batch_first=True), o=nn.Linear(8, 4)
        ),
        TOKENS,
    ),
    "einsum": (
        lambda: Fn(
            lambda m, x: m.o(torch.einsum("bnc,bmc->bnm", m.a(x), m.b(x)) @ m.c(x)),
            a=nn.Linear(12, 8),
            b=nn.Linear(12, 8),
            c=nn.Linear(12, 8),
            o=nn.Linear(8, 4),
        ),
        TOKENS,
    ),
    "weightnorm": (
        lambda: Fn(
            lambda m, x: m.b(F.relu(m.a(x))),
            a=nn.utils.parametrizations.weight_norm(conv(3, 8)),
            b=conv(8, 4),
        ),
        IMAGES,
    ),
    "where": (
        lambda: Fn(
            lambda m, x: m.b(torch.where(m.a(x) > 0, m.a(x), m.c(x))),
            a=conv(3, 8),
            c=conv(3, 8),
            b=conv(8, 4),
        ),
        IMAGES,
    ),
    "unet": (
        lambda: Fn(
            lambda m, x: m.o(
                torch.cat(
                    [
                        F.interpolate(
                            m.d(F.max_pool2d(F.relu(m.n(m.a(x))), 2)),
                            scale_factor=2,
                            mode="bilinear",
                        ),
                        F.relu(m.n(m.a(x))),
                    ],
                    1,
                )
            ),
            a=conv(3, 8),
            n=nn.BatchNorm2d(8),
            d=conv(8, 6),
            o=conv(14, 2),
        ),
        IMAGES,
    ),
    "unet_t": (
        lambda: Fn(
            lambda m, x: m.o(torch.cat([m.u(F.relu(m.d(F.avg_pool2d(m.a(x), 2)))), m.a(x)], 1)),
            a=conv(3, 8),
            d=conv(8, 6),
            u=nn.ConvTranspose2d(6, 5, 2, 2),
            o=conv(13, 2),
        ),
        IMAGES,
    ),
    "se": (
        lambda: Fn(
            lambda m, x: m.o(m.a(x) * m.h(m.g(m.a(x).mean((2, 3), keepdim=True)).relu()).sigmoid()),
            a=conv(3, 8),
            g=conv(8, 4, 1),
            h=conv(4, 8, 1),
            o=conv(8, 2),
        ),
        IMAGES,
    ),
    "inplace": (
        lambda: Fn(
            lambda m, x: m.o(F.relu_(m.a(x)).add_(m.b(x)).mul_(0.5)),
            a=conv(3, 8),
            b=conv(3, 8),
            o=conv(8, 2),
        ),
        IMAGES,
    ),
    "scale": (
        lambda: Fn(
            lambda m, x: m.o(m.a(x) * m.q.view(1, -1, 1, 1) + m.t[None, :, None, None]),
            a=conv(3, 8),
            q=nn.Parameter(torch.randn(8)),
            t=nn.Parameter(torch.randn(8)),
            o=conv(8, 2),
        ),
        IMAGES,
    ),
    "loop": (
        lambda: Fn(
            lambda m, x: m.o(m.b(m.b(m.b(m.a(x)).relu()).relu())),
            a=conv(3, 8),
            b=conv(8, 8),
            o=conv(8, 2),
        ),
        IMAGES,
    ),
    "tied": (
        lambda: Fn(lambda m, x: F.linear(m.a(x).relu(), m.a.weight.t()), a=nn.Linear(12, 8)),
        TOKENS,
    ),
    "buffers": (
        lambda: with_buffer(Fn(lambda m, x: m.o(m.a(x) + m.k), a=conv(3, 8), o=conv(8, 2))),
        IMAGES,
    ),
    "stats": (
        lambda: Fn(
            lambda m, x: m.o(
                (m.a(x) - m.a(x).mean(1, keepdim=True)) / (m.a(x).std(1, keepdim=True) + 1)
            ),
            a=conv(3, 8),
            o=conv(8, 2),
        ),
        IMAGES,
    ),
    "amax": (
        lambda: Fn(lambda m, x: m.o(m.a(x).amax((2, 3))), a=conv(3, 8), o=nn.Linear(8, 2)),
        IMAGES,
    ),
    "dict": (
        lambda: Fn(
            lambda m, x: {"a": m.o(m.a(x)), "b": [m.a(x).mean((2, 3)), x]},
            a=conv(3, 8),
            o=conv(8, 2),
        ),
        IMAGES,
    ),
    "unflatten": (
        lambda: Fn(
            lambda m, x: m.o(m.a(x).unflatten(1, (2, 4)).flip(1).flatten(1, 2)),
            a=conv(3, 8),
            o=conv(8, 2),
        ),
        IMAGES,
    ),
    "chunk3": (
        lambda: Fn(
            lambda m, x: (lambda q, k, v: m.o(q * k.tanh() + v))(*m.a(x).chunk(3, 1)),
            a=conv(3, 24),
            o=conv(8, 2),
        ),
        IMAGES,
    ),
    "depthmul": (
        lambda: Fn(
            lambda m, x: m.o(m.d(F.relu6(m.n(m.a(x))))),
            a=conv(3, 8),
            n=nn.BatchNorm2d(8),
            d=conv(8, 16, groups=8),
            o=conv(16, 2),
        ),
        IMAGES,
    ),
    "prelu": (
        lambda: Fn(lambda m, x: m.o(m.p(m.a(x))), a=conv(3, 8), p=nn.PReLU(8), o=conv(8, 2)),
        IMAGES,
    ),
    "bn1d": (
        lambda: Fn(
            lambda m, x: m.o(m.n(m.a(x).transpose(1, 2)).transpose(1, 2)),
            a=nn.Linear(12, 8),
            n=nn.BatchNorm1d(8),
            o=nn.Linear(8, 3),
        ),
        TOKENS,
    ),
    "conv1d": (
        lambda: Fn(
            lambda m, x: m.o(F.gelu(m.a(x))).mean(-1),
            a=nn.Conv1d(7, 8, 3, padding=1),
            o=nn.Conv1d(8, 3, 1),
        ),
        TOKENS,
    ),
    "rms": (
        lambda: Fn(
            lambda m, x: m.o(m.r(m.a(x))), a=nn.Linear(12, 8), r=nn.RMSNorm(8), o=nn.Linear(8, 3)
        ),
        TOKENS,
    ),
    "topk": (
        lambda: Fn(
            lambda m, x: m.o(m.a(x).flatten(1).topk(6, 1)[0]), a=conv(3, 8), o=nn.Linear(6, 3)
        ),
        IMAGES,
    ),
    "clampadd": (
        lambda: Fn(
            lambda m, x: m.o((m.a(x) + 3).clamp(0, 6) / 6 * m.a(x)), a=conv(3, 8), o=conv(8, 2)
        ),
        IMAGES,
    ),
    "swap": (
        lambda: Fn(
            lambda m, x: m.o(m.a(x)[:, [3, 1, 0, 2, 7, 6, 5, 4]]), a=conv(3, 8), o=conv(8, 2)
        ),
        IMAGES,
    ),
    "broadcast": (
        lambda: Fn(lambda m, x: m.o(m.a(x) * m.b(x)), a=conv(3, 8), b=conv(3, 1), o=conv(8, 2)),
        IMAGES,
    ),
    "groupconst": (
        lambda: Fn(
            lambda m, x: m.o(m.g(m.n(m.a(x)))),
            a=conv(3, 8),
            n=nn.BatchNorm2d(8),
            g=conv(8, 8, groups=2),
            o=conv(8, 2),
        ),
        IMAGES,
    ),
    "adaptive": (
        lambda: Fn(
            lambda m, x: m.o(F.adaptive_max_pool2d(m.a(x), 2).flatten(1)),
            a=conv(3, 8),
            o=nn.Linear(32, 3),
        ),
        IMAGES,
    ),
    "doubleuse": (
        lambda: Fn(
            lambda m, x: m.o(m.n(m.a(x))) + m.p(m.n(m.a(x)).sigmoid()),
            a=conv(3, 8),
            n=nn.BatchNorm2d(8),
            o=conv(8, 2),
            p=conv(8, 2, 1),
        ),
        IMAGES,
    ),
}


@torch.no_grad()
def zero_slices_(net, *, biases, columns):
    """Zero 40 % of the rows of all weights, their biases if asked, and 30 % of the columns."""
    for module in net.modules():
        weight = module._parameters.get("weight")
        if weight is None or weight.dim() < 2:
            continue
        rows = torch.rand(len(weight)) < 0.4
        weight[rows] = 0
        if biases and module.bias is not None and len(module.bias) == len(weight):
            module.bias[rows] = 0
        if columns:
            weight[:, torch.rand(weight.shape[1]) < 0.3] = 0


WAYS = {
    "weights": lambda net, x: zero_slices_(net, biases=False, columns=False),
    "biases and columns": lambda net, x: zero_slices_(net, biases=True, columns=True),
    "a third": lambda net, x: prune_(net, x, fraction=0.3),
    "most": lambda net, x: prune_(net, x, fraction=0.6, importance="random"),
}


@pytest.mark.filterwarnings("ignore:prune_. .* nothing is pruned")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETS)
def test_exact_in_single_and_double_precision(name, way):
    torch.manual_seed(len(name) + len(way))
    make, example = NETS[name]
    net = randomise_(make(), len(way)).eval()
    WAYS[way](net, example)
    double = copy.deepcopy(net).double()
    images = torch.randn(2, *example.shape[1:])
    for constants in (True, False):
        plan = make_plan(net, example, constants=constants)
        assert_same(net, compact(net, plan), images, tolerance=2e-5)
        assert_same(double, compact(double, plan), images.double(), tolerance=1e-10)
