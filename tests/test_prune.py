"""Coupled groups, and pruning to a fraction, a budget or a threshold."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.optim import SGD, Adam

from nets_with_zeros import check_equal, randomise_
from ssl_lightning.backbones import create_backbone
from ssl_lightning.compaction import compact, make_plan
from ssl_lightning.groups import (
    GroupSet,
    Member,
    Selector,
    group_norms,
    nonzero_groups,
    resolve_groups,
    zero_groups_,
)
from ssl_lightning.locks import GroupLocks
from ssl_lightning.measure import count_macs
from ssl_lightning.penalties import Regularizer
from ssl_lightning.penalties.functional import prox_group_lasso_metric
from ssl_lightning.prune import PruneReport, prune_
from ssl_lightning.prune.first_within import first_within
from ssl_lightning.steps import step_sizes

CIFAR = torch.zeros(1, 3, 32, 32)
IMAGE = torch.zeros(1, 3, 64, 64)
SMALL = torch.zeros(1, 3, 8, 8)


def coupled(model: nn.Module, example: Tensor, **fields: Any) -> list[GroupSet]:
    return resolve_groups(model, [{"kind": "coupled", **fields}], example)


def writers(group_set: GroupSet) -> set[str]:
    return {name.rpartition(".")[0] for name in group_set.parameters()}


class Concat(nn.Module):
    """Two branches side by side, backwards, with a norm over both; a third one added to them."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Conv2d(3, 6, 3, padding=1)
        self.a = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        self.b = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 5, 3, padding=1)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.a(x), self.b(x)], 1).flip(1)
        x = self.norm(both).relu() + self.whole(x)
        return self.fc(self.last(x).relu().mean((2, 3)))


