"""Nothing vanishes from reports: every layer that is not pruned has its reason; what is cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_lightning.compaction import make_plan
from ssl_lightning.graph import is_cut
from ssl_lightning.prune import prune_
from toy import Fn

X = torch.zeros(1, 3, 8, 8)


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def net(forward, **layers):
    layers = {"a": conv(3, 8), "b": conv(8, 4), **layers}
    return Fn(forward, **layers).eval()


NETS = {
    "no rule": (net(lambda m, x: m.b(m.a(x).cumsum(1))), "an operation without a rule: `cumsum`"),
    "output": (net(lambda m, x: (m.a(x), m.b(m.a(x)))), "the network's output"),
    "norm": (
        net(lambda m, x: m.b(m.n(m.a(x))), n=nn.GroupNorm(2, 8, affine=False)),
        "`group_norm` in `n`",
    ),
    "sigmoid": (net(lambda m, x: m.b(torch.sigmoid(m.a(x)))), "`sigmoid`"),
    "index": (
        net(lambda m, x: m.b(m.a(x)[:, [1, 0, 2, 3, 4, 5, 6, 7]])),
        "an operation without a rule: `index`",
    ),
    "input": (net(lambda m, x: m.b(m.a(x) + x.repeat(1, 3, 1, 1)[:, :8])), "tied by"),
}


@pytest.mark.filterwarnings("ignore:prune_. Fn has no coupled groups")
@pytest.mark.parametrize("name", NETS)
def test_the_reason_is_in_the_report(name):
    model, reason = NETS[name]
    report = prune_(model, X, fraction=0.2)
    assert reason in report.retained["a"]
    assert reason in str(report)


@pytest.mark.filterwarnings("ignore:prune_. Fn has no coupled groups")
def test_embeddings_are_reported():
    tokens = torch.zeros(1, 3, dtype=torch.long)
    layers = {"e": nn.Embedding(9, 4), "l": nn.Linear(4, 9)}
    tied = Fn(lambda m, x: m.l(m.e(x)), **layers).eval()
    tied.l.weight = tied.e.weight
    assert prune_(tied, tokens, fraction=0.2).retained["e"] == "its weight is also `l.weight`"
    output = Fn(lambda m, x: m.e(x), e=nn.Embedding(9, 4)).eval()
    assert prune_(output, tokens, fraction=0.2).retained["e"] == "the network's output"
    free = Fn(lambda m, x: m.l(m.e(x)), e=nn.Embedding(9, 4), l=nn.Linear(4, 9)).eval()
    reason = prune_(free, tokens, fraction=0.2).retained["e"]
    assert reason == "no layer with weights writes its channels"
    sums = Fn(lambda m, x: m.o(m.e(x) + m.l(x)), e=nn.Embedding(9, 4), l=nn.Embedding(9, 4),
              o=nn.Linear(4, 2))  # fmt: skip
    assert {"e", "l", "o"} <= prune_(sums.eval(), tokens, fraction=0.2).retained.keys()


def attend(m, x):
    parts = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
    return m.out(
        torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    )


@pytest.mark.filterwarnings("ignore:prune_. Fn has no coupled groups")
def test_layers_of_which_only_heads_can_go_are_reported():
    layers = {name: nn.Linear(8, 8) for name in ("q", "k", "v", "out")}
    model = Fn(attend, **layers).eval()
    report = prune_(model, torch.zeros(1, 5, 8), fraction=0.2)
    assert all("kind='head'" in report.retained[name] for name in ("q", "k", "v"))
    report = prune_(model, torch.zeros(1, 5, 8), fraction=0.5, kind="head")
    assert report.total == (1, 2)
    assert not {"q", "k", "v"} & report.retained.keys()


@pytest.mark.filterwarnings("ignore:prune_. Fn has no coupled groups")
def test_layers_that_share_their_weights_are_reported():
    model = Fn(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 8)).eval()
    model.c.weight = model.b.weight
    report = prune_(model, X, fraction=0.2)
    assert report.retained["c"] == "its weight is also `b.weight`"
    assert {"b", "c"} <= report.retained.keys()


def test_layers_that_never_run_and_unknown_uses_are_reported():
    model = net(
        lambda m, x: m.b(m.a(x) * m.k.weight.sum()),
        k=nn.Conv2d(2, 2, 1),
        unused=nn.Linear(2, 2),
    )
    report = prune_(model, X, fraction=0.2)
    assert "does not run" in report.retained["unused"]
    assert "`sum`" in report.retained["k"]
    text = make_plan(model, X).explain()
    assert "`unused` is retained whole: it does not run" in text


def gated():
    return net(
        lambda m, x: m.b(m.a(x) * torch.sigmoid(m.g(m.a(x).mean((2, 3), keepdim=True)))),
        g=nn.Conv2d(8, 8, 1),
    )


def test_only_a_network_without_any_path_is_cut():
    model = gated()
    with torch.no_grad():
        model.g.weight.zero_()
    assert not is_cut(model, X)
    with torch.no_grad():
        model.a.weight.zero_()
    assert is_cut(model, X)


def test_one_dead_output_of_two_is_a_cut():
    model = net(lambda m, x: (m.b(m.a(x)), m.c(x)), c=conv(3, 2))
    assert not is_cut(model, X)
    with torch.no_grad():
        model.b.weight.zero_()
    assert is_cut(model, X)
