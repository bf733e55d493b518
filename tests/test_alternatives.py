"""Other ways to rank groups: geometric median, scales of batch norms, Taylor expansion."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import SGD

from ssl_lightning import (
    Budget,
    ColumnSparseConv2d,
    Penalty,
    Regularizer,
    SSLLightningModule,
    choose_layers,
    compact,
    count_macs,
    create_backbone,
    group_norms,
    make_plan,
    prune_,
    resolve_groups,
)
from ssl_lightning.callbacks import methods
from ssl_lightning.callbacks.methods import limits_at
from ssl_lightning.compaction import plan_and_compact
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.measure import count_sparse_macs
from ssl_lightning.prune import IMPORTANCES, taylor
from ssl_lightning.prune.scores import Scores, scores_of
from toy import make_toy, toy_loader

IMAGE = torch.zeros(1, 1, 8, 8)


def vgg(seed: int = 0) -> nn.Sequential:
    """Three convolutions with batch norm, whose scales and shifts are random."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 16, 10),
    )
    for layer in (net[1], net[4]):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
        layer.eps = 1e-14  # so that the scale of a convolution before it does not matter at all
    return net.double()


# --- geometric median --------------------------------------------------------------------------


def test_the_filter_near_the_geometric_median_goes_first_though_its_norm_is_large() -> None:
    """He et al. 2019, figure 1: what others can replace is what is redundant."""
    net = nn.Sequential(nn.Conv2d(1, 5, 1, bias=False), nn.ReLU(), nn.Conv2d(5, 1, 1))
    net[0].weight.data = torch.tensor([9.0, 10.0, 11.0, 12.0, 1.0]).view(5, 1, 1, 1)
    found = {}
    for importance in ("l2", "fpgm"):
        thinned = copy.deepcopy(net)
        groups = [{"kind": "filter", "layers": "0"}]
        prune_(thinned, torch.zeros(1, 1, 4, 4), groups=groups, fraction=0.2, importance=importance)
        found[importance] = int((thinned[0].weight.flatten() == 0).nonzero())
    assert found == {"l2": 4, "fpgm": 1}  # sums of distances: 14, 13, 14, 17, 38


def test_sums_of_distances_are_those_of_loops() -> None:
    net = vgg()
    net[0].weight.data[3] = 0
    net[1].weight.data[3] = net[1].bias.data[3] = 0
    tensors = named_tensors(net)
    for group_set in resolve_groups(net, [{"kind": "filter"}, {"kind": "shape"}], IMAGE.double()):
        weight = tensors[group_set.members[0].parameter].detach().numpy()
        rows = weight if group_set.kind == "filter" else weight.transpose(1, 2, 3, 0)
        rows = rows.reshape(group_set.num_groups, -1)
        alive = [row for row in rows if np.abs(row).sum() > 0]
        expected = [
            sum(np.sqrt(((row - other) ** 2).sum()) for other in alive) if row.any() else 0.0
            for row in rows
        ]
        found = IMPORTANCES["fpgm"](group_set, tensors).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_groups_that_are_all_alike_are_not_zero() -> None:
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2))
    nn.init.ones_(net[0].weight)
    (group_set,) = resolve_groups(net, [{"kind": "neuron_out", "layers": "0"}])
    assert (IMPORTANCES["fpgm"](group_set, named_tensors(net)) > 0).all()


def test_depth_groups_have_nothing_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match=r"importance='fpgm' compares .* conv2:depth is alone"):
        prune_(make_toy(), IMAGE, kind="depth", fraction=0.5, importance="fpgm")


# --- scales of batch norms ---------------------------------------------------------------------


def test_channels_of_the_smallest_scales_go_whatever_their_layer() -> None:
    """Liu et al. 2017, section 3: one threshold on all scales, as a percentile of them."""
    net = vgg()
    scales = np.concatenate([net[i].weight.detach().abs().numpy() for i in (1, 4)])
    smallest = sorted(scales.argsort()[:10].tolist())
    groups = [{"kind": "coupled", "layers": ["0", "3"]}]
    prune_(net, IMAGE.double(), groups=groups, fraction=0.5, importance="bn_scale")
    after = np.concatenate([net[i].weight.detach().numpy() for i in (1, 4)])
    assert (after == 0).nonzero()[0].tolist() == smallest
    _, small = plan_and_compact(net, IMAGE.double())
    assert small[0].out_channels + small[3].out_channels == 10