class Halves(nn.Module):
    """Two branches side by side, and added to one layer that runs before them."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Conv2d(3, 6, 1)
        self.a = nn.Conv2d(3, 2, 1, bias=False)
        self.b = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.whole(x) + self.norm(torch.cat([self.a(x), self.b(x)], 1))
        return self.fc(x.mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two others, and a gate that is not zero at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.gate = nn.Conv2d(12, 6, 1)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gate(self.grouped(self.first(x).relu()).relu()).sigmoid())


# --- members that are parts of a parameter --------------------------------------------------------

INDICES = {
    "all": (),
    "run": (2, 3, 4),
    "every_other": (1, 3, 5),
    "one": (4,),
    "shuffled": (5, 0, 3, 1),
    "backwards": (4, 3, 2),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("last", [False, True])
def test_parts_of_a_parameter(index: tuple[int, ...], last: bool) -> None:
    weight = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    weight = weight.to(memory_format=torch.channels_last) if last else weight
    before, rows = weight.clone(), list(index or range(6))
    member = Member("w", (6, 3, 2, 2), (0,), index)
    group_set = GroupSet("", "coupled", (member,))
    assert (member.num_groups, group_set.group_size) == (len(rows), 12)
    expected = torch.stack([before[i].norm() for i in rows])
    torch.testing.assert_close(group_norms(group_set, {"w": weight}), expected)
    factors = torch.arange(2.0, 2 + len(rows), dtype=torch.float64)
    member.scale_(weight, factors)
    scaled = before.clone()
    for i, factor in zip(rows, factors, strict=True):
        scaled[i] *= factor
    torch.testing.assert_close(weight, scaled)
    zero = torch.arange(len(rows)) % 2 == 0
    zero_groups_(group_set, zero, {"w": weight})
    for i, gone in zip(rows, zero, strict=True):
        scaled[i] = 0 if gone else scaled[i]
    torch.testing.assert_close(weight, scaled)
    assert torch.equal(nonzero_groups(group_set, {"w": weight}), ~zero)


@pytest.mark.parametrize("mode", ["proximal", "subgradient"])
@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_penalties_on_coupled_groups(mode: str, optimizer: Any) -> None:
    torch.manual_seed(0)
    model = randomise_(Concat())
    penalty = {"kind": "coupled", "strength": 0.1, "scaling": "none", "mode": mode}
    regularizer = Regularizer(model, [penalty], SMALL)
    made = optimizer(model.parameters(), lr=0.1)
    sets = {s.name: s for s in regularizer.group_sets}
    assert any(m.index and m.as_slice is None for s in sets.values() for m in s.members)
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    rows = group_rows(model, sets["b:coupled"])
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    if mode == "subgradient":
        regularizer.add_subgradient_()
        for group in rows:
            norm = math.sqrt(sum(float(w.square().sum()) for _, _, w in group))
            for name, i, w in group:
                found = dict(model.named_parameters())[name].grad[i]
                torch.testing.assert_close(found, grads[name][i] + 0.1 * w / norm)
        return
    made.step()
    rows, parameters = group_rows(model, sets["b:coupled"]), dict(model.named_parameters())
    steps = step_sizes(made, parameters)
    regularizer.proximal_step_(made)
    for group in rows:
        flat = torch.cat([w.flatten() for _, _, w in group])
        found = torch.cat([parameters[n][i].detach().flatten() for n, i, _ in group])
        taken = [torch.as_tensor(steps[n]).expand_as(parameters[n])[i] for n, i, _ in group]
        metric = torch.cat([s.flatten() for s in taken])[None]
        expected = prox_group_lasso_metric(flat[None], (0,), metric, 0.1)[0]
        torch.testing.assert_close(found, expected)
        assert float(found.norm()) < float(flat.norm())


def group_rows(model: nn.Module, group_set: GroupSet) -> list[list[tuple[str, int, Tensor]]]:
    """Return the slices of each group as (parameter, position, copy of the values)."""
    parameters = dict(model.named_parameters())
    rows = []
    for g in range(group_set.num_groups):
        places = [(m.parameter, m.index[g] if m.index else g) for m in group_set.members]
        rows.append([(n, i, parameters[n][i].detach().clone()) for n, i in places])
    return rows


def test_strong_penalties_make_coupled_channels_exactly_zero_and_removable() -> None:
    model = randomise_(create_backbone("resnet20", shortcut="B"))
    strength = {"kind": "coupled", "layers": "layer3.*", "strength": 3.0}
    regularizer = Regularizer(model, [strength], CIFAR)
    sgd = SGD(model.parameters(), lr=0.1)
    regularizer.proximal_step_(sgd)
    parameters = dict(model.named_parameters())
    alive = {s.layer: nonzero_groups(s, parameters) for s in regularizer.group_sets}
    assert not any(bool(mask.any()) for mask in alive.values())
    assert set(alive) == {f"layer3.{i}.conv1" for i in range(3)} | {"layer3.0.conv2"}


def test_locks_of_parts_survive_a_checkpoint() -> None:
    model = randomise_(Concat())
    group_set = coupled(model, SMALL, layers="b")[-1]
    locks, restored = GroupLocks(), GroupLocks()
    locks.lock(group_set, torch.arange(group_set.num_groups) == 1)
    restored.load_state_dict(locks.state_dict())
    parameters = dict(model.named_parameters())
    restored.enforce_(parameters)
    assert (~nonzero_groups(group_set, parameters)).nonzero().flatten().tolist() == [1]
    old = [{**e, "members": [m[:3] for m in e["members"]]} for e in locks.state_dict()]
    restored.load_state_dict(old)  # written before members had an index


# --- which channels go together -------------------------------------------------------------------


def test_trunks_of_a_resnet_with_projections() -> None:
    sets = {s.layer: s for s in coupled(create_backbone("resnet20", shortcut="B"), CIFAR)}
    for stage, channels in ((1, 16), (2, 32), (3, 64)):
        first = "conv1" if stage == 1 else f"layer{stage}.0.conv2"
        ends = {f"layer{stage}.{i}.{m}2" for i in range(3) for m in ("conv", "bn")}
        stem = {"conv1", "bn1"} if stage == 1 else {f"layer{stage}.0.shortcut.{i}" for i in (0, 1)}
        assert writers(sets[first]) == ends | stem
        assert sets[first].num_groups == channels
        for i in range(3):
            inner = sets[f"layer{stage}.{i}.conv1"]
            assert writers(inner) == {f"layer{stage}.{i}.{m}1" for m in ("conv", "bn")}
            assert inner.num_groups == channels
            assert not any(member.index for member in inner.members)
    assert len(sets) == 12


def test_a_padded_shortcut_ties_what_it_copies() -> None:
    sets = {s.layer: s for s in coupled(create_backbone("resnet20"), CIFAR)}
    trunks = {name: sets[name] for name in ("conv1", "layer2.0.conv2", "layer3.0.conv2")}
    assert [s.num_groups for s in trunks.values()] == [16, 16, 32]
    ends = [{f"layer{s}.{i}.{m}2" for i in range(3) for m in ("conv", "bn")} for s in (1, 2, 3)]
    assert writers(trunks["conv1"]) == {"conv1", "bn1"}.union(*ends)
    assert writers(trunks["layer2.0.conv2"]) == ends[1] | ends[2]
    assert writers(trunks["layer3.0.conv2"]) == ends[2]
    assert {m.index for m in trunks["layer3.0.conv2"].members} == {tuple(range(32, 64))}
    assert len(sets) == 12


def test_depthwise_convolutions_are_tied_to_what_they_read() -> None:
    sets = {s.layer: s for s in coupled(torchvision.models.mobilenet_v2(weights=None), IMAGE)}
    assert writers(sets["features.0.0"]) == {
        *("features.0.0", "features.0.1"),
        *("features.1.conv.0.0", "features.1.conv.0.1"),
    }
    inner = {f"features.5.conv.{i}.{j}" for i in (0, 1) for j in (0, 1)}
    assert writers(sets["features.5.conv.0.0"]) == inner
    trunk = {f"features.{i}.conv.{j}" for i in (4, 5, 6) for j in (2, 3)}
    assert writers(sets["features.4.conv.2"]) == trunk
    assert "classifier.1" not in sets  # the network's output


def test_concatenations_are_tied_by_position() -> None:
    sets = {s.name: s for s in coupled(Halves(), SMALL)}
    assert set(sets) == {"whole:coupled", "whole#2:coupled"}
    first, second = sets.values()
    assert writers(first) == {"whole", "a", "norm"}
    assert writers(second) == {"whole", "b", "norm"}
    index = {m.parameter: m.index for m in second.members}
    assert index["b.weight"] == ()
    assert index["whole.bias"] == index["norm.weight"] == (2, 3, 4, 5)


def test_families_are_selected_by_any_of_their_layers() -> None:
    assert [s.name for s in coupled(Halves(), SMALL, layers="b")] == ["whole#2:coupled"]
    weights = coupled(Halves(), SMALL, layers="a", members="weight")[0]
    assert [m.parameter for m in weights.members] == ["whole.weight", "a.weight"]
    extra = [m.parameter for m in weights.companions]
    assert extra == ["whole.bias", "norm.weight", "norm.bias"]
    with pytest.raises(ValueError, match=r"'norm' matches no layer .* that have: whole, a, b\."):
        coupled(Halves(), SMALL, layers="norm")


def test_conv_groups_stay_balanced_and_what_is_never_zero_is_left_out() -> None:
    sets = {s.layer: s for s in coupled(Grouped(), SMALL)}
    assert {name: s.num_groups for name, s in sets.items()} == {"first": 2, "grouped": 3}
    (bias,) = [m for m in sets["grouped"].members if m.parameter == "grouped.bias"]
    assert (bias.shape, bias.index_dims) == ((4, 3, 1), (1,))  # one of each group


def start_of(model: nn.Module, *parts: str, channels: int) -> nn.Module:
    """Return the first parts of a network with a head of their own: quicker than the whole."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))
    return nn.Sequential(*(model.get_submodule(part) for part in parts), *head)


