"""Groups, penalties and costs of networks and loops that are built in other ways."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from ssl_lightning import (
    GroupLocks,
    Regularizer,
    compact,
    count_macs,
    create_backbone,
    factorise,
    group_lasso,
    make_plan,
    prox_group_lasso,
    prune_,
    resolve_groups,
    sensitivity,
)
from ssl_lightning.costs import Costs, parse_targets
from ssl_lightning.costs.shapes import profile
from ssl_lightning.graph import Inputs
from ssl_lightning.groups import group_norms
from ssl_lightning.groups.selectors import Selector
from ssl_lightning.measure.left import MacsLeft
from ssl_lightning.penalties.functional import group_lasso_subgradient
from ssl_lightning.prune import taylor
from ssl_lightning.steps import idle_parameters

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", GATES)
def test_recurrent_layers_cost_the_products_of_their_gates(kind, dtype):
    layer = getattr(nn, kind)(6, 8, batch_first=True, dtype=dtype)
    before = torch.backends.mkldnn.enabled
    assert count_macs(layer, torch.zeros(3, 5, 6, dtype=dtype)) == 3 * 5 * GATES[kind] * 8 * (6 + 8)
    assert torch.backends.mkldnn.enabled == before


def test_a_matrix_times_a_vector_is_counted():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 4))

        def forward(self, x):
            return self.weight @ x[0]

    assert count_macs(Product(), torch.zeros(1, 4)) == 12


def test_a_network_that_costs_nothing_has_no_share():
    net = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match=r"none are counted. Give another target"):
        Costs(parse_targets("Budget", {"macs": 0.5}), net, torch.zeros(1, 3, 4, 4))


def test_weights_without_single_elements_are_named():
    """Recurrent layers hold weights of other names."""
    net = nn.Sequential(nn.GRU(3, 4))
    net.append(nn.Linear(4, 2))
    with pytest.warns(UserWarning, match="0.weight_ih_l0 and 1 more are not penalised"):
        Regularizer(net, [{"kind": "l1", "strength": 0.1}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Regularizer(net, [{"kind": "l1", "layers": "1", "strength": 0.1}])
    flat = nn.Sequential(nn.GRU(3, 4), Last(), nn.Linear(4, 2))
    report = prune_(flat, torch.zeros(1, 5, 3), kind="element", fraction=0.5)
    assert report.total == (4, 8)
    assert {"0.weight_ih_l0", "0.weight_hh_l0"} <= set(report.retained)


class Last(nn.Module):
    def forward(self, x):
        return x[0][:, -1]


# --- locks of parts of parameters -----


def grouped():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten()
    )


@pytest.mark.parametrize("kind", ["filter", "channel", "shape", "kernel"])
def test_locks_of_grouped_convolutions_are_stored_and_read(kind):
    net = grouped()
    shapes = {name: p.shape for name, p in net.named_parameters()}
    for group_set in resolve_groups(net, [kind], torch.zeros(1, 4, 6, 6)):
        locks, again = GroupLocks(), GroupLocks()
        mask = torch.arange(group_set.num_groups) % 2 == 0
        locks.lock(group_set, mask)
        again.load_state_dict(locks.state_dict(), shapes)
        assert torch.equal(again.mask(group_set), mask)
        other = {**shapes, "0.weight": (8, 3, 3, 3), "2.weight": (5, 8, 1, 1)}
        with pytest.raises(ValueError, match=r"expected '[02].weight' with the shape"):
            again.load_state_dict(locks.state_dict(), other)


@pytest.mark.parametrize("affine", [False, True])
def test_locks_hold_norms_that_have_buffers_only(affine):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine), nn.Conv2d(4, 2, 3))
    x = torch.randn(2, 3, 8, 8)
    (first, *_) = resolve_groups(net, [{"kind": "filter", "layers": "0"}], x)
    sgd, locks = SGD(net.parameters(), lr=0.1), GroupLocks()
    regularizer = Regularizer(net, [{"kind": "filter", "layers": "0", "strength": 1e-6}], x)
    regularizer.attach(sgd, locks=locks)
    locks.lock(first, torch.tensor([True, False, False, False]))
    for _ in range(3):
        sgd.zero_grad()
        net(x).square().mean().backward()
        sgd.step()
    assert not net[0].weight[0].any()
    assert net[0].weight[1].any()


# --- inference mode -----


def test_inference_mode_changes_no_answer():
    torch.manual_seed(0)
    x = torch.zeros(1, 1, 28, 28)
    outside, inside = (create_backbone("lenet") for _ in range(2))
    inside.load_state_dict(outside.state_dict())
    expected = prune_(outside, x, macs=0.5)
    with torch.inference_mode():
        found = prune_(inside, torch.zeros(1, 1, 28, 28), macs=0.5)
        assert found.macs == expected.macs
        assert found.total == expected.total
        left, plan = MacsLeft(x)(inside), make_plan(inside, x)
        small = compact(inside, plan)
    assert left == MacsLeft(x)(outside)
    assert plan.to_json() == make_plan(outside, x).to_json()
    small(x).sum().backward()  # its parameters can be trained
    rows = [
        sensitivity(n, x, lambda net: float(net.conv1.weight.detach().sum())).macs
        for n in (outside,)
    ]
    with torch.inference_mode():
        y = torch.ones(1, 10)
        rows += [sensitivity(outside, x, lambda net: float((net(x) - y).square().mean())).macs]
    assert rows[0] == rows[1] > 0


def test_whether_gradients_are_taken_is_left_to_the_caller():
    seen = []

    def evaluate(net):
        seen.append(torch.is_grad_enabled())
        return 0.0

    net, x = create_backbone("lenet"), torch.zeros(1, 1, 28, 28)
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            sensitivity(net, x, evaluate, shares=[0.5])
        assert set(seen) == {mode is torch.enable_grad}
        seen.clear()


# --- what a step does not reach -----


class Experts(nn.Module):
    """One of two layers is used."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.used = nn.Linear(3, 4), nn.Linear(3, 4), "a"

    def forward(self, x):
        return getattr(self, self.used)(x)


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_layers_without_gradients_are_not_shrunk(optimizer):
    torch.manual_seed(0)
    net = Experts()
    made = optimizer(net.parameters(), lr=0.01)
    penalties = [{"kind": "neuron_out", "layers": ["a", "b"], "strength": 1.0}]
    Regularizer(net, penalties, torch.zeros(1, 3)).attach(made)
    for net.used in ("a", "b", "b", "b"):
        before = copy.deepcopy(net.state_dict())
        made.zero_grad()
        net(torch.ones(1, 3)).sum().backward()
        made.step()
        other = {"a": "b", "b": "a"}[net.used]
        assert torch.equal(before[f"{other}.weight"], net.get_parameter(f"{other}.weight"))
        assert not torch.equal(before[f"{net.used}.weight"], getattr(net, net.used).weight)


