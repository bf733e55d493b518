"""Whole networks with low rank factors: the choice of ranks, pruning ranks, what is left alone."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from ssl_lightning import (
    BACKBONES,
    Regularizer,
    compact,
    count_macs,
    create_backbone,
    expand,
    export_model,
    factorise,
    kept_groups,
    make_plan,
    prune_,
    resolve_groups,
)
from ssl_lightning.compaction import plan_and_compact
from ssl_lightning.compaction.equality import difference
from test_low_rank import randomised
from toy import Fn, make_toy

X = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
SHORT = {"alexnet": {"layers": ["conv3", "fc8"], "method": "svd"}}
"""Backbone -> what takes seconds instead of minutes there."""


def toy():
    return randomised(make_toy())


# --- the budget -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_backbone_keeps_a_budget_and_has_products_as_weights(name):
    net = create_backbone(name).double().eval()
    x = torch.randn(1, *net.input_shape, dtype=torch.float64)
    small, plan, report = factorise(net, x, macs=0.85, **SHORT.get(name, {}))
    assert plan.factors
    assert report.macs[1] == count_macs(small, x) <= 0.85 * count_macs(net, x)
    assert set(report.left).isdisjoint(plan.factors)
    merged = expand(small, net, plan)
    assert str(merged) == str(net)
    with torch.no_grad():
        assert difference(merged(x), small(x)) < 1e-9
    if sum(1 for _ in net.modules()) < 100 and name not in SHORT:
        assert make_plan(small, x).modules  # traced, and coupled, as any other network


def macs_with(net, x, ranks, method):
    return factorise(net, x, ranks=ranks, method=method).report.macs[1]


@pytest.mark.parametrize("method", ["svd", "tucker", "cp"])
@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_the_budget_is_used_up_as_far_as_ranks_allow(method, share):
    net = toy()
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    limit = share * count_macs(net, x)
    _, plan, report = factorise(net, x, macs=share, method=method)
    assert report.macs[1] <= limit
    ranks = {name: f.ranks for name, f in plan.factors.items()}
    for name in ("conv1", "conv2", "fc"):
        if name not in ranks:
            continue
        without = {k: v for k, v in ranks.items() if k != name}
        if without:  # the layer as it was does not fit either
            assert macs_with(net, x, without, method) > limit
        for place, rank in enumerate(ranks[name]):
            if rank < report.rows[name].largest[place]:
                wider = (*ranks[name][:place], rank + 1, *ranks[name][place + 1 :])
                assert macs_with(net, x, {**ranks, name: wider}, method) > limit


def test_an_absolute_number_and_no_reduction():
    net = toy()
    assert factorise(net, X, macs=9000).report.macs[1] <= 9000
    small, plan, report = factorise(net, X, macs=1.0)
    assert plan.factors == {}
    assert report.macs[0] == report.macs[1]
    assert difference(net(X).detach(), small(X).detach()) == 0


def test_energy_is_retained_of_each_unfolding():
    net = nn.Sequential(randomised(nn.Conv2d(12, 16, 3)))
    with torch.no_grad():  # a spectrum that falls
        net[0].weight.mul_(torch.logspace(0, -2, 16, dtype=torch.float64).view(-1, 1, 1, 1))
        net[0].weight.mul_(torch.logspace(0, -2, 12, dtype=torch.float64).view(1, -1, 1, 1))
    x = torch.zeros(1, 12, 8, 8, dtype=torch.float64)
    w = net[0].weight.detach().numpy()
    for energy in (0.5, 0.9, 0.99):
        _, plan, _ = factorise(net, x, energy=energy)
        (ranks,) = (f.ranks for f in plan.factors.values())
        for rank, matrix in zip(
            ranks, (w.reshape(16, -1), w.transpose(1, 0, 2, 3).reshape(12, -1)), strict=True
        ):
            squares = np.linalg.svd(matrix, compute_uv=False) ** 2
            assert squares[:rank].sum() >= energy * squares.sum() * (1 - 1e-9)
            assert squares[: rank - 1].sum() < energy * squares.sum()


def test_layers_that_would_not_save_remain_and_the_report_says_so():
    net = toy()
    _, plan, report = factorise(net, X, ranks={"conv2": (6, 6), "fc": 2})
    assert list(plan.factors) == ["fc"]
    assert report.left["conv2"] == "factors would not save multiply-adds"
    assert report.left["conv1"] == "no rank is given for it"
    assert "as it was: conv2: factors would not save" in str(report)


def test_layers_that_cannot_be_replaced_remain_with_a_reason():
    shared = nn.Linear(6, 6)
    twin = nn.Linear(6, 6)
    twin.weight = shared.weight
    hooked = nn.Linear(6, 6)
    hooked.register_forward_hook(lambda *_: None)
    net = nn.ModuleDict(
        {
            "depthwise": nn.Conv1d(6, 6, 3, groups=6),
            "transposed": nn.ConvTranspose1d(6, 6, 3),
            "shared": shared,
            "twin": twin,
            "hooked": hooked,
            "unused": nn.Linear(6, 6),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
            "plain": nn.Linear(6, 6),
        }
    )

    def forward(self, x):
        x = self.net["transposed"](self.net["depthwise"](x))
        for name in ("shared", "twin", "hooked", "normed", "plain"):
            x = self.net[name](x.transpose(1, 2)).transpose(1, 2)
        return x

    whole = Fn(forward, net=net)
    whole = randomised(Called(whole))
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    _, plan, report = factorise(whole, x, ranks={"net.plain": 2}, layers="net.*")
    assert list(plan.factors) == ["net.plain"]
    _, _, report = factorise(whole, x, energy=0.2, layers="net.*")
    why = {name.removeprefix("net."): text for name, text in report.left.items()}
    assert why["depthwise"] == "it is grouped or depthwise"
    assert "ConvTranspose1d, no plain convolution" in why["transposed"]
    assert why["shared"] == why["twin"] == "it shares its weight with another layer"
    assert why["hooked"] == "it has hooks, or a forward of its own"
    assert why["unused"] == "it is not called with this input"
    assert "ParametrizedLinear" in why["normed"]


class Called(nn.Module):
    """Gives the function of a Fn the network itself."""

    def __init__(self, fn):
        super().__init__()
        self.net, self.function = fn.net, fn.function

    def forward(self, x):
        return self.function[0](self, x)


def test_a_layer_with_two_names_is_replaced_under_both():
    layer = randomised(nn.Linear(8, 8))
    net = nn.Sequential(layer, nn.ReLU(), layer)
    small, plan, report = factorise(
        net, torch.zeros(1, 8, dtype=torch.float64), ranks={"0": 2}, method="svd"
    )
    assert small[0] is small[2]
    assert list(plan.factors) == ["0"]
    assert report.macs == (128, 64)


def test_frozen_layers_stay_frozen_and_types_and_modes_are_kept():
    net = make_toy().half().train()
    net.fc.weight.requires_grad_(False)
    net.float()
    small = factorise(net, X.float(), ranks={"fc": 2, "conv2": 2}).network
    assert [p.requires_grad for p in small.fc.parameters()] == [False, False, True]
    assert small.training
    assert all(module.training for module in small.conv2)
    assert small.fc[0].weight.dtype == torch.float32
    assert net.fc.weight.shape == (10, 96)  # unchanged


# --- ranks are channels ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["svd", "tucker", "cp"])
def test_pruning_removes_ranks_exactly(method):
    net = toy()
    small = factorise(net, X, ranks={"conv2": 3, "fc": 4}, method=method).network
    ranks = [s.name for s in resolve_groups(small, [{"kind": "coupled"}], X)]
    assert "conv2.0:coupled" in ranks
    assert "fc.0:coupled" in ranks
    prune_(small, X, fraction=0.5, groups=[{"kind": "coupled", "layers": ["conv2.0", "fc.0"]}])
    plan = make_plan(small, X)
    less = compact(small, plan)
    assert less.fc[0].out_features + less.conv2[0].out_channels < 4 + 3
    assert less.fc[1].out_features == 10
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    assert difference(small(x).detach(), less(x).detach()) < 1e-12


def test_the_norms_of_the_groups_are_the_roots_of_the_singular_values():
    net = toy()
    values = np.linalg.svd(net.fc.weight.detach().numpy(), compute_uv=False)
    small = factorise(net, X, ranks={"fc": 5}).network
    (ranks,) = resolve_groups(small, [{"kind": "coupled", "layers": "fc.0"}], X)
    norms = [
        np.sqrt(sum(float((p.data[i] ** 2).sum()) for p in [small.fc[0].weight])) for i in range(5)
    ]
    assert ranks.num_groups == 5
    np.testing.assert_allclose(np.array(norms) ** 2, values[:5], rtol=1e-10)


def test_a_coupled_penalty_drives_whole_ranks_to_zero():
    """A linear layer of rank 2 with noise, and factors of rank 6: two ranks stay."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    truth = draw(12, 2) @ draw(2, 16)
    net = nn.Sequential(nn.Linear(16, 12, bias=False, dtype=torch.float64))
    with torch.no_grad():
        net[0].weight.copy_(truth + 0.05 * draw(12, 16))
    example = torch.zeros(1, 16, dtype=torch.float64)
    small = factorise(net, example, ranks={"0": 6}, method="svd").network
    penalty = {"kind": "coupled", "layers": "0.0", "strength": 0.05, "scaling": "none"}
    sgd = torch.optim.SGD(small.parameters(), lr=0.02, weight_decay=1e-2)
    regularizer = Regularizer(small, [penalty], example)
    regularizer.attach(sgd)
    x = draw(256, 16)
    for _ in range(600):
        sgd.zero_grad()
        (0.5 * (small(x) - x @ truth.T).square().sum(1).mean()).backward()
        sgd.step()
    gone = (small[0][0].weight == 0).all(1)
    assert int(gone.sum()) == 4
    plan, less = plan_and_compact(small, example)
    assert less[0][0].out_features == less[0][1].in_features == 2
    assert difference(small(x).detach(), less(x).detach()) < 1e-12
    assert kept_groups(small)["0.0"]["filters"] == [2, 6]
    assert len(plan.modules["0.0"].outputs) == 2