def start_of_mobilenet() -> nn.Module:
    model = torchvision.models.mobilenet_v2(weights=None)
    return start_of(model, *(f"features.{i}" for i in range(6)), channels=32)


def start_of_shufflenet() -> nn.Module:
    model = torchvision.models.shufflenet_v2_x0_5(weights=None)
    return start_of(model, "conv1", "stage2", channels=48)


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "resnet20": (lambda: create_backbone("resnet20"), CIFAR),
    "projections": (lambda: create_backbone("resnet20", shortcut="B"), CIFAR),
    "lenet": (lambda: create_backbone("lenet"), torch.zeros(1, 1, 28, 28)),
    "concat": (Concat, SMALL),
    "halves": (Halves, SMALL),
    "grouped": (Grouped, SMALL),
    "mobilenet": (start_of_mobilenet, CIFAR),
    "shufflenet": (start_of_shufflenet, CIFAR),
}


@pytest.mark.parametrize("name", NETS)
def test_what_is_pruned_is_what_compaction_removes(name: str) -> None:
    make, example = NETS[name]
    torch.manual_seed(0)
    model = randomise_(make())
    sets = coupled(model, example)
    report = prune_(model, example, fraction=0.4)
    zeroed, total = report.total
    assert zeroed == round(0.4 * total) > 0
    assert all(n < of for n, of in report.zeroed.values())
    parameters = dict(model.named_parameters())
    for group_set in sets:
        dead = ~nonzero_groups(group_set, parameters)
        assert int(dead.sum()) == report.zeroed[group_set.name][0]
    gone: dict[str, set[int]] = {}
    for name in {name for group_set in sets for name in group_set.parameters()}:
        rows = parameters[name].reshape(len(parameters[name]), -1)
        zero = (rows == 0).all(1).nonzero().flatten().tolist()
        gone.setdefault(name.rpartition(".")[0], set()).update(zero)
    _, plan = check_equal(model, example, batches=(2,), double=False)
    for module, slices in plan.modules.items():
        if module in gone:
            assert set(range(slices.of[1])) - set(slices.outputs) == gone[module], module
    assert plan.notes == ()