def test_cleared_gradients_are_no_idle_layers():
    weight = nn.Parameter(torch.ones(2))
    sgd = SGD([weight], lr=0.5)
    weight.sum().backward()
    sgd.step()
    sgd.zero_grad()
    assert idle_parameters(sgd, {"w": weight}) == set()


class Skipped(nn.Module):
    """Residual blocks of which one is skipped."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.a, self.b, self.skip = nn.Linear(8, 8), nn.Linear(8, 8), ""

    def forward(self, x):
        x = self.stem(x)
        for name in "ab":
            x = x if name == self.skip else x + getattr(self, name)(x)
        return self.head(x)


def test_groups_over_layers_are_shrunk_though_one_was_skipped():
    torch.manual_seed(0)
    net = Skipped()
    sgd = SGD(net.parameters(), lr=1e-9)
    (group_set,) = resolve_groups(net, ["coupled"], torch.zeros(1, 4))
    Regularizer(net, [{"kind": "coupled", "strength": 1e7}], torch.zeros(1, 4)).attach(sgd)
    for net.skip in ("a", "b"):
        before = group_norms(group_set, dict(net.named_parameters())).detach()
        sgd.zero_grad()
        net(torch.ones(1, 4)).sum().backward()
        sgd.step()
        after = group_norms(group_set, dict(net.named_parameters())).detach()
        assert (after < 0.99 * before).all()


# --- weights that layers share -----


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


@pytest.mark.parametrize("mode", ["proximal", "subgradient"])
def test_shared_weights_are_penalised_once(mode):
    net = Tied()
    nn.init.ones_(net.head.weight)
    sgd = SGD(net.parameters(), lr=1.0)
    regularizer = Regularizer(net, [{"kind": "l1", "strength": 0.1, "mode": mode}])
    assert regularizer.values()["l1"].item() == pytest.approx(0.1 * 24)
    regularizer.attach(sgd)
    (net(torch.zeros(1, dtype=torch.int64)) * 0).sum().backward()
    sgd.step()
    assert torch.allclose(net.head.weight, torch.full((6, 4), 0.9))
    assert prune_(net, torch.zeros(1, 1, dtype=torch.int64), kind="element",
                  fraction=0.5).total == (12, 24)  # fmt: skip


def test_several_kinds_shrink_shared_rows_one_after_the_other():
    """Two layers share rows; each has a bias of its own, so that their groups differ."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    with torch.no_grad():
        net[0].bias.zero_(), net[2].bias.zero_()
    norms = net[0].weight.detach().norm(dim=1)
    regularizer = Regularizer(net, [{"kind": "neuron_out", "strength": 0.05}])
    strength = regularizer.terms[0].strength
    regularizer.proximal_step_(SGD(net.parameters(), lr=1.0))
    expected = (norms - 2 * strength).clamp_min(0)
    assert torch.allclose(net[0].weight.norm(dim=1), expected, atol=1e-6)