# --- errors, exports ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "expected one of macs, energy and ranks, got none"),
        ({"macs": 0.5, "energy": 0.9}, "got macs and energy"),
        ({"macs": 0}, "expected macs as a positive number"),
        ({"energy": 1.5}, r"expected energy as a share in \(0, 1\], got 1.5"),
        ({"energy": True}, "expected energy as a share"),
        ({"ranks": {}}, "expected ranks as a mapping"),
        ({"ranks": {"fc": 2.5}}, "expected a whole number, or several, got 2.5"),
        ({"ranks": {"fc": [2, 3]}}, "expected 1 of the ranks 1 to 10"),
        ({"ranks": {"fc": 11}}, "expected 1 of the ranks 1 to 10"),
        ({"ranks": {"fc": 0}}, "expected 1 of the ranks 1 to 10"),
        ({"ranks": {"conv2": (7, 1)}}, "ranks 1 to 6 and 1 to 6"),
        ({"ranks": {"conv9": 2}}, "has no such layer .* Did you mean conv"),
        ({"energy": 0.5, "layers": "block*"}, "'block\\*' in `layers` matches no convolution"),
        ({"energy": 0.5, "method": "pca"}, "Unknown method of factors 'pca'"),
        ({"macs": 0.01}, r"macs=0.01 cannot be reached: with rank 1 in all 3 layers"),
        ({"macs": 0.2, "layers": "fc"}, "of them in other layers"),
    ],
)
def test_errors_name_what_was_expected(arguments, text):
    with pytest.raises(ValueError, match=text):
        factorise(toy(), X, **arguments)


