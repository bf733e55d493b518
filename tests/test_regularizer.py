"""Regularizer: penalties bound to a model, its optimizer and its epochs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from ssl_lightning.groups import group_norms
from ssl_lightning.penalties import Penalty, Regularizer, prox_group_lasso
from ssl_lightning.penalties.regularizer import disjoint_stages


class Net(nn.Module):
    """Convolution, batch norm, grouped convolution, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, groups=2, bias=False)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.bn1(self.conv1(x)).relu()).mean((2, 3)))


INPUT = torch.zeros(2, 2, 8, 8)


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    made = Net()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return made


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def sgd(model: nn.Module, lr: float = 0.5, **settings: Any) -> SGD:
    return SGD(model.parameters(), lr=lr, **settings)


def test_values_by_loop() -> None:
    model = net()
    penalties = [
        {"kind": "filter", "layers": "conv1", "strength": 2.0},
        {"kind": "neuron_in", "strength": 3.0, "scaling": "none", "mode": "subgradient"},
        {
            "kind": "l1",
            "layers": "fc",
            "strength": 5.0,
            "schedule": {"kind": "constant", "start": 2},
        },
    ]
    regularizer = Regularizer(model, penalties, INPUT)
    p = copies(model)
    filters = sum(
        math.sqrt(
            float(p["conv1.weight"][i].square().sum())
            + sum(float(p[n][i]) ** 2 for n in ("conv1.bias", "bn1.weight", "bn1.bias"))
        )
        for i in range(4)
    )
    neurons = sum(float(p["fc.weight"][:, i].norm()) for i in range(4))
    found = {k: float(v) for k, v in regularizer.values(epoch=2).items()}
    assert found == {
        "filter": pytest.approx(2.0 * math.sqrt(21) * filters, rel=1e-5),
        "neuron_in": pytest.approx(3.0 * neurons, rel=1e-5),
        "l1": pytest.approx(5.0 * float(p["fc.weight"].abs().sum()), rel=1e-5),
    }
    assert float(regularizer.values(epoch=1)["l1"]) == 0
    assert regularizer.strengths(1) == {
        "conv1:filter": pytest.approx(2 * math.sqrt(21)),
        "fc:neuron_in": 3.0,
        "fc:l1": 0.0,
    }


def test_proximal_step_over_several_members() -> None:
    model = net()
    regularizer = Regularizer(model, [Penalty(1.0, "conv1", kind="filter", scaling="none")], INPUT)
    before = copies(model)
    names = ["conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias"]
    together = torch.cat([before[name].view(4, -1) for name in names], 1)
    threshold = float(together.norm(dim=1).sort().values[1])  # kills two of the four
    regularizer.proximal_step_(sgd(model, lr=threshold))
    expected = prox_group_lasso(together, (0,), threshold)
    after = copies(model)
    torch.testing.assert_close(torch.cat([after[n].view(4, -1) for n in names], 1), expected)
    assert int((expected == 0).all(1).sum()) == 2
    for name in after.keys() - names:
        assert torch.equal(after[name], before[name])


def test_one_step_of_crossing_and_nesting_kinds_goes_from_small_to_large() -> None:
    model = net()
    weight = model.conv1.weight.detach().clone()
    penalties = [
        {"kind": "filter", "layers": "conv1", "strength": 0.4, "members": "weight"},
        {"kind": "channel", "layers": "conv1", "strength": 0.5},
        {"kind": "shape", "layers": "conv1", "strength": 0.6},
        {"kind": "kernel", "layers": "conv1", "strength": 0.7},
        {"kind": "l1", "layers": "conv1", "strength": 0.3},
    ]
    regularizer = Regularizer(model, penalties, INPUT)
    regularizer.proximal_step_(sgd(model, lr=0.1))
    expected = weight.sign() * (weight.abs() - 0.03).clamp_min(0.0)
    for dims, size, strength in (
        ((1, 2, 3), 4, 0.06),
        ((0, 1), 9, 0.07),
        ((0,), 18, 0.04),
        ((1,), 36, 0.05),
    ):
        expected = prox_group_lasso(expected, dims, strength * math.sqrt(size))
    torch.testing.assert_close(model.conv1.weight.detach(), expected)
    sets = [
        [t.name for t, _ in stage]
        for stage in disjoint_stages(
            [(t, 1.0) for t in regularizer.terms], regularizer.parameters()
        )
    ]
    assert sets == [[f"conv1:{kind}"] for kind in ("l1", "shape", "kernel", "filter", "channel")]