# --- how much goes --------------------------------------------------------------------------------


def vgg() -> nn.Module:
    """VGG-11 with batch norm for 32 pixels: one linear layer, as is usual there."""
    model = torchvision.models.vgg11_bn(weights=None)
    model.avgpool, model.classifier = nn.Identity(), nn.Linear(512, 10)
    return model


BUDGETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "resnet20": NETS["resnet20"],
    "vgg11_bn": (vgg, CIFAR),
    "mobilenet": (lambda: torchvision.models.mobilenet_v2(weights=None), IMAGE),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_half_of_the_macs(name: str) -> None:
    make, example = BUDGETS[name]
    torch.manual_seed(0)
    model = make()
    dense = count_macs(model, example)
    report = prune_(model, example, macs=0.5)
    small = compact(model, make_plan(model, example))
    assert report.macs == (dense, count_macs(small, example))
    assert abs(report.macs[1] / dense - 0.5) <= 0.02
    assert f"MACs {dense:,} -> " in str(report)


def reference(model: nn.Module, sets: list[GroupSet], importance: str) -> list[tuple[str, int]]:
    """Rank the groups by loops, least important first; the best of each set is left out."""
    ranked = []
    for group_set in sets:
        scores = []
        for number, group in enumerate(group_rows(model, group_set)):
            values = [v for _, _, w in group for v in w.double().flatten().tolist()]
            total = sum(v * v if importance == "l2" else abs(v) for v in values)
            scores.append((math.sqrt(total) if importance == "l2" else total, number))
        mean = sum(score for score, _ in scores) / len(scores)
        scores = [(score / mean, number) for score, number in scores]
        ranked += [(score, group_set.name, n) for score, n in sorted(scores)[:-1]]
    return [(name, number) for _, name, number in sorted(ranked)]


