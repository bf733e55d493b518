"""Traces, labels, rules, residual branches."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nets_with_zeros import randomise_
from ssl_lightning.backbones import create_backbone
from ssl_lightning.graph import Rule, analyse, norm_followers, residual_branches, trace
from ssl_lightning.graph.analysis import propagate
from ssl_lightning.graph.labels import FIXED, Labels
from ssl_lightning.graph.operations import RULES
from ssl_lightning.graph.rule import UNKNOWN
from ssl_lightning.groups import resolve_groups
from toy import Fn

X = torch.zeros(1, 4, 8, 8)


# --- trace ---------------------------------------------------------------------------------------


def test_modes_hooks_and_weights_survive_the_trace():
    net = create_backbone("resnet20")
    net.layer1.eval()
    before = [m.training for m in net.modules()]
    trace(net, torch.zeros(1, 3, 32, 32))
    assert [m.training for m in net.modules()] == before


def test_a_wrong_input_shape_is_named():
    with pytest.raises(ValueError, match=r"Cannot run LeNet.*\(1, 3, 5, 5\)"):
        trace(create_backbone("lenet"), torch.zeros(1, 3, 5, 5))
    net = create_backbone("lenet").train()
    with pytest.raises(ValueError, match="Cannot run"):
        trace(net, torch.zeros(1, 3, 5, 5))
    assert net.training


def test_repeated_leaf_calls_stay_apart():
    net = Fn(lambda m, x: m.n(m.n(x)), n=nn.LocalResponseNorm(3))
    assert [op.kind for op in trace(net, X).ops] == ["LocalResponseNorm"] * 2


def test_tied_parameters_and_reused_modules_have_one_name():
    net = Fn(lambda m, x: m.c(m.b(m.a(x))), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1))
    net.b.weight = net.a.weight
    net.c = net.a
    traced = trace(net, X)
    assert set(traced.names.values()) == {"a.weight", "a.bias", "b.bias"}
    assert [op.module for op in traced.ops] == ["a", "b", "a"]


def test_readers_of_an_overwritten_view_do_not_trust_the_old_value():
    def forward(m, x):
        y = m.a(x)
        z = y.view(1, 4, -1)
        y[:, :2] = 0
        return z.sum(2) + F.relu_(y).mean((2, 3))

    traced = trace(Fn(forward, a=nn.Conv2d(4, 4, 1)), X)
    kinds = {op.name: op.kind for op in traced.ops}
    readers = [op for op in traced.ops if op.kind in ("sum", "relu")]
    assert {kinds[op.inputs()[0]] for op in readers} == {"overwritten"}


def test_equivalent_forward_is_traced_as_the_class_does():
    class Shortcut:
        equivalent = True

        def __call__(self, x):
            return torch.zeros(1, 4, 8, 8)

    net = Fn(lambda m, x: m.a(x), a=nn.Conv2d(4, 4, 1))
    net.a.forward = Shortcut()
    assert [op.kind for op in trace(net, X).ops] == ["conv2d"]
    assert isinstance(net.a.forward, Shortcut)


# --- labels --------------------------------------------------------------------------------------


def test_union_find():
    labels = Labels()
    a, b, c = labels.fresh(3), labels.fresh(3), labels.fresh(3)
    labels.union(a, b)
    labels.union(b[:1], c[:1])
    assert labels.find(c).tolist() == [int(a[0]), *c[1:].tolist()]
    labels.cause = "why"
    labels.fix(c[0])
    assert labels.find(a).tolist() == [FIXED, *a[1:].tolist()]
    assert labels.why_fixed(int(b[0])) == "why"
    assert labels.why_fixed(int(a[1])) == ""


def test_labels_vary_along_one_dimension_only():
    labels = Labels()
    grid = labels.fresh(6).view(2, 3)
    found = labels.find(labels.along_one_dim(grid))
    assert torch.equal(found[0], found[1])
    assert len(found.unique()) == 3


# --- rules against autograd ---------------------------------------------------------------------

POINTWISE = [
    k for k, r in RULES.items() if r.support is Rule.pointwise().support and hasattr(torch, k)
]
EXTRA = {
    "pow": (2,), "rsub": (1,), "clamp": (-1, 1), "clamp_min": (0,), "clamp_max": (1,),
    "hardshrink": (), "threshold": (0.5, 0.0), "dropout": (0.5, False), "celu": (),
    "feature_dropout": (0.5, False), "alpha_dropout": (0.5, False),
    "feature_alpha_dropout": (0.5, False),
}  # fmt: skip


@pytest.mark.parametrize("kind", POINTWISE)
def test_pointwise_support_is_what_the_function_does(kind):
    function = getattr(torch, kind)
    extra = EXTRA.get(kind, ())
    net = Fn(lambda m, x: function(m.a(x), *extra), a=nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        net.a.weight[1:] = 0
        net.a.bias[1:] = 0
    flow = propagate(net, trace(net, X))
    result = net(torch.randn(1, 4, 8, 8) + 3)
    alive = flow.alive[flow.trace.outputs[0]]
    assert not bool(((result != 0) & (alive == 0)).any())
    assert bool((alive[0, 1] == 1).all()) == bool(function(torch.zeros(1), *extra) != 0)


CASES = {
    "max_pool": lambda m, x: F.max_pool2d(m.a(x), 3, 2, 1, ceil_mode=True),
    "even_lrn": lambda m, x: nn.LocalResponseNorm(4)(m.a(x)),
    "conv_same": lambda m, x: F.relu(m.b(m.a(x))),
    "gate": lambda m, x: m.a(x) * torch.sigmoid(m.b(x)),
    "quotient": lambda m, x: m.a(x) / (2 + m.b(x).abs()),
    "upsample": lambda m, x: F.interpolate(m.a(x), scale_factor=2, mode="bilinear"),
    "constant_minus": lambda m, x: 1 - m.a(x),
    "pad_value": lambda m, x: F.pad(m.a(x), (1, 1), value=2.0),
    "channel_pad": lambda m, x: F.pad(m.a(x), (0, 0, 0, 0, 1, 2)),
    "reflect": lambda m, x: F.pad(m.a(x), (1, 2, 0, 1), mode="reflect"),
    "replicate": lambda m, x: F.pad(m.a(x), (1, 2, 0, 1), mode="replicate"),
    "circular": lambda m, x: F.pad(m.a(x), (1, 2, 0, 1), mode="circular"),
    "roll": lambda m, x: torch.roll(m.a(x), (1, 2), (2, 3)),
    "repeat": lambda m, x: m.a(x).repeat(1, 2, 1, 1),
    "glu": lambda m, x: F.glu(m.a(x), 1),
    "softmax": lambda m, x: F.softmax(m.a(x), 2),
    "group_norm": lambda m, x: F.group_norm(m.a(x), 2),
    "instance_norm": lambda m, x: F.instance_norm(m.a(x)),
    "layer_norm": lambda m, x: F.layer_norm(m.a(x).movedim(1, -1), (4,)),
    "matmul": lambda m, x: m.a(x) @ m.b(x),
    "attention": lambda m, x: F.scaled_dot_product_attention(m.a(x), m.b(x), m.a(x)),
    "transposed": lambda m, x: F.conv_transpose2d(m.a(x), m.b.weight[:, :, :2, :2], stride=2),
    "adaptive_max": lambda m, x: F.adaptive_max_pool2d(m.a(x), 3),
    "unpool": lambda m, x: F.max_unpool2d(*F.max_pool2d(m.a(x), 2, return_indices=True), 2),
    "max": lambda m, x: m.a(x).max(3)[0],
    "min_over_channels": lambda m, x: m.a(x).min(1, keepdim=True)[0],
    "amax": lambda m, x: m.a(x).amax((2, 3)),
    "amin": lambda m, x: m.a(x).amin((2, 3), keepdim=True),
    "std": lambda m, x: m.a(x).std((2, 3)),
    "var": lambda m, x: m.a(x).var(),
    "norm_over_channels": lambda m, x: F.normalize(m.a(x), dim=1),
    "norm": lambda m, x: m.a(x).norm(dim=(2, 3)),
    "sum_over_channels": lambda m, x: (m.a(x) * m.b(x)).sum(1),
    "grouped_transposed": lambda m, x: F.conv_transpose2d(
        m.a(x), m.b.weight[:, :2, :2, :2], groups=2
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_masks_cover_what_is_non_zero(case):
    net = Fn(
        CASES[case], a=nn.Conv2d(4, 4, 3, padding="same"), b=nn.Conv2d(4, 4, 4, padding="same")
    )
    randomise_(net)
    with torch.no_grad():
        for layer, dead in ((net.a, [0, 2]), (net.b, [2])):
            layer.weight[dead] = 0
            layer.bias[dead] = 0
    flow = propagate(net, trace(net, X))
    assert not flow.failed
    result = net(torch.randn(1, 4, 8, 8))
    assert not bool(((result != 0) & (flow.alive[flow.trace.outputs[0]] == 0)).any())


def test_every_rule_of_the_table_is_used_by_an_operation_of_torch():
    leaves = {"PadShortcut", "ZeroLike", "ZeroConv", "ZeroLinear", "getitem"}
    leaves |= {"LocalResponseNorm", "ChannelResponseNorm", "SparseResponseNorm"}
    unknown = [k for k in RULES if k not in leaves and not hasattr(torch.ops.aten, k)]
    assert not unknown


def test_an_operation_whose_rule_fails_counts_as_unknown(monkeypatch):
    def fail(*_):
        raise RuntimeError("bug")

    monkeypatch.setitem(RULES, "relu", Rule(fail, RULES["relu"].labels))
    net = Fn(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Conv2d(4, 6, 1), b=nn.Conv2d(6, 4, 1))
    with torch.no_grad():
        net.a.weight[:3] = 0
        net.a.bias[:3] = 0
    slices = analyse(net, X)
    assert len(slices["a"].outputs) == 6
    assert "rule failed: `relu`" in slices["a"].reason


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4), training=True),
        lambda x: x.cumsum(1),
        lambda x: x.view(torch.int32).float(),
        lambda x: torch.where(x > 0, x, x),
    ],
)
def test_operations_without_a_rule_block(function):
    net = Fn(lambda m, x: m.b(function(m.a(x))), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        net.a.weight[:2] = 0
        net.a.bias[:2] = 0
    slices = analyse(net, X)
    assert len(slices["a"].outputs) == 4
    assert "without a rule" in slices["a"].reason


def test_batch_norm_whose_shift_and_mean_cancel_in_the_masks_is_alive():
    net = Fn(lambda m, x: m.b(m.n(m.a(x))), a=nn.Conv2d(4, 4, 1), n=nn.BatchNorm2d(4, eps=0.0))
    net.b = nn.Conv2d(4, 4, 1)
    with torch.no_grad():
        net.a.weight[:2] = 0
        net.a.bias[:2] = 0
        net.n.running_mean.fill_(1.0)
        net.n.weight.fill_(0.7)
        net.n.bias.fill_(0.3)
    assert analyse(net, X, constants=False)["n"].outputs == (0, 1, 2, 3)


# --- residual branches ---------------------------------------------------------------------------


@pytest.mark.parametrize(("shortcut", "blocks"), [("A", 9), ("B", 9)])
def test_branches_of_own_resnets(shortcut, blocks):
    net = create_backbone("resnet20", shortcut=shortcut)
    found = residual_branches(trace(net, torch.zeros(1, 3, 32, 32)))
    assert len(found) == blocks
    assert found[3].weighted == ("layer2.0.conv1", "layer2.0.conv2")
    assert set(found[3].modules) == {f"layer2.0.{m}" for m in ("conv1", "bn1", "conv2", "bn2")}


@pytest.mark.parametrize(
    ("name", "blocks", "last"),
    [
        ("torchvision:resnet18", 8, ("layer4.1.conv1", "layer4.1.conv2")),
        ("torchvision:resnet50", 16, tuple(f"layer4.2.conv{i}" for i in (1, 2, 3))),
        ("timm:resnet18", 8, ("layer4.1.conv1", "layer4.1.conv2")),
    ],
)
def test_branches_of_other_resnets(name, blocks, last):
    net = create_backbone(name)
    traced = trace(net, torch.zeros(1, 3, 64, 64))
    found = residual_branches(traced)
    assert len(found) == blocks
    assert found[-1].weighted == last
    assert not any("downsample" in m for branch in found for m in branch.modules)
    assert norm_followers(traced)["layer1.0.conv1"] == "layer1.0.bn1"
    assert norm_followers(traced)["layer2.0.downsample.0"] == "layer2.0.downsample.1"


def test_networks_without_residuals_have_no_branches():
    assert residual_branches(trace(create_backbone("lenet"), torch.zeros(1, 1, 28, 28))) == []


def test_a_branch_is_none_if_read_elsewhere_or_shared_or_without_a_shortcut():
    def conv():
        return nn.Conv2d(4, 4, 1)

    read = Fn(lambda m, x: (x + (y := m.a(x)), y), a=conv())
    shared = Fn(lambda m, x: m.a(x + m.a(x)), a=conv())
    constant = Fn(lambda m, x: m.a(x) + m.p.exp(), a=conv(), p=nn.Parameter(torch.ones(4, 1, 1)))
    for net in (read, shared, constant):
        assert residual_branches(trace(net, X)) == []


def test_norm_followers_are_exclusive():
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    good = Fn(lambda m, x: m.n(m.a(x)), a=conv, n=norm)
    assert norm_followers(trace(good, X)) == {"a": "n"}
    shared = Fn(lambda m, x: m.n(m.a(x)) + m.n(m.b(x)), a=conv, b=nn.Conv2d(4, 4, 1), n=norm)
    two = Fn(lambda m, x: m.n(m.a(x)) + m.o(m.a(x)), a=conv, n=norm, o=nn.BatchNorm2d(4))
    output = Fn(lambda m, x: (m.n(y := m.a(x)), y), a=conv, n=norm)
    for net in (shared, two, output):
        assert norm_followers(trace(net, X)) == {}
    assert UNKNOWN not in RULES.values()


def test_new_tensors_of_another_type_change_nothing():
    """Lightning's precision ``64-true`` makes networks while new tensors are float64."""
    nets = {}
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            torch.manual_seed(0)
            net = create_backbone("resnet20")
            families = resolve_groups(net, [{"kind": "coupled"}], torch.zeros(1, 3, 32, 32))
        finally:
            torch.set_default_dtype(torch.float32)
        nets[dtype] = [(s.name, s.num_groups, s.group_size) for s in families]
    assert nets[torch.float64] == nets[torch.float32]
    assert len(nets[torch.float32]) > 5


