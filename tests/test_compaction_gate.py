"""A plan holds at other sizes, in train mode, in the network's precision, for any inputs."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nets_with_zeros import assert_same, randomise_
from ssl_lightning import Inputs, compact, count_macs, make_plan, prune_, resolve_groups
from ssl_lightning.compaction import Plan


def zero_behind_a_shift_(conv, norm, count=3):
    """Zero filters in front of a shift, which makes their channels constant but not zero."""
    with torch.no_grad():
        conv.weight[:count] = 0
        norm.bias.fill_(1.0)


class Sized(nn.Module):
    """A network whose code does something else at some sizes."""

    def __init__(self, other, when):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head, self.second = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)
        self.other, self.when = other, when

    def forward(self, x):
        y = F.relu(self.norm(self.conv(x)))
        if self.when(y):
            y = self.other(self, y)
            return y if y.shape[1] == 2 else self.head(F.avg_pool2d(y, 2))
        return self.head(F.avg_pool2d(y, 2))


PATHS = {
    "pads_odd_sizes": (lambda net, y: F.pad(y, (0, 1, 0, 1)), lambda y: y.shape[-1] % 2),
    "pads_to_eight": (
        lambda net, y: F.pad(y, (0, -y.shape[-1] % 8, 0, -y.shape[-2] % 8)),
        lambda y: y.shape[-1] % 8 or y.shape[-2] % 8,
    ),
    "pads_small_ones": (lambda net, y: F.pad(y, (1, 1, 1, 1)), lambda y: y.shape[-1] < 10),
    "pads_what_is_not_square": (
        lambda net, y: F.pad(y, (0, 2)), lambda y: y.shape[-1] != y.shape[-2],
    ),
    "pads_large_ones": (lambda net, y: F.pad(y, (1, 1, 1, 1)), lambda y: y.shape[-1] > 20),
    "pads_much_larger_ones": (
        lambda net, y: F.pad(y, (1, 1, 1, 1)), lambda y: y.shape[-1] > 50 or y.shape[2] // 2 > 40,
    ),
    "pads_much_larger_areas": (
        lambda net, y: F.pad(y, (1, 1, 1, 1)), lambda y: y.shape[-1] * y.shape[-2] > 4000,
    ),
    "pads_much_larger_batches": (
        lambda net, y: F.pad(y, (1, 1, 1, 1)), lambda y: y.size(0) * 2 >= 21,
    ),
    "pads_batches": (lambda net, y: F.pad(y, (1, 1, 1, 1)), lambda y: y.shape[0] > 1),
    "pads_large_batches": (lambda net, y: F.pad(y, (1, 1, 1, 1)), lambda y: y.shape[0] > 2),
    "reads_with_another_layer": (lambda net, y: net.second(y), lambda y: y.shape[-1] % 2),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_other_paths_at_other_sizes(path):
    net = randomise_(Sized(*PATHS[path])).eval()
    zero_behind_a_shift_(net.conv, net.norm)
    small = compact(net, make_plan(net, torch.zeros(1, 3, 16, 16)))
    shapes = [(1, 16, 16), (2, 16, 16), (1, 17, 17), (2, 9, 12), (3, 8, 8), (1, 40, 33)]
    for shape in (*shapes, (1, 60, 72), (1, 90, 20), (16, 8, 8)):
        x = torch.randn(shape[0], 3, *shape[1:])
        assert_same(net, small, x, tolerance=1e-5)


def test_always_padded_by_an_amount_that_is_none_at_the_examples_size():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
            self.head = nn.Conv2d(8, 2, 2, stride=2)

        def forward(self, x):
            y = self.norm(self.conv(x))
            return self.head(F.pad(y, (0, y.shape[-1] % 2, 0, y.shape[-2] % 2)))

    net = randomise_(Net()).eval()
    zero_behind_a_shift_(net.conv, net.norm)
    small = compact(net, make_plan(net, torch.zeros(1, 3, 8, 8)))
    for size in (8, 9, 15):
        assert_same(net, small, torch.randn(2, 3, size, size), tolerance=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_another_path_for_batches_larger_than_the_example(batch):
    net = randomise_(Sized(lambda net, y: y + 1, lambda y: y.shape[0] > batch)).eval()
    zero_behind_a_shift_(net.conv, net.norm)
    small = compact(net, make_plan(net, torch.zeros(batch, 3, 16, 16)))
    for count in (1, batch, batch + 1, 3 * batch):
        assert_same(net, small, torch.randn(count, 3, 16, 16), tolerance=1e-5)


class Resized(nn.Module):
    """A map of its own, added as it is or resized."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.map = nn.Parameter(torch.randn(1, 8, 16, 16))

    def forward(self, x):
        y, other = self.conv(x), self.map
        if y.shape[-2:] != other.shape[-2:]:
            other = F.interpolate(other, y.shape[-2:], mode="bicubic")
        return self.head(F.relu(y + other))