def test_stages_share_no_parameter_and_keep_the_order() -> None:
    penalties = [{"kind": k, "strength": 1.0} for k in ("filter", "channel", "kernel", "l1")]
    regularizer = Regularizer(net(), penalties, INPUT)
    terms = [(term, 1.0) for term in regularizer.terms]
    stages = disjoint_stages(terms, regularizer.parameters())
    assert len(stages) == 4
    for stage in stages:
        touched = [name for term, _ in stage for name in term.parameters()]
        assert len(touched) == len(set(touched))
    flat = [term.name for stage in stages for term, _ in stage]
    for parameter in dict(net().named_parameters()):
        order = [t.name for t, _ in terms if parameter in t.parameters()]
        assert [name for name in flat if name in order] == order


def test_rates_of_parameter_groups() -> None:
    model = net()
    before = copies(model)
    groups = [
        {"params": [*model.conv1.parameters(), *model.bn1.parameters()], "lr": 0.25},
        {"params": list(model.conv2.parameters()), "lr": 0.0},
        {"params": list(model.fc.parameters()), "lr": 0.5, "momentum": 0.5},
    ]
    penalties = [
        {"kind": "channel", "strength": 1.0, "scaling": "none"},
        {"kind": "neuron_in", "strength": 1.0, "scaling": "none"},
    ]
    Regularizer(model, penalties).proximal_step_(SGD(groups, lr=9.0))
    after = copies(model)
    torch.testing.assert_close(
        after["conv1.weight"], prox_group_lasso(before["conv1.weight"], (1,), 0.25)
    )
    torch.testing.assert_close(after["conv2.weight"], before["conv2.weight"])
    torch.testing.assert_close(after["fc.weight"], prox_group_lasso(before["fc.weight"], (1,), 1.0))


def test_members_with_different_rates_solve_the_problem_in_their_metric() -> None:
    model = nn.Linear(2, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
        model.bias.fill_(2.0)
    before = copies(model)
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 1.0}]
    penalty = {"kind": "neuron_out", "strength": 1.0, "scaling": "none"}
    Regularizer(model, [penalty]).proximal_step_(SGD(groups))
    w, b = model.weight.detach(), model.bias.detach()
    n = math.sqrt(float(w.square().sum() + b.square().sum()))
    torch.testing.assert_close((w - before["weight"]) / 0.1 + w / n, torch.zeros_like(w))
    torch.testing.assert_close(b - before["bias"] + b / n, torch.zeros_like(b))


def test_a_rate_of_zero_changes_nothing() -> None:
    for optimizer in (SGD, Adam):
        model = net()
        before = copies(model)
        made = optimizer(model.parameters(), lr=0.0)
        model(torch.randn(2, 2, 8, 8)).sum().backward()
        made.step()
        penalties = [{"kind": "filter", "strength": 1.0}, {"kind": "l1", "strength": 1.0}]
        Regularizer(model, penalties, INPUT).proximal_step_(made)
        for name, tensor in copies(model).items():
            torch.testing.assert_close(tensor, before[name], msg=name)


def test_subgradient_is_that_of_the_value() -> None:
    model = net()
    penalties = [
        {"kind": "filter", "layers": "conv1", "strength": 0.5, "mode": "subgradient"},
        {"kind": "channel", "strength": 0.25, "mode": "subgradient"},
        {"kind": "l1", "strength": 0.125, "mode": "subgradient"},
        {"kind": "kernel", "strength": 9.0},
    ]
    regularizer = Regularizer(model, penalties, INPUT)
    parameters = dict(model.named_parameters())
    total = torch.zeros(())
    for term in regularizer.terms:
        if term.penalty.mode == "subgradient":
            total = total + term.strength * group_norms(term.group_set, parameters).sum()
    total.backward()
    expected = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
    for name, parameter in parameters.items():
        parameter.grad = torch.ones_like(parameter) if name != "fc.bias" else None
    regularizer.add_subgradient_()
    for name in expected:
        torch.testing.assert_close(parameters[name].grad, expected[name] + 1, msg=name)
    assert parameters["fc.bias"].grad is None