@pytest.mark.parametrize("importance", ["l1", "l2"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6])
def test_ranking_by_loops(importance: str, fraction: float) -> None:
    torch.manual_seed(1)
    model = randomise_(Concat())
    sets = coupled(model, SMALL)
    total = sum(s.num_groups for s in sets)
    expected = set(reference(model, sets, importance)[: round(fraction * total)])
    prune_(model, SMALL, fraction=fraction, importance=importance)
    parameters = dict(model.named_parameters())
    found = {
        (s.name, number)
        for s in sets
        for number in (~nonzero_groups(s, parameters)).nonzero().flatten().tolist()
    }
    assert found == expected


@pytest.mark.parametrize("goal", [{"fraction": 0.4}, {"threshold": 2.0}], ids=str)
def test_a_multiple_of_channels_stays(goal: dict[str, float]) -> None:
    plain, model = (randomise_(create_backbone("resnet20")) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    prune_(plain, CIFAR, **goal)
    prune_(model, CIFAR, multiple=4, **goal)
    for group_set in coupled(model, CIFAR):
        left, before = (
            int(nonzero_groups(group_set, dict(m.named_parameters())).sum()) for m in (model, plain)
        )
        assert left == group_set.num_groups == before or left % 4 == 0
        assert abs(left - max(4, before)) <= 2
    _, plan = check_equal(model, CIFAR, batches=(2,), double=False)
    inner = [s for n, s in plan.modules.items() if n.startswith("layer") and n.endswith(".conv1")]
    assert all(len(s.outputs) % 4 == 0 for s in inner)


def test_a_budget_in_multiples() -> None:
    model = vgg()
    report = prune_(model, CIFAR, macs=0.5, multiple=8)
    before, after = report.macs or (1, 0)
    assert abs(after / before - 0.5) <= 0.02
    assert all((of - n) % 8 == 0 or n == 0 for n, of in report.zeroed.values())


def test_threshold_is_a_norm_and_the_best_group_stays() -> None:
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4], [30.0, 40.0]]))
    example = torch.zeros(1, 2)
    assert prune_(copy.deepcopy(model), example, threshold=0.49).total == (0, 3)
    assert prune_(copy.deepcopy(model), example, threshold=0.51).total == (1, 3)
    assert prune_(copy.deepcopy(model), example, threshold=0.6, importance="l1").total == (0, 3)
    assert prune_(copy.deepcopy(model), example, threshold=0.71, importance="l1").total == (1, 3)
    assert prune_(model, example, threshold=1e9) == PruneReport(
        {"0:coupled": (2, 3)}, retained={"2": "the network's output"}
    )
    assert model[0].weight.tolist() == [[0, 0], [0, 0], [30, 40]]


def test_groups_may_be_sets_selectors_or_a_kind() -> None:
    nets = [create_backbone("lenet") for _ in range(4)]
    example = torch.zeros(1, 1, 28, 28)
    selector = {"kind": "filter", "layers": "conv*"}
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    given = [[selector], [Selector("filter", "conv*")], resolve_groups(nets[2], [selector])]
    reports = [
        prune_(n, example, groups=g, fraction=0.5) for n, g in zip(nets, given, strict=False)
    ]
    assert (
        reports[0]
        == reports[1]
        == reports[2]
        == prune_(nets[3], example, kind="filter", fraction=0.5)
    )
    assert reports[0].total == (35, 70)
    for net in nets[1:]:
        assert torch.equal(net.conv1.weight, nets[0].conv1.weight)


def test_half_precision_and_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.c(self.a(x) + self.b(y))

    example = (torch.zeros(1, 4), torch.zeros(1, 4))
    report = prune_(Two(), example, macs=0.5)
    assert report.macs == (160, 80)
    half = Two().bfloat16()
    example = tuple(x.bfloat16() for x in example)
    for importance in ("l1", "l2"):
        assert prune_(half, example, fraction=0.5, importance=importance).total == (8, 16)