def test_a_rank_for_a_layer_that_must_remain_is_refused():
    net = nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.Conv1d(4, 4, 3))
    with pytest.raises(ValueError, match="has to remain as it is: it is grouped or depthwise"):
        factorise(net, torch.zeros(1, 4, 8), ranks={"0": 1})


def test_code_that_reads_a_layer_is_named():
    net = Fn(lambda x: x, fc=nn.Linear(8, 8))
    net = Called(Fn(lambda self, x: self.net(x) * self.net.weight.sum(), net=nn.Linear(8, 8)))
    with pytest.raises(ValueError, match="reads an attribute of a layer that was replaced"):
        factorise(net, torch.zeros(1, 8), ranks={"net": 1}, method="svd")


def test_without_tensorly_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("ssl_lightning.suggest.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs tensorly.*ssl-lightning\[low-rank\].*svd"):
        factorise(toy(), X, energy=0.5)
    assert factorise(toy(), X, energy=0.5, method="svd").plan.factors


def test_weights_that_are_no_numbers_are_refused():
    net = toy()
    net.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="holds NaN"):
        factorise(net, X, energy=0.5)


@pytest.mark.parametrize("method", ["tucker", "cp"])
def test_the_network_is_exported(tmp_path, method):
    pytest.importorskip("onnxruntime")
    net = make_toy().eval()
    small = factorise(net, X.float(), macs=0.6, method=method).network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = export_model(small, X.float(), tmp_path / "small.onnx")
    assert result.difference <= result.tolerance