def test_of_channels_across_a_residual_addition_it_is_the_mean() -> None:
    net = make_toy()
    nn.init.normal_(net.bn1.weight)
    nn.init.normal_(net.bn2.weight)
    (group_set,) = resolve_groups(net, [{"kind": "coupled"}], IMAGE)
    found = IMPORTANCES["bn_scale"](group_set, named_tensors(net))
    expected = (net.bn1.weight.abs() + net.bn2.weight.abs()) / 2
    torch.testing.assert_close(found, expected)


def test_a_layer_without_a_batch_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scales of their batch norms, and conv1:coupled has"):
        prune_(create_backbone("lenet"), torch.zeros(1, 1, 28, 28), macs=0.5, importance="bn_scale")


def test_the_penalty_is_l1_on_the_scales_alone() -> None:
    """Liu et al. 2017, equation 1: the gradient gets lambda times the sign."""
    net = vgg()
    penalty = Penalty(strength=0.25, kind="bn_scale", mode="subgradient")
    regularizer = Regularizer(net, [penalty])
    assert [s.name for s in regularizer.group_sets] == ["1:bn_scale", "4:bn_scale"]
    sgd = SGD(net.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    regularizer.attach(sgd)
    net(torch.randn(4, 1, 8, 8).double()).sum().mul(0).backward()
    sgd.step()
    for name, parameter in net.named_parameters():
        scale = name in ("1.weight", "4.weight")
        expected = before[name] - 0.25 * before[name].sign() if scale else before[name]
        torch.testing.assert_close(parameter.detach(), expected)


def test_a_budget_with_the_penalty_removes_the_channels_behind_it(trainer: Any) -> None:
    torch.manual_seed(0)
    module = SSLLightningModule(
        make_toy(2),
        penalties=[{"kind": "bn_scale", "strength": 1e-3, "mode": "subgradient"}],
        optimizer=partial(SGD, lr=0.05),
    )
    budget = Budget(macs=0.6, start=0, end=2, importance="bn_scale")
    order: list[Tensor] = []

    class Keep(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 2 and not order:
                net = pl_module.backbone
                order.append((net.bn1.weight.abs() + net.bn2.weight.abs()).detach())

    run = trainer(max_epochs=3, limit_val_batches=0, callbacks=[Keep(), budget])
    run.fit(module, toy_loader(64), toy_loader(8))
    assert module.sparsity.macs_left() <= 60
    kept = module.sparsity.plans[0].modules["conv1"].outputs
    largest = order[0].argsort(descending=True)[: len(kept)]
    assert sorted(largest.tolist()) == list(kept)


# --- Taylor expansion --------------------------------------------------------------------------


class Gated(nn.Module):
    """A network with a gate of one behind each of its batch norms."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net
        self.gates = nn.ParameterList(nn.Parameter(torch.ones(n).double()) for n in (8, 12))

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.net):
            x = layer(x)
            if number in (1, 4):
                x = x * self.gates[number // 4].view(1, -1, 1, 1)
        return x


def loss_of(net: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0].double()), batch[1])


def test_it_is_the_squared_gradient_of_a_gate_behind_the_batch_norm() -> None:
    """Molchanov et al. 2019: a gate of one, whose importance is its squared gradient."""
    net, batches = vgg().train(), list(toy_loader(32))
    gated = Gated(copy.deepcopy(net))
    expected = torch.zeros(20).double()
    for batch in batches:
        grads = torch.autograd.grad(loss_of(gated, batch), list(gated.gates))
        expected += torch.cat(grads).square() / len(batches)
    found = taylor(net, IMAGE.double(), loss_of, batches)
    values = torch.tensor([v for values in found.values.values() for v in values]).double()
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-12)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_groups_of_all_sets_are_compared_as_they_are() -> None:
    net = vgg()
    found = taylor(net, IMAGE.double(), loss_of, list(toy_loader(16)))
    sets = resolve_groups(net, [{"kind": "coupled", "layers": ["0", "3"]}], IMAGE.double())
    scores = torch.cat(scores_of(sets, named_tensors(net), found))
    thinned = copy.deepcopy(net)
    prune_(thinned, IMAGE.double(), fraction=0.5, importance=found)
    gone = torch.cat(
        [thinned[i].weight.flatten(1).any(1) if i != 1 else torch.tensor([]) for i in (0, 3)]
    ).logical_not()
    assert gone.nonzero().flatten().tolist() == sorted(scores.argsort()[:10].tolist())


def test_a_budget_adds_up_the_gradients_of_its_first_steps(trainer: Any) -> None:
    batches = list(toy_loader(96))
    module = SSLLightningModule(make_toy(2), optimizer=partial(SGD, lr=0.0))
    net, before = copy.deepcopy(module.backbone).train(), {}
    budget = Budget(macs=0.6, end=1, importance="taylor")

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 12:
                before.update(copy.deepcopy(pl_module.backbone.state_dict()))

    run = trainer(max_epochs=2, limit_val_batches=0, callbacks=[Keep(), budget])
    run.fit(module, toy_loader(96), toy_loader(8))
    net.load_state_dict(before)
    by_loss = lambda net, batch: nn.functional.cross_entropy(net(batch[0]), batch[1])  # noqa: E731
    expected = taylor(net, IMAGE, by_loss, batches[:8])  # the first eight of epoch 1
    found = Scores.from_dict(budget.state_dict()["measured"]["found"])
    assert found.values.keys() == expected.values.keys()
    for name, values in found.values.items():
        np.testing.assert_allclose(values, expected.values[name], rtol=1e-4)
    assert module.sparsity.macs_left() <= 60


class NoSteps(SSLLightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_without_steps_there_is_nothing_to_rank_by(trainer: Any) -> None:
    run = trainer(max_epochs=2, callbacks=[Budget(macs=0.6, end=0, importance="taylor")])
    with pytest.raises(MisconfigurationException, match="expected optimizer steps with gradients"):
        run.fit(NoSteps(make_toy(2)), toy_loader(16), toy_loader(8))


def test_scores_of_another_network_are_refused() -> None:
    found = taylor(vgg(), IMAGE.double(), loss_of, list(toy_loader(16)))
    with pytest.raises(ValueError, match=r"expected 6 groups of 'conv1:coupled' .* got nothing"):
        prune_(make_toy(), IMAGE, macs=0.5, importance=found)
    with pytest.raises(ValueError, match="taylor: expected at least one batch"):
        taylor(vgg(), IMAGE.double(), loss_of, [])


# --- filter shapes, counted as a column-sparse convolution computes them ------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_sparse_multiply_adds_are_those_of_rows_and_columns_that_are_left(groups: int) -> None:
    """By loops: of each group of the convolution, rows left times columns left, each position."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=groups), nn.Flatten(), nn.Linear(96, 3))
    weight = net[0].weight.data
    weight[2] = 0
    weight[: 6 // groups, 1, 0] = 0  # of the first group three columns
    weight[:, 0, 2, 2] = 0
    weight[5, 1, 1, 1] = 0  # a single zero counts
    expected = 96 * 3
    for part in range(groups):
        rows = weight[part * 6 // groups : (part + 1) * 6 // groups].flatten(1)
        left = sum(bool(row.any()) for row in rows) * sum(bool(c.any()) for c in rows.T)
        expected += left * 16
    x = torch.zeros(1, 4, 6, 6)
    assert count_sparse_macs(net, x) == expected < count_macs(net, x)


def test_a_budget_of_filter_shapes_is_kept_and_what_is_left_is_the_same_column_sparse(
    trainer: Any,
) -> None:
    module = SSLLightningModule(
        make_toy(2),
        penalties=[{"kind": "shape", "layers": "conv2", "strength": 1e-3, "function": "capped"}],
        optimizer=partial(SGD, lr=0.05),
    )
    budget = Budget(sparse_macs=0.5, start=0, end=1, importance="l2")
    run = trainer(max_epochs=2, limit_val_batches=0, callbacks=[budget])
    run.fit(module, toy_loader(64), toy_loader(8))
    net = module.backbone.eval()
    dense = count_macs(make_toy(2), IMAGE)
    assert 0.48 < count_sparse_macs(net, IMAGE) / dense <= 0.5
    plan = choose_layers(net, make_plan(net, IMAGE), compare=lambda *_: 0.1)
    small = compact(net, plan)
    assert isinstance(small.conv2, ColumnSparseConv2d)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(small(x), net(x), rtol=0, atol=1e-5)
    assert count_macs(small, IMAGE) == count_sparse_macs(small, IMAGE)


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_keeps_a_budget_and_is_zero_where_groups_are(importance: str) -> None:
    net, x = create_backbone("resnet20"), torch.zeros(1, 3, 32, 32)
    sets = resolve_groups(net, [{"kind": "coupled"}], x)
    tensors = named_tensors(net)
    first = sets[0]
    with torch.no_grad():
        for member in first.members:
            view = member.view(tensors[member.parameter])
            view.movedim(member.index_dims[0], 0)[2] = 0
    scores = scores_of(sets, tensors, importance)[0]
    assert scores[2] == 0
    assert (scores > 0).sum() == first.num_groups - 1
    dense = count_macs(net, x)
    prune_(net, x, macs=0.5, importance=importance)
    assert 0.49 < count_macs(plan_and_compact(net, x)[1], x) / dense <= 0.5


# --- ways through a window ----------------------------------------------------------------------


class Watch(pl.Callback):
    """Notes the budget's limit, or the norm of what it chose, after each step."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.sets, self.seen = budget, [], []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        net, masks = pl_module.backbone, self.budget.method.state.get("masks")
        if masks is None or pl_module.sparsity.plans:
            return
        self.sets = self.sets or resolve_groups(net, [{"kind": "coupled"}], IMAGE)
        tensors = named_tensors(net)
        gone = [torch.tensor(mask) for mask in masks]
        norms = [group_norms(s, tensors)[m] for s, m in zip(self.sets, gone, strict=True)]
        self.seen.append((sum(int(m.sum()) for m in gone), torch.cat(norms).norm().item()))


def test_gradual_follows_the_cubic_of_zhu_and_gupta(trainer: Any, monkeypatch: Any) -> None:
    """Equation 1 with an initial sparsity of 0 and a final one of 0.875, 8 times within n dt.

    By hand: 0.875 (1 - (1 - t / n dt)^3) is 0.505859375 after a quarter, 0.765625 after half and
    0.861328125 after three quarters.
    """
    shares = []

    def note(costs: Any, done: float) -> Any:
        found = limits_at(costs, done)
        shares.append(1 - found.limits["macs"] / costs.dense["macs"] if found else 0.0)
        return found

    monkeypatch.setattr(methods, "limits_at", note)
    budget = Budget(macs=0.125, end=2, method="gradual", importance="l2", every_n_steps=2)
    module = SSLLightningModule(make_toy(2), optimizer=partial(SGD, lr=0.0))
    trainer(max_epochs=3, limit_val_batches=0, callbacks=[budget]).fit(
        module, toy_loader(64), toy_loader(8)
    )
    assert len(shares) == 7  # every second of 16 steps, between the first and the last
    np.testing.assert_allclose(shares[1::2], [0.505859375, 0.765625, 0.861328125])
    assert module.sparsity.macs_left() <= 12.5


def test_fading_is_a_decay_that_grows_by_the_same_amount_in_each_step(trainer: Any) -> None:
    """Wang et al. 2021, algorithm 1: after k steps of rate lr, a weight without a gradient is
    prod_i (1 - lr i delta) of what it was. Here lr delta = 2 log(1000) / n^2 of n steps, in the
    limit of many.
    """
    budget = Budget(macs=0.5, end=4, method="fading", importance="l2")
    module, watch = SSLLightningModule(make_toy(2), optimizer=partial(SGD, lr=0.0)), Watch(budget)
    before = copy.deepcopy(module.backbone)
    run = trainer(max_epochs=5, limit_val_batches=0, callbacks=[budget, watch])
    run.fit(module, toy_loader(256), toy_loader(8))
    masks = [torch.tensor(mask) for mask in budget.method.state["masks"]]
    sets = resolve_groups(before, [{"kind": "coupled"}], IMAGE)
    norms = [group_norms(s, named_tensors(before)) for s in sets]
    first = torch.cat([n[m] for n, m in zip(norms, masks, strict=True)]).norm().item()
    steps, found = 4 * 32, [norm / first for _, norm in watch.seen]
    grow = 2 * np.log(1000) / steps**2
    expected = np.log(1 - grow * np.arange(1, steps)).cumsum()
    half = steps // 2  # the rest differs by the square of the steps' decay, more where it is larger
    np.testing.assert_allclose(np.log(found[:half]), expected[:half], atol=0.08)
    np.testing.assert_allclose(np.log(found[: steps - 1]), expected, atol=0.35)
    assert expected[-1] < -6
