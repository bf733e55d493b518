"""Groups ranked by what their removal was measured to cost, against loops and interpolation."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

from ssl_lightning import (
    Budget,
    Sensitivity,
    SSLLightningModule,
    compact,
    count_macs,
    load_compact,
    make_plan,
    prune_,
    sensitivity,
)
from ssl_lightning.cli import main
from ssl_lightning.costs import Costs, parse_targets
from ssl_lightning.groups import resolve_groups
from ssl_lightning.measure import num_parameters
from ssl_lightning.measure.left import CompactForm
from ssl_lightning.measure.sensitivity_record import Curve, Rises
from ssl_lightning.prune import choose_groups
from ssl_lightning.prune.scores import scores_of
from toy import make_toy, toy_loader

IMAGE = torch.zeros(1, 1, 8, 8)


class Branches(nn.Module):
    """Two hidden layers beside each other; what the second says hardly counts."""

    input_shape = (1, 8, 8)
    num_classes = 10

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.fc1, self.fc2 = nn.Linear(64, 24), nn.Linear(64, 20)
        self.out1, self.out2 = nn.Linear(24, 10), nn.Linear(20, 10)
        with torch.no_grad():
            self.out2.weight *= 1e-3

    def forward(self, x):
        x = x.flatten(1)
        return self.out1(self.fc1(x).relu()) + self.out2(self.fc2(x).relu())


@pytest.fixture
def images():
    return torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def measured(net, images, shares=(0.2, 0.5, 0.8)):
    @torch.no_grad()
    def changed(thinned):
        return float((thinned(images) - before).norm())

    with torch.no_grad():
        before = net(images)
    return sensitivity(net, IMAGE, changed, shares=shares)


def test_scores_are_the_slopes_of_the_error_at_each_group(images):
    net = Branches().eval()
    found = measured(net, images)
    sets = resolve_groups(net, [{"kind": "coupled"}], IMAGE)
    tensors = dict(net.named_parameters())
    for group_set, scores in zip(sets, scores_of(sets, tensors, found.rises()), strict=True):
        layer = net.get_submodule(group_set.layer)
        reader = {"fc1": net.out1, "fc2": net.out2}[group_set.layer]
        norms = (layer.weight.square().sum(1) + layer.bias.square()).sqrt()
        order = norms.argsort().tolist()
        n = len(order)
        xs, ys = [0], [0.0]
        for share in (0.2, 0.5, 0.8):
            kept = {k: v.clone() for k, v in net.state_dict().items()}
            with torch.no_grad():
                for group in order[: round(share * n)]:
                    layer.weight[group], layer.bias[group] = 0, 0
                    reader.weight[:, group] = 0
                changed = net(images)
                net.load_state_dict(kept)
                rise = float((changed - net(images)).norm())
            ys.append(max(ys[-1], rise))
            xs.append(round(share * n))
        places = [0.0] + [(a + b) / 2 for a, b in pairwise(xs)]
        slopes = [0.0]
        for (x, y), (x2, y2) in pairwise(zip(xs, ys, strict=True)):
            slopes.append(max(slopes[-1], (y2 - y) / (x2 - x)))
        for rank, group in enumerate(order):
            expected = np.interp(rank + 0.5, places, slopes)
            if rank + 0.5 > places[-1]:  # on along the last line
                last = (slopes[-1] - slopes[-2]) / (places[-1] - places[-2])
                expected = slopes[-1] + last * (rank + 0.5 - places[-1])
            expected *= max(n / 8 / (n - rank - 0.5), 1.0)  # the last eighth: by how few are left
            assert float(scores[group]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


class Unequal(nn.Module):
    """Two hidden layers beside each other, whose units cost 74 and 26 multiply-adds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.fc1, self.fc2 = nn.Linear(64, 24), nn.Linear(16, 20)
        self.out1, self.out2 = nn.Linear(24, 10), nn.Linear(20, 10)

    def forward(self, x):
        return self.out1(self.fc1(x).relu()) + self.out2(self.fc2(x[:, :16]).relu())


@given(
    steepness=st.floats(0.02, 50.0),
    share=st.floats(0.15, 0.95),
    known=st.sampled_from([(3, 6, 12, 18), (12,), tuple(range(1, 19))]),
)
@settings(max_examples=25, deadline=None)
def test_the_sum_of_rises_is_the_least_for_the_cost(steepness, share, known):
    """Against all pairs of numbers of groups, for errors that rise with the square of them."""
    net, x = Unequal().eval(), torch.zeros(1, 64)
    sets = resolve_groups(net, [{"kind": "coupled"}], x)
    factors = {"fc1:coupled": 1.0, "fc2:coupled": steepness}
    curves = {
        s.name: Curve(s.num_groups, known, tuple(factors[s.name] * k**2 for k in known))
        for s in sets
    }
    scores = scores_of(sets, dict(net.named_parameters()), Rises("", "", "l2", curves))
    costs = Costs(parse_targets("here", {"macs": share}), net, x)
    choice = choose_groups(net, CompactForm(x), sets, scores, costs, per_cost=True)
    first, second = (int(mask.sum()) for mask in choice.masks)
    limit = share * (24 * 74 + 20 * 26)
    assert choice.costs["macs"] == (24 - first) * 74 + (20 - second) * 26 <= limit
    least, a, b = min(
        (a**2 + steepness * b**2, a, b)
        for a in range(24)
        for b in range(20)
        if (24 - a) * 74 + (20 - b) * 26 <= limit
    )
    if a > 24 * 7 / 8 - 1 or b > 20 * 7 / 8 - 1:
        return  # the last eighth counts more than the curve says
    one_more = 2 * first + 1 + steepness * (2 * second + 1)  # whole groups go, not parts
    assert first**2 + steepness * second**2 <= least + one_more + 1e-6 * least