def test_layers_that_share_a_weight_keep_norms_of_their_own():
    """Zeroed filters need both norms' shifts to be zero."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.n1, self.n2, self.fc = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 2)
            self.b.weight = self.a.weight

        def forward(self, x):
            x = torch.relu(self.n1(self.a(x))) + torch.relu(self.n2(self.b(x)))
            return self.fc(x.mean((2, 3)))

    net, x = Twice(), torch.zeros(1, 3, 4, 4)
    nn.init.ones_(net.n1.bias), nn.init.ones_(net.n2.bias)
    groups = {"kind": "filter", "members": "weight", "layers": ["a", "b"]}
    prune_(net, x, groups=groups, fraction=0.5)
    gone = ~net.a.weight.flatten(1).any(1)
    assert gone.sum() == 2
    assert not net.n1.bias[gone].any()
    assert not net.n2.bias[gone].any()


# --- functions on tensors -----


@pytest.mark.parametrize("dims", [(0,), (1,), (0, 1), (1, 2, 3), (-3,), ()])
def test_zero_groups_have_the_gradient_zero(dims):
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3)
    weight[:, 0] = 0
    weight[1] = 0
    weight.requires_grad_()
    group_lasso(weight, dims).backward()
    expected = group_lasso_subgradient(weight.detach(), dims)
    assert torch.allclose(weight.grad, expected, atol=1e-6)


@pytest.mark.parametrize("dims", [(-3,), (5,), (0, 0), (0, -2)])
def test_dimensions_that_a_tensor_does_not_have_are_refused(dims):
    weight = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    for call in (group_lasso, lambda w, d: prox_group_lasso(w, d, 1.0)):
        with pytest.raises(ValueError, match="different dimensions of a tensor of the shape"):
            call(weight, dims)
    assert group_lasso(weight, (-1,)).item() == pytest.approx(3 + math.sqrt(41))


@pytest.mark.parametrize("threshold", [1e-46, 1e-320, 1e-30])
def test_a_vanishing_threshold_leaves_zeros_alone(threshold):
    weight = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert torch.equal(prox_group_lasso(weight, (0,), threshold), weight)


# --- arguments of other forms -----


@pytest.mark.parametrize(
    "groups", ["filter", ["filter"], {"kind": "filter"}, Selector("filter"), [Selector("filter")]]
)
def test_groups_are_given_in_several_forms(groups):
    net, x = create_backbone("lenet"), torch.zeros(1, 1, 28, 28)
    assert [s.kind for s in resolve_groups(net, groups, x)] == ["filter", "filter"]
    assert prune_(net, x, groups=groups, fraction=0.5).total == (35, 70)


def test_groups_that_are_none_are_refused():
    net, x = create_backbone("lenet"), torch.zeros(1, 1, 28, 28)
    with pytest.raises(ValueError, match="expected a kind, such as 'filter', or a mapping"):
        prune_(net, x, groups=[3], fraction=0.5)
    with pytest.raises(ValueError, match="filtre"):
        prune_(net, x, groups="filtre", fraction=0.5)


def test_groups_of_another_width_are_refused():
    net, x = create_backbone("lenet"), torch.zeros(1, 1, 28, 28)
    sets = resolve_groups(net, ["filter"], x)
    prune_(net, x, groups=sets, fraction=0.5)
    small = compact(net, make_plan(net, x))
    with pytest.raises(ValueError, match=r"can be viewed as .* Resolve the groups on this model"):
        prune_(small, x, groups=sets, fraction=0.5)


def test_layers_called_by_keyword_are_profiled():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(input=x)

    assert sum(profile(Named(), Inputs(torch.zeros(1, 3, 8, 8))).layers.values()) == 1


@pytest.mark.parametrize("method", ["svd", "tucker", "cp"])
def test_empty_layers_have_factors(method):
    pytest.importorskip("tensorly")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    nn.init.zeros_(net[2].weight)
    x = torch.randn(1, 8, 6, 6)
    small = factorise(net, x, macs=0.5, method=method)[0]
    bias = net[2].bias.view(1, -1, 1, 1).expand(1, 8, 6, 6)
    assert torch.allclose(small(x), bias, atol=1e-6)


class Lazy(nn.Module):
    """Makes a buffer when it is run first."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        if not hasattr(self, "position") and not torch.compiler.is_exporting():
            self.register_buffer("position", torch.ones(6))
        return self.b(torch.relu(self.a(x)))


def test_taylor_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.Flatten(),
        nn.Linear(6 * 36, 3),
    )  # fmt: skip
    before, drawn = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    batches = [(torch.randn(4, 1, 8, 8), torch.arange(4) % 3)] * 2

    def loss(net, batch):
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    drawn = torch.get_rng_state()
    assert taylor(net, torch.zeros(1, 1, 8, 8), loss, batches)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    lazy = Lazy()
    assert taylor(lazy, torch.zeros(1, 4), lambda n, b: n(b).sum(), [torch.ones(2, 4)])
    assert lazy.position is not None
    with pytest.raises(ValueError, match="expected finite gradients, got none in 2 batches"):
        taylor(net, torch.zeros(1, 1, 8, 8), lambda n, b: loss(n, b) * math.nan, batches)