def test_a_stored_map_that_is_resized_on_another_path():
    net = randomise_(Resized()).eval()
    prune_(net, torch.zeros(1, 3, 16, 16), fraction=0.5)
    small = compact(net, make_plan(net, torch.zeros(1, 3, 16, 16)))
    assert small.map.shape == (1, 4, 16, 16)
    for size in (16, 8, 21):
        assert_same(net, small, torch.randn(2, 3, size, size), tolerance=1e-5)


class Tokens(nn.Module):
    """Positions are looked up by stored indices."""

    def __init__(self):
        super().__init__()
        self.table, self.places = nn.Embedding(9, 4), nn.Embedding(8, 4)
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 4)
        self.register_buffer("index", torch.arange(8)[None])

    def forward(self, tokens):
        y = self.table(tokens) + self.places(self.index)
        return self.down(torch.sigmoid(self.up(y)) * self.up(y))


def test_a_network_that_fails_without_a_word_is_named():
    class Silent(nn.Module):
        def forward(self, x):
            raise AssertionError

    with pytest.raises(ValueError, match=r"Cannot run Silent on .*: AssertionError"):
        make_plan(Silent(), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"Cannot run Silent .*: AssertionError\. Check"):
        prune_(Silent(), torch.zeros(1, 3), fraction=0.5)


def test_stored_indices_stay():
    net, tokens = randomise_(Tokens()).eval(), torch.randint(9, (2, 8))
    prune_(net, tokens, fraction=0.5)
    small = compact(net, make_plan(net, tokens))
    assert small.up.out_features == 8
    assert torch.equal(small.index, net.index)
    assert_same(net, small, tokens, tolerance=1e-5)


class Noisy(nn.Module):
    """Noise in train mode only, or always."""

    def __init__(self, always):
        super().__init__()
        self.conv, self.head, self.always = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), always

    def forward(self, x):
        y = F.relu(self.conv(x))
        if self.training or self.always:
            y = y + 0.1 * torch.randn_like(y) + torch.rand(y.shape)
        return self.head(y)


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.filterwarnings("ignore:prune_. Noisy has no")
def test_random_generators_are_left_as_they_were(always):
    net = Noisy(always).eval()
    before = torch.get_rng_state()
    prune_(net, torch.zeros(1, 3, 8, 8), fraction=0.5)
    make_plan(net, torch.zeros(1, 3, 8, 8))
    resolve_groups(net, [{"kind": "filter"}], torch.zeros(1, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_constants_are_folded_where_all_paths_allow_it():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )
    randomise_(net).eval()
    zero_behind_a_shift_(net[0], net[1])
    plan = make_plan(net, torch.zeros(1, 3, 16, 16))
    assert len(plan.modules["3"].folded) == 3
    assert plan.notes == ()


def test_a_size_that_the_network_refuses_is_named():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        net[1].weight[:3], net[1].bias[:3] = 0, 0
    plan = make_plan(net, torch.zeros(1, 3, 4, 4))
    assert "refuses" in plan.explain()
    assert "(2, 3, 5, 7)" in plan.explain()
    assert "other sizes" in plan.explain()


def test_lengths_of_tokens():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.up, self.down = nn.Embedding(9, 4), nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, tokens):
            y = F.relu(self.up(self.table(tokens)))
            return self.down(y if tokens.shape[1] % 4 == 0 else F.pad(y, (0, 0, 0, 1))).mean(1)

    net = randomise_(Net()).eval()
    with torch.no_grad():
        net.up.weight[:3], net.up.bias[:3] = 0, 1.0
    small = compact(net, make_plan(net, torch.zeros(1, 8, dtype=torch.long)))
    for length in (8, 7, 3):
        assert_same(net, small, torch.randint(9, (2, length)), tolerance=1e-5)