class ConvolutionsThenLinear(nn.Module):
    """The convolutions have most multiply-adds, the linear layers most parameters."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.c3 = nn.Conv2d(32, 16, 3, padding=1)
        self.f1, self.f2, self.f3 = nn.Linear(64, 512), nn.Linear(512, 512), nn.Linear(512, 10)

    def forward(self, x):
        for conv in (self.c1, self.c2, self.c3):
            x = conv(x).relu()
        x = nn.functional.max_pool2d(x, 4).flatten(1)
        return self.f3(self.f2(self.f1(x).relu()).relu())


@pytest.mark.parametrize("limits", [(0.5, 0.5), (0.5, 0.25)])
def test_no_set_is_emptied_for_a_limit_that_it_hardly_touches(limits, images):
    torch.manual_seed(0)
    net = ConvolutionsThenLinear().eval()
    report = prune_(
        net,
        IMAGE,
        budget=dict(zip(("macs", "parameters"), limits, strict=True)),
        importance=measured(net, images, (0.125, 0.25, 0.5, 0.75, 0.875)),
    )
    assert all(of - gone >= 0.1 * of for gone, of in report.zeroed.values())
    small = compact(net, make_plan(net, IMAGE))
    dense = ConvolutionsThenLinear()
    shares = (
        count_macs(small, IMAGE) / count_macs(dense, IMAGE),
        num_parameters(small) / num_parameters(dense),
    )
    assert all(0.5 * limit < share <= limit for share, limit in zip(shares, limits, strict=True))


def test_groups_of_equal_rise_go_where_they_save_more():
    net, x = Unequal().eval(), torch.zeros(1, 64)
    sets = resolve_groups(net, [{"kind": "coupled"}], x)
    curves = {s.name: Curve(s.num_groups, (1, 19), (1.0, 19.0)) for s in sets}
    scores = scores_of(sets, dict(net.named_parameters()), Rises("", "", "l2", curves))
    costs = Costs(parse_targets("here", {"macs": 0.678}), net, x)
    choice = choose_groups(net, CompactForm(x), sets, scores, costs, per_cost=True)
    assert [int(mask.sum()) for mask in choice.masks] == [10, 0]


def test_sets_that_cost_nothing_are_thinned_first(images):
    """By norms both layers lose alike; the record knows that the second one hardly counts."""
    by_norm, by_record = Branches().eval(), Branches().eval()
    found = measured(by_record, images)
    with torch.no_grad():
        before = by_norm(images)
    prune_(by_norm, IMAGE, macs=0.6)
    prune_(by_record, IMAGE, macs=0.6, importance=found)
    errors = [float((net(images) - before).detach().norm()) for net in (by_norm, by_record)]
    assert errors[1] < 0.1 * errors[0]


def test_a_budget_takes_the_file_of_the_record(trainer, tmp_path, images):
    net = make_toy(2).eval()
    measured(net, images).save(tmp_path / "record.json")
    expected = make_toy(2).eval()
    report = prune_(expected, IMAGE, macs=0.6, importance=str(tmp_path / "record.json"))
    module = SSLLightningModule(net.train(), optimizer=partial(SGD, lr=0.0), input_shape=(1, 8, 8))
    budget = Budget(macs=0.6, end=0, importance=str(tmp_path / "record.json"))
    run = trainer(max_epochs=1, limit_val_batches=0, callbacks=[budget])
    run.fit(module, toy_loader(8), toy_loader(8))
    gone, of = report.zeroed["conv1:coupled"]
    assert module.backbone.conv1.out_channels == of - gone
    kept = expected.conv1.weight.flatten(1).any(1)
    torch.testing.assert_close(module.backbone.conv1.weight, expected.conv1.weight[kept])


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.yaml").write_text(
        "data: {class_path: MNISTDataModule, init_args: {source: bundled, num_validation: 200}}\n"
    )
    entry = "zoo:lenet_mnist_dense"
    assert main(["sensitivity", entry, "--data=data.yaml", "--output=found"]) == 0
    command = ["prune", entry, "--macs=0.5", "--importance=found/sensitivity.json"]
    assert main([*command, "--output=small"]) == 0
    small = load_compact("small")
    assert count_macs(small, torch.zeros(1, 1, 28, 28)) <= 0.5 * 2_293_000
    assert main(["prune", "lenet", "--macs=0.5", "--importance=none.json"]) == 1
    assert "none.json" in capsys.readouterr().err
    other = ["prune", "alexnet", "--macs=0.5", "--importance=found/sensitivity.json"]
    assert main(other) == 1
    said = capsys.readouterr().err
    assert "importance: expected" in said
    assert "`ssl-lightning sensitivity`" in said


def test_a_record_has_no_norms():
    net = Branches().eval()
    record = measured(net, torch.zeros(1, 1, 8, 8))
    assert isinstance(record, Sensitivity)
    with pytest.raises(ValueError, match="has no norms"):
        prune_(net, IMAGE, threshold=0.5, importance=record)