def test_random_groups_are_as_many_and_never_those_that_are_zero() -> None:
    first, second = create_backbone("lenet"), create_backbone("lenet")
    example = torch.zeros(1, 1, 28, 28)
    prune_(first, example, fraction=0.3, importance="random")
    zero = {n: p == 0 for n, p in first.named_parameters()}
    assert prune_(first, example, fraction=0.5, importance="random").total == (285, 570)
    assert all(bool((p[zero[n]] == 0).all()) for n, p in first.named_parameters())
    prune_(second, example, macs=0.5, importance="random")
    with pytest.raises(ValueError, match="importance='random' has no norms"):
        prune_(second, example, threshold=0.1, importance="random")


@pytest.mark.parametrize("goal", range(2, 105, 7))
@pytest.mark.parametrize("power", [0.3, 1.0, 4.0])
def test_the_search_finds_the_smallest_number_within(goal: int, power: float) -> None:
    costs = [round(1000 * (1 - n / 300) ** power) / 10 for n in range(301)]
    calls: list[int] = []

    def excess(number: int) -> float:
        calls.append(number)
        return costs[number] / goal

    number, found = first_within(excess, 0, 300, near=1.0)
    assert len(calls) <= 20
    assert costs[number] == max(c for c in costs if c <= goal)
    assert found == costs[number] / goal
    assert first_within(lambda n: 2.0, 3, 9, near=1.0) == (9, 2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of fraction, macs, threshold, budget, got none"),
        ({"fraction": 0.1, "macs": 0.5}, "got fraction and macs"),
        ({"fraction": 1.0}, "expected 0 <= fraction < 1, .* got 1.0"),
        ({"fraction": -0.1}, "expected 0 <= fraction < 1"),
        ({"fraction": math.nan}, "got nan"),
        ({"fraction": "0.5"}, "got '0.5'"),
        ({"macs": 0.0}, "expected 0 < macs <= 1"),
        ({"macs": True}, "got True"),
        ({"macs": 4e7}, "expected 0 < macs <= 1"),
        ({"threshold": math.inf}, "expected a finite threshold"),
        ({"threshold": -1.0}, "expected a finite threshold >= 0, got -1.0"),
        ({"fraction": 0.999}, r"zero 569 of 570 groups, but one of each of the 3 sets is retained"),
        ({"macs": 0.1, "groups": [Selector("coupled", "fc1")]},
         r"macs=0.1: the budget .*macs: 0\.\d+ of 0\.100.*`conv2`.*none of its groups"),
        ({"fraction": 0.1, "importance": "l22"}, "Unknown importance 'l22'. Did you mean l2"),
        ({"fraction": 0.1, "multiple": 0}, "expected a whole number >= 1 as multiple, got 0"),
        ({"fraction": 0.1, "kind": "couple"}, "kind 'couple'. Did you mean coupled"),
        ({"fraction": 0.1, "groups": []}, "to hold group sets or selectors, got none"),
        ({"fraction": 0.1, "groups": [GroupSet("x", "filter", (Member("x.w", (2,), (0,)),))]},
         "expected LeNet to have a parameter `x.w`"),
    ],
)  # fmt: skip
def test_errors_leave_the_model_unchanged(settings: dict[str, Any], message: str) -> None:
    model = create_backbone("lenet")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        prune_(model, torch.zeros(1, 1, 28, 28), **settings)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_network_without_channels_that_could_go() -> None:
    with pytest.warns(UserWarning, match=r"Linear has no coupled groups .* nothing is pruned"):
        report = prune_(nn.Linear(2, 2), torch.zeros(1, 2), fraction=0.1)
    assert report == PruneReport({}, retained={"": "the network's output"})
    with pytest.raises(ValueError, match=r"so macs=0\.5 cannot be reached"):
        prune_(nn.Linear(2, 2), torch.zeros(1, 2), macs=0.5)
    with pytest.raises(ValueError, match="Layers that have: none"):
        prune_(nn.Linear(2, 2), torch.zeros(1, 2), groups=[{"kind": "coupled"}], fraction=0.1)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = create_backbone("lenet")
    with torch.no_grad():
        model.conv1.weight[0] = math.nan
    with pytest.raises(ValueError, match="holds NaN or infinite"):
        prune_(model, torch.zeros(1, 1, 28, 28), fraction=0.1)