class Deep(nn.Module):
    """Heads that only train mode runs, in several ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.main, self.aux = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 2, 1)
        self.weight = nn.Parameter(torch.randn(5, 16))

    def forward(self, x):
        y = self.body(x)
        if not self.training:
            return self.main(y)
        if self.way == "a layer":
            return self.main(y), self.aux(y)
        if self.way == "a parameter":
            return self.main(y), F.linear(y.mean((2, 3)), self.weight)
        if self.way == "the features":
            return {"out": self.main(y), "features": y}
        return self.main(y), self.aux(y.view(len(y), 16, -1, 1))


@pytest.mark.parametrize("way", ["a layer", "a parameter", "the features", "a fixed width"])
def test_what_only_train_mode_runs(way):
    net, x = Deep(way).eval(), torch.randn(2, 3, 8, 8)
    prune_(net, x, fraction=0.5)
    small = compact(net, make_plan(net, x))
    assert_same(net, small, x, tolerance=1e-5)
    small.train(), net.train()
    expected = torch.utils._pytree.tree_leaves(net(x))
    found = torch.utils._pytree.tree_leaves(small(x))
    assert [a.shape for a in found] == [a.shape for a in expected]
    sum(a.sum() for a in found).backward()
    torch.optim.SGD(small.parameters(), 0.01).step()
    if way == "a layer":
        assert small.aux.in_channels == 8


class Grid(nn.Module):
    """Caches on itself, as detectors do."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU())
        self.box = nn.Conv2d(16, 2, 1)
        self.shape = self.last = None

    def forward(self, x):
        y = self.box(self.body(x))
        if self.shape != y.shape[-2:]:
            h, w = self.shape = y.shape[-2:]
            self.grid = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
        self.last = y
        return y + self.grid


@pytest.mark.parametrize("ran_before", [False, True])
def test_the_model_is_not_touched(ran_before):
    net, x = Grid().train(), torch.randn(1, 3, 8, 8)
    net.box.eval()
    seen = []
    net.box.register_forward_hook(lambda *_: seen.append(1))
    if ran_before:
        net(x).sum().backward()

    def state():
        torch.manual_seed(0), random.seed(0)
        return {
            "attributes": {n: set(vars(m)) for n, m in net.named_modules()},
            "caches": (id(net.last), id(net.__dict__.get("grid")), net.shape, len(seen)),
            "modes": {n: m.training for n, m in net.named_modules()},
            "hooks": {n: len(m._forward_hooks) for n, m in net.named_modules()},
            "buffers": {n: b.clone() for n, b in net.named_buffers()},
        }

    before = state()
    torch.manual_seed(0), random.seed(0)
    prune_(net, x, fraction=0.5)
    plan = make_plan(net, x)
    small = compact(net, plan)
    count_macs(net, x)
    drawn = torch.rand(1), random.random()
    after = state()
    assert drawn == (torch.rand(1), random.random())
    for key in ("attributes", "caches", "modes", "hooks"):
        assert before[key] == after[key]
    for key, value in before["buffers"].items():
        assert torch.equal(value, after["buffers"][key])
    assert_same(net.eval(), small.eval(), x, tolerance=1e-5)


def test_hooks_of_the_compact_network_collect_where_the_models_do():
    net, x, seen = Grid().eval(), torch.randn(1, 3, 8, 8), []
    net.box.register_forward_hook(lambda *_: seen.append(1))
    prune_(net, x, fraction=0.5)
    small = compact(net, make_plan(net, x))
    assert seen == []
    small(x)
    assert seen == [1]


def test_a_failing_prune_changes_nothing():
    net = Grid()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="Cannot run"):
        prune_(net, torch.zeros(1, 4, 8, 8), fraction=0.5)
    assert set(vars(net)) == set(vars(Grid()))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


