"""Channels that are constant without being zero, and layers that skip what others keep."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nets_with_zeros import assert_same, check_equal, kept, randomise_, zero_, zero_randomly_
from ssl_lightning.backbones import create_backbone
from ssl_lightning.compaction import apply_plan, compact, load_compact, make_plan, save_compact
from ssl_lightning.compaction.modules import SubsetLayer, ZeroConv
from ssl_lightning.graph import Rule
from ssl_lightning.graph.operations import RULES, owned
from ssl_lightning.graph.rule import never
from ssl_lightning.groups import kept_groups
from ssl_lightning.measure import benchmark
from toy import Fn

X = torch.zeros(1, 4, 9, 9)


def conv(i, o, k=1, **kwargs):
    return nn.Conv2d(i, o, k, **kwargs)


def shifted(reader, **modules):
    """A convolution with two zero filters, a norm with random shifts, and what reads it."""

    def forward(m, x):
        return reader(m, F.elu(m.n(m.a(x))))

    net = randomise_(Fn(forward, a=conv(4, 8), n=nn.BatchNorm2d(8), **modules))
    zero_(net.a, [0, 5])
    return net.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kwargs", [
    {}, {"stride": 2}, {"padding": 1}, {"padding": 2, "stride": 2}, {"padding": (0, 2)},
    {"padding": "same", "dilation": 2}, {"groups": 2}, {"groups": 4, "padding": 1},
    {"padding": 1, "padding_mode": "reflect"},
])  # fmt: skip
def test_convolutions_of_any_border_and_image_size(kwargs, bias):
    net = shifted(lambda m, x: m.b(x).relu(), b=conv(8, 8, 3, bias=bias, **kwargs))
    small, plan = check_equal(net, X)
    for size in ((5, 5), (6, 11)):
        assert_same(net, small, torch.randn(2, 4, *size), tolerance=1e-5)
    folds = kwargs.get("groups", 1) <= 2 and "padding_mode" not in kwargs  # 4 groups: unequal
    assert kept(plan)["a"] == (4, 6 if folds else 8)
    assert plan.modules["b"].folded == ((0, 5) if folds else ())
    assert kept(make_plan(net, X, constants=False))["a"] == (4, 8)


def test_linear_layers_and_pooling():
    net = shifted(lambda m, x: m.b(F.adaptive_avg_pool2d(x, 2).flatten(1)), b=nn.Linear(32, 3))
    small, plan = check_equal(net, X)
    assert kept(plan)["b"] == (24, 3)
    assert isinstance(small.b, nn.Linear)


@pytest.mark.parametrize(("pool", "goes"), [
    (lambda x: F.max_pool2d(x, 3, 2, 1), True), (lambda x: F.avg_pool2d(x, 2), True),
    (lambda x: F.avg_pool2d(x, 3, 1, 1), False), (lambda x: F.pad(x, (1, 1)), False),
    (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), False),
    (lambda x: F.interpolate(x, scale_factor=2.0), True), (lambda x: F.softmax(x, 1), False),
])  # fmt: skip
def test_operations_that_do_and_do_not_keep_a_constant(pool, goes):
    net = shifted(lambda m, x: m.b(pool(x)), b=conv(8, 3))
    small, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 6 if goes else 8)
    assert_same(net, small, torch.randn(1, 4, 14, 10), tolerance=1e-5)


def test_what_differs_between_positions_is_no_constant():
    net = shifted(lambda m, x: m.b((x + m.p).flatten(2).transpose(1, 2)), b=nn.Linear(8, 3))
    net.p = nn.Parameter(torch.randn(1, 8, 9, 9))
    _, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 8)


@pytest.mark.parametrize("case", ["twice", "hook", "subclass", "elsewhere"])
def test_layers_that_cannot_take_a_bias_keep_their_constants(case):
    class Other(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1

    def reader(m, x):
        if case == "twice":
            return m.b(x) + m.b(x + 1)
        return m.b(x) + (m.b.weight.sum() if case == "elsewhere" else 0)

    net = shifted(reader, b=(Other if case == "subclass" else nn.Conv2d)(8, 3, 1))
    if case == "hook":
        net.b.register_forward_hook(lambda *_: None)
    _, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 8)
    assert type(compact(net, plan).b) is type(net.b)


def test_a_negative_constant_is_zero_behind_a_relu():
    net = shifted(lambda m, x: m.b(F.relu(x)), b=conv(8, 3, 3, padding=1))
    with torch.no_grad():
        net.n.bias.fill_(-5.0)
    _, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 6)
    assert plan.modules["b"].folded == ()


def test_a_layer_that_reads_only_constants_becomes_its_bias():
    net = shifted(lambda m, x: m.c(x + m.b(x)), b=conv(8, 8), c=conv(8, 3))
    with torch.no_grad():
        net.b.weight[:, [1, 2, 3, 4, 6, 7]] = 0
    small, plan = check_equal(net, X)
    assert isinstance(small.b, ZeroConv)
    assert plan.modules["b"].constant


# --- layers on a wide trunk ----------------------------------------------------------------------


def trunk(*, norm=True):
    """A trunk of 16 channels that everybody keeps, and a branch of which little is left."""

    def forward(m, x):
        x = m.stem(x)
        y = m.b(F.relu(m.na(m.a(x))))
        return m.head(F.relu(x + (m.nb(y) if norm else y)))

    net = Fn(
        forward,
        stem=conv(4, 16),
        a=conv(16, 12, 3, padding=1, bias=False),
        na=nn.BatchNorm2d(12),
        b=conv(12, 16, 3, padding=1),
        nb=nn.BatchNorm2d(16),
        head=conv(16, 4),
    )
    randomise_(net)
    zero_(net.a, [0, 1, 2])
    zero_(net.b, list(range(0, 16, 2)))
    with torch.no_grad():
        net.a.weight[:, :5] = 0
        net.na.bias.abs_()
    return net.eval()


def test_a_layer_on_a_trunk_reads_and_computes_only_its_part():
    net = trunk()
    small, plan = check_equal(net, X)
    assert plan.modules["a"].reads == tuple(range(5, 16))
    assert plan.modules["b"].writes == tuple(range(1, 16, 2))
    assert small.a.layer.weight.shape == (9, 11, 3, 3)
    assert small.b.layer.weight.shape == (8, 9, 3, 3)
    assert small.b.border.shape == (8, 1, 3, 3)
    assert small.b.bias.shape == (16,)
    assert small.b.stride == (1, 1)
    assert "reads 11 of its 16 inputs" in plan.explain()
    assert "computes 8 of its 16 outputs" in plan.explain()


def test_a_part_that_is_nearly_all_is_not_worth_copying():
    net = trunk()
    with torch.no_grad():
        nn.init.normal_(net.a.weight)
        nn.init.normal_(net.b.weight[1:])
        net.a.weight[:, 0] = 0
    small, plan = check_equal(net, X)
    assert not any(slices.is_subset() for slices in plan.modules.values())
    assert isinstance(small.a, nn.Conv2d)


def test_such_layers_are_ordinary_modules(tmp_path):
    net = randomise_(create_backbone("resnet20"))
    x = torch.randn(2, 3, 32, 32)
    zero_randomly_(net, x, 0.4, norms=False)
    plan = make_plan(net, x)
    small = compact(net, plan).eval()
    assert any(isinstance(m, SubsetLayer) and m.border is not None for m in small.modules())
    save_compact(tmp_path / "small", small, plan, "resnet20", {})
    rebuilt = apply_plan(create_backbone("resnet20"), plan).eval()
    rebuilt.load_state_dict(small.state_dict())
    others = [copy.deepcopy(small), pickle.loads(pickle.dumps(small)), rebuilt]
    others.append(load_compact(tmp_path / "small"))
    for other in others:
        assert_same(small, other, x, tolerance=0.0)
    exported = torch.export.export(small, (x,)).module()
    assert_same(small, exported, x, tolerance=1e-6)
    last = copy.deepcopy(small).to(memory_format=torch.channels_last)
    assert_same(small, last, x.to(memory_format=torch.channels_last), tolerance=1e-5)
    small.train()(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_such_layers_are_counted_and_timed_under_the_name_of_the_layer():
    net = trunk()
    small, _ = check_equal(net, X)
    assert kept_groups(small)["a"] == {"filters": [9, 9], "channels": [11, 11], "columns": [99, 99]}
    assert kept_groups(small).keys() == kept_groups(net).keys()
    result = benchmark({"dense": net, "compact": small}, X, repeats=1, warmup=0, min_run_time=0.0)
    assert set(result.runs[0].layers["b"]) == {"dense", "compact"}
    assert set(result.runs[0].layers) == {"stem", "a", "b", "head"}
    assert result.layer_macs["a"]["compact"] == 81 * 9 * 11 * 9


def test_compiled_they_compute_the_same():
    small, _ = check_equal(trunk(), X)
    found = torch.compile(small, backend="aot_eager")(X + 1)
    torch.testing.assert_close(found, small(X + 1))
    torch.compiler.reset()


def test_half_precision_and_autocast():
    small = compact(trunk(), make_plan(trunk(), X))
    x = torch.randn(2, 4, 9, 9)
    expected = small(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = small(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)
    assert small.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_compacting_again_leaves_such_layers_alone():
    small, _ = check_equal(trunk(), X)
    zero_(small.head, [0])
    again, _ = check_equal(small, X)
    assert isinstance(again.b, SubsetLayer)


# --- mutants: wrong rules are noticed ------------------------------------------------------------


def test_varying_channels_taken_for_constants_are_refused(monkeypatch):
    net = shifted(lambda m, x: m.b((x + m.p).mean((2, 3)).relu()), b=nn.Linear(8, 3))
    net.p = nn.Parameter(torch.randn(1, 8, 9, 9))
    assert check_equal(net, X)[1].notes == ()
    rule = replace(Rule.pointwise(), varies=never)
    monkeypatch.setitem(RULES, "relu", rule)
    assert "constants were not folded" in make_plan(net, X).notes[0]


def test_positions_that_differ_taken_for_a_constant_are_refused(monkeypatch):
    net = shifted(lambda m, x: m.b(x + m.p), b=conv(8, 3))
    net.p = nn.Parameter(torch.randn(1, 8, 9, 9))
    assert check_equal(net, X)[1].notes == ()
    monkeypatch.setattr(owned, "settle_channels", lambda op, flow, dim: None)
    assert "constants were not folded" in make_plan(net, X).notes[0]


def test_every_rule_says_what_becomes_of_constants():
    free = [k for k, rule in RULES.items() if rule.constants and rule.varies is None]
    moves = {"cat", "getitem", "prelu", "clone", "view", "split", "select", "mean"}
    assert moves <= set(free)
    assert not {"relu", "conv2d", "linear", "batch_norm", "mul", "add"} & set(free)