def test_frozen_members_leave_their_groups_alone() -> None:
    model = net()
    model.bn1.requires_grad_(False)
    model.fc.requires_grad_(False)
    penalties = [{"kind": k, "strength": 1.0} for k in ("filter", "neuron_in", "channel")]
    regularizer = Regularizer(model, penalties, INPUT)
    before, optimizer = copies(model), sgd(model)
    assert regularizer.untrained(optimizer) == {
        "fc:neuron_in": ["fc.weight"],
        "conv1:filter": ["bn1.weight", "bn1.bias"],
    }
    regularizer.proximal_step_(optimizer)
    after = copies(model)
    for name in ("bn1.weight", "bn1.bias", "fc.weight", "conv1.bias"):
        assert torch.equal(after[name], before[name])
    assert not torch.equal(after["conv2.weight"], before["conv2.weight"])
    torch.testing.assert_close(
        after["conv1.weight"], prox_group_lasso(before["conv1.weight"], (1,), 0.5 * 6)
    )
    model.requires_grad_(True)
    assert regularizer.untrained(optimizer) == {}


def test_optimizers_that_hold_too_little_are_refused() -> None:
    model = net()
    regularizer = Regularizer(model, [{"kind": "filter", "strength": 1.0}], INPUT)
    before = copies(model)
    with pytest.raises(ValueError, match="holds none of the penalised parameters"):
        regularizer.proximal_step_(sgd(model.fc))
    with pytest.raises(ValueError, match=r"does not hold bn1\.weight, bn1\.bias"):
        regularizer.proximal_step_(sgd(model.conv1))
    assert all(torch.equal(before[n], p) for n, p in copies(model).items())
    regularizer.proximal_step_(sgd(model.conv2))
    after = copies(model)
    assert [n for n in after if not torch.equal(after[n], before[n])] == ["conv2.weight"]