class Single(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class Complex(nn.Module):
    def forward(self, x):
        return torch.fft.ifft(torch.fft.fft(x.to(torch.complex64))).real.to(x.dtype)


class Lower(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return x.to(self.kind).square().to(x.dtype)


PRECISIONS = {
    "layer norm in float32": lambda: Single(16),
    "complex64": Complex,
    "half": lambda: Lower(torch.float16),
    "bfloat16": lambda: Lower(torch.bfloat16),
}


@pytest.mark.parametrize("name", PRECISIONS)
def test_lower_precision_in_forward(name):
    net = nn.Sequential(nn.Linear(6, 16), PRECISIONS[name](), nn.Linear(16, 32), nn.GELU())
    net.append(nn.Linear(32, 3))
    net, x = net.eval(), torch.randn(2, 6)
    prune_(net, x, fraction=0.4)
    plan = make_plan(net, x)
    assert "compared to" in plan.explain()
    assert plan.removed()
    assert_same(net, compact(net, plan), x, tolerance=1e-5)


def test_models_of_bfloat16_are_compared_in_float64():
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).bfloat16().eval()
    prune_(net, torch.randn(2, 6).bfloat16(), fraction=0.4)
    plan = make_plan(net, torch.randn(2, 6).bfloat16())
    assert plan.notes == ()
    assert compact(net, plan)[0].weight.dtype == torch.bfloat16


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 2, 1)

    def forward(self, batch, mask=None, scale=1.0):
        x = (
            batch["x"]
            if isinstance(batch, dict)
            else batch[0]
            if isinstance(batch, list)
            else batch
        )
        y = scale * self.o(torch.relu(self.a(x[0] if isinstance(x, tuple) else x)))
        return y if mask is None else y * mask


X = torch.randn(1, 3, 8, 8)


@pytest.mark.parametrize(
    "inputs",
    [
        X,
        [X],
        {"x": X},
        (X, None, 2.0),
        ({"x": (X, "name")},),
        (X, torch.ones(1, 1, 8, 8)),
        Inputs(X, scale=3.0),
        Inputs(batch={"x": X}, mask=torch.ones(8, 8)),
    ],
    ids=lambda given: type(given).__name__,
)
def test_inputs_that_are_not_tensors(inputs):
    net = Masked().eval()
    prune_(net, inputs, fraction=0.4)
    plan = make_plan(net, inputs)
    assert len(plan.modules["a"].outputs) < 16
    again = Plan.from_json(plan.to_json())
    assert again == plan
    small = compact(net, again)
    given = inputs if isinstance(inputs, (Inputs, tuple)) else (inputs,)
    given = given if isinstance(given, Inputs) else Inputs(*given)
    torch.testing.assert_close(given.run(small), given.run(net))
    assert count_macs(small, inputs) < count_macs(net, inputs)


def test_a_plan_of_tensors_is_written_as_before():
    net = nn.Linear(3, 2)
    text = make_plan(net, torch.zeros(1, 3)).to_json()
    assert "structure" not in text
    assert "checks" not in text


class OtherPathInBatches(nn.Module):
    """Code that asks for the length of a batch, which no tensor can tell us of."""

    def __init__(self, reshaped):
        super().__init__()
        self.conv, self.fc, self.reshaped = nn.Conv2d(1, 8, 1), nn.Linear(8 * 9, 4), reshaped

    def forward(self, x):
        h = self.conv(x)
        if len(x) > 4:
            h = h.view(-1, 8, 9).cos() if self.reshaped else h.cos()
        return self.fc(h.flatten(1))


@pytest.mark.parametrize("reshaped", [False, True], ids=["function", "size"])
def test_paths_of_larger_batches_are_tried(reshaped):
    net, x = OtherPathInBatches(reshaped).eval(), torch.zeros(1, 1, 3, 3)
    with torch.no_grad():
        net.conv.weight[4:], net.conv.bias[4:] = 0, 0
    small = compact(net, make_plan(net, x))
    batch = torch.randn(9, 1, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(small(batch), net(batch))


def test_what_changed_between_plan_and_compaction_is_seen():
    """No number but what both compute says that nothing changed: attributes, hooks, functions."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)
            self.shift = {"by": torch.zeros(3)}

        def forward(self, x):
            return self.b(self.a(x) + self.shift["by"])

    net, x = Scaled().eval(), torch.zeros(1, 4)
    with torch.no_grad():
        net.a.weight[2:], net.a.bias[2:] = 0, 0
    plan = make_plan(net, x)
    assert plan.removed()
    net.shift["by"][2] = 5.0
    with pytest.raises(ValueError, match="the plan does not fit"):
        compact(net, plan)