class SqueezeExcite(nn.Module):
    """A residual block whose last weighted layer is that of a gate."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.fc1, self.fc2 = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x):
        y = self.c2(self.c1(x).relu())
        gate = self.fc2(self.fc1(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x + y * gate


class Attending(nn.Module):
    """Attention whose scores have a mask added to them, in two blocks that share the mask."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (
            nn.ModuleList(nn.Linear(4, 4) for _ in range(2)) for _ in range(4)
        )

    def forward(self, x, mask):
        bias = (1.0 - mask) * -1e4
        for q, k, v, o in zip(self.q, self.k, self.v, self.o, strict=True):
            scores = q(x) @ k(x).transpose(1, 2) + bias[:, None, :]
            x = x + o(scores.softmax(-1) @ v(x))
        return x


class TwoInputs(nn.Module):
    """A sum of what two inputs give: neither side leads to the other's input."""

    def __init__(self):
        super().__init__()
        self.a, self.t, self.b1, self.b2 = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x, t):
        h = self.a(x) + self.t(t)
        return h + self.b2(self.b1(h).relu())


class Parts(nn.Module):
    """A branch of two parts beside each other: no layer alone is all of it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        return x + torch.cat([self.a(x), self.b(x)], 1)


@pytest.mark.parametrize(
    ("net", "inputs", "last"),
    [
        (SqueezeExcite(), (torch.zeros(1, 3, 4, 4),), ["c2"]),
        (Attending(), (torch.zeros(1, 3, 4), torch.ones(1, 3)), ["o.0", "o.1"]),
        (TwoInputs(), (torch.zeros(1, 4), torch.zeros(1, 4)), ["b2"]),
        (Parts(), (torch.zeros(1, 4),), [""]),
    ],
    ids=["gate", "mask", "two inputs", "parts"],
)
def test_the_last_layer_of_a_branch_is_one_that_all_of_it_passes(net, inputs, last):
    found = residual_branches(trace(net, inputs))
    assert [branch.last for branch in found] == last
    for layer in filter(None, last):  # by hand: what the branch gave is constant without it
        with torch.no_grad():
            for parameter in net.get_submodule(layer).parameters():
                parameter.zero_()
    first = [x + 1 for x in inputs]
    if isinstance(net, (SqueezeExcite, Attending)):
        with torch.no_grad():
            assert torch.equal(net(*first), first[0])


def test_a_network_of_two_inputs_is_not_cut_by_depth_groups():
    from ssl_lightning import prune_

    net, (x, t) = TwoInputs(), (torch.randn(1, 4), torch.randn(1, 4))
    prune_(net, (x, t), fraction=0.99, groups=[{"kind": "depth"}])
    with torch.no_grad():
        assert not torch.equal(net(x, t), net(x + 1, t))