def test_replaced_parameters_and_layouts_are_followed() -> None:
    model = net()
    regularizer = Regularizer(model, [{"kind": "channel", "strength": 1.0}])
    model.to(memory_format=torch.channels_last).double()
    model.conv1 = nn.Conv2d(2, 4, 3).double()
    model.conv2.weight = nn.Parameter(torch.randn_like(model.conv2.weight))
    before = copies(model)
    regularizer.proximal_step_(sgd(model, lr=0.01))
    after = copies(model)
    for name, groups in (("conv1.weight", 1), ("conv2.weight", 2)):
        o, i, *space = before[name].shape
        split = before[name].contiguous().view(groups, o // groups, i, *space)
        size = o // groups * math.prod(space)
        expected = prox_group_lasso(split, (0, 2), 0.01 * math.sqrt(size))
        torch.testing.assert_close(after[name].contiguous().view(split.shape), expected)


def test_a_shared_parameter_is_found_under_each_name() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    before = model[0].weight.detach().clone()
    penalty = {"kind": "neuron_in", "layers": "1", "strength": 1.0, "scaling": "none"}
    Regularizer(model, [penalty]).proximal_step_(sgd(model, lr=0.1))
    torch.testing.assert_close(model[0].weight.detach(), prox_group_lasso(before, (1,), 0.1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_half_precision_parameters(dtype: torch.dtype, optimizer: Any) -> None:
    model = nn.Linear(8, 6).to(dtype)
    penalties = [{"kind": "neuron_out", "strength": 0.5}, {"kind": "l1", "strength": 0.01}]
    regularizer = Regularizer(model, penalties)
    made = optimizer(model.parameters(), lr=0.05)
    for _ in range(40):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-2)
        made.step()
        regularizer.proximal_step_(made)
    assert model.weight.dtype == dtype
    assert not bool(model.weight.any())
    assert not bool(model.bias.any())


def test_schedule_switches_penalties() -> None:
    model = net()
    schedule = {"kind": "window", "start": 1, "end": 2}
    penalties = [{"kind": "channel", "strength": 1.0, "schedule": schedule}]
    regularizer = Regularizer(model, penalties)
    before = copies(model)
    for epoch in (0.0, 0.999, 2.0):
        regularizer.proximal_step_(sgd(model), epoch)
    assert all(torch.equal(before[n], p) for n, p in copies(model).items())
    regularizer.proximal_step_(sgd(model), 1.5)
    assert not torch.equal(model.conv1.weight, before["conv1.weight"])


@pytest.mark.parametrize(
    ("schedule", "max_epochs"),
    [
        ({"kind": "window", "start": 3, "end": 3}, 10),
        ({"kind": "cosine", "first": 0, "last": 0}, None),
        ({"kind": "ramp", "start": 10, "end": 20}, 10),
        ({"kind": "constant", "start": 5}, 5),
        ({"kind": "ramp", "end": math.inf}, -1),
    ],
)
def test_penalties_that_never_act_are_refused(schedule: dict[str, Any], max_epochs: Any) -> None:
    penalties = [{"kind": "channel", "strength": 1.0}]
    penalties += [{"kind": "l1", "strength": 1.0, "schedule": schedule}]
    regularizer = Regularizer(net(), penalties)
    with pytest.raises(ValueError, match=r"penalties\[1\] \(l1 on '\*'\): its schedule .* is 0"):
        regularizer.check_active(max_epochs)


def test_penalties_that_act_late_are_accepted() -> None:
    late = {"kind": "constant", "start": 5}
    regularizer = Regularizer(net(), [{"kind": "channel", "strength": 1.0, "schedule": late}])
    for max_epochs in (6, 5.5, None, -1, math.inf):
        regularizer.check_active(max_epochs)


@pytest.mark.parametrize(
    ("penalties", "message"),
    [
        ([{"kind": "l1", "strength": 1.0}, {"kind": "filter", "strength": 0}],
         r"penalties\[1\] \(filter on '\*'\): its strength is 0 everywhere"),
        ([{"kind": "filter", "layers": "x", "strength": 1.0}], "Layers that have: conv1, conv2"),
        ([{"kind": "l1", "layers": "x", "strength": 1.0}], "that have: conv1, conv2, fc"),
        ([{"kind": "l1", "layers": ["fc", "bn1"], "strength": 1.0}], "pattern 'bn1' matches no"),
        ([{"kind": "filter", "strength": 1.0},
          {"kind": "filter", "strength": 1.0, "members": "weight"}], "are selected twice"),
    ],
)  # fmt: skip
def test_errors(penalties: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regularizer(net(), penalties, INPUT)


def test_scales_act_from_the_next_step_on_and_are_stored() -> None:
    penalties = [{"kind": "channel", "strength": 1.0}, {"kind": "l1", "strength": 0.5}]
    model = net()
    regularizer = Regularizer(model, penalties)
    strengths, values = regularizer.strengths(), regularizer.values()
    assert regularizer.scales == (1.0, 1.0)
    assert regularizer.state_dict() == {"scales": [1.0, 1.0]}
    regularizer.scales = [0.5, 0]
    for name, strength in regularizer.strengths().items():
        factor = 0.0 if name.endswith("l1") else 0.5
        assert strength == pytest.approx(factor * strengths[name])
    found = regularizer.values()
    assert float(found["channel"]) == pytest.approx(0.5 * float(values["channel"]))
    assert float(found["l1"]) == 0.0
    before = copies(model)
    regularizer.proximal_step_(sgd(model, lr=0.1))
    other = net()
    halved = [{"kind": "channel", "strength": 0.5}]
    Regularizer(other, halved).proximal_step_(sgd(other, lr=0.1))
    assert not torch.equal(model.conv1.weight, before["conv1.weight"])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    again = Regularizer(net(), penalties)
    again.load_state_dict(regularizer.state_dict())
    assert again.scales == (0.5, 0.0)


@pytest.mark.parametrize(
    "bad",
    [[1.0], [1.0, -1.0], [1.0, math.nan], [math.inf, 1.0], [True, 1.0], ["1", 1.0], 1.0, None],
)
def test_bad_scales_change_nothing(bad: Any) -> None:
    regularizer = Regularizer(net(), [{"kind": "channel", "strength": 1.0}] * 2)
    regularizer.scales = [2.0, 3.0]
    with pytest.raises(ValueError, match="expected 2 finite numbers >= 0, one per penalty"):
        regularizer.scales = bad
    with pytest.raises(ValueError, match="expected 2 finite numbers"):
        regularizer.load_state_dict({"scales": bad})
    with pytest.raises(ValueError, match="expected a mapping with `scales`"):
        regularizer.load_state_dict(bad)
    assert regularizer.scales == (2.0, 3.0)


def test_modes() -> None:
    assert Regularizer(net(), [Penalty(1.0, kind="l1")]).has_mode("proximal")
    assert not Regularizer(net(), [Penalty(1.0, kind="l1")]).has_mode("subgradient")
    Regularizer(net(), []).proximal_step_(sgd(net()))
