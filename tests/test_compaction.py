"""Own backbones and hand-written networks: the compact network computes the same function."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nets_with_zeros import assert_same, check_equal, kept, randomise_, zero_, zero_randomly_
from ssl_lightning.backbones import BACKBONES, ChannelResponseNorm, create_backbone
from ssl_lightning.compaction import apply_plan, compact, make_plan
from ssl_lightning.compaction.modules import ZeroConv, ZeroLike, ZeroLinear
from ssl_lightning.compaction.norms import WideGroupNorm, WideLayerNorm
from ssl_lightning.graph import Rule
from ssl_lightning.graph.operations import RULES, norms, pointwise, pooling
from ssl_lightning.graph.rule import keep_labels, same
from ssl_lightning.groups import resolve_groups
from ssl_lightning.prune import prune_
from toy import Fn


def conv(i, o, k=1, **kwargs):
    return nn.Conv2d(i, o, k, **kwargs)


def example(net, batch=1):
    return torch.zeros(batch, *net.input_shape)


X = torch.zeros(1, 4, 8, 8)
SMALL = [name for name in BACKBONES if name not in ("resnet44", "resnet56", "resnet110", "alexnet")]
VARIANTS = [(name, {}) for name in SMALL]
VARIANTS += [("resnet20", {"shortcut": "B"}), ("alexnet", {"num_classes": 3})]


# --- own backbones -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "arguments"), VARIANTS)
@pytest.mark.parametrize(
    ("fraction", "norms"), [(0.4, True), (0.5, False), (0.0, True), (1.0, True)]
)
def test_own_backbones(name, arguments, fraction, norms):
    if name in ("alexnet", "resnet32") and fraction != 0.4:
        pytest.skip("one run of the larger backbones is enough")
    net = randomise_(create_backbone(name, **arguments))
    zero_randomly_(net, example(net), fraction, norms=norms)
    _, plan = check_equal(net, example(net), batches=(1,) if name == "alexnet" else (1, 3))
    assert plan.notes == ()
    assert bool(plan.removed()) == (fraction > 0)


def test_deepest_resnet():
    net = randomise_(create_backbone("resnet110"))
    zero_randomly_(net, example(net), 0.4)
    _, plan = check_equal(net, example(net), batches=(2,))
    assert plan.removed()


def test_lenet_counts():
    net = randomise_(create_backbone("lenet"))
    zero_(net.conv1, [0, 1, 5])
    zero_(net.conv2, slice(10, None))
    zero_(net.fc1, slice(0, 100))
    with torch.no_grad():
        net.conv2.weight[:, 19] = 0  # nobody reads filter 19 of conv1
    _, plan = check_equal(net, example(net))
    assert kept(plan) == {"conv1": (1, 16), "conv2": (16, 10), "fc1": (160, 400), "fc2": (400, 10)}


def test_unread_neurons_go_even_if_they_are_not_zero():
    net = randomise_(create_backbone("mlp"))
    with torch.no_grad():
        net.fc2.weight[:, :50] = 0
    _, plan = check_equal(net, example(net))
    assert kept(plan)["fc1"] == (784, net.fc1.out_features - 50)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_resnet_counts(shortcut):
    net = randomise_(create_backbone("resnet20", shortcut=shortcut))
    block = net.layer2[0]
    zero_(block.conv1, slice(0, 20), block.bn1)  # inside a block: they go
    zero_(net.layer1[1].conv2, slice(0, 4), net.layer1[1].bn2)  # on the trunk: they stay
    for n in range(3):  # the last stage's trunk, everywhere: they go
        last = net.layer3[n]
        zero_(last.conv2, slice(40, None), last.bn2)
        if n == 0 and shortcut == "B":
            zero_(last.shortcut[0], slice(40, None), last.shortcut[1])
    _, plan = check_equal(net, example(net))
    counts = kept(plan)
    assert counts["layer2.0.conv1"] == (16, 12)
    assert counts["layer2.0.bn1"] == (12, 12)
    assert counts["layer2.0.conv2"] == (12, 32)
    assert counts["layer1.1.conv2"] == (16, 16)
    assert counts["layer3.2.conv2"] == (64, 40)
    assert counts["fc"] == (40, 10)
    assert plan.modules["layer1.1.conv2"].idle == 4
    assert "coupled to `" in plan.modules["layer1.1.conv2"].reason


def test_a_dead_branch_is_not_computed():
    net = randomise_(create_backbone("resnet20"))
    block = net.layer1[1]
    for layer, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
        zero_(layer, slice(None), norm)
    small, _ = check_equal(net, example(net))
    found = small.layer1[1]
    assert isinstance(found.conv1, ZeroConv)
    assert isinstance(found.conv2, ZeroConv)
    assert isinstance(found.bn2, ZeroLike)
    assert not list(found.parameters())


def test_train_mode_is_the_same_where_no_batch_norm_was_cut():
    net = randomise_(create_backbone("lenet"))
    zero_(net.conv1, [0, 1])
    small, _ = check_equal(net, example(net))
    x = torch.randn(4, *net.input_shape)
    assert_same(net.train(), small.train(), x, tolerance=1e-5)


# --- hand-written networks -----------------------------------------------------------------------


def shuffle(x, groups):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Square(nn.Module):
    """Inputs and outputs with names."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(4, 8), conv(2, 8), conv(8, 4)

    def forward(self, x, y, scale=2.0):
        z = self.a(x) + self.b(y).relu()
        return {"first": self.c(z) * scale, "rest": [z.mean(), (x, y.sum())]}


def test_two_inputs_and_a_dict_of_outputs():
    net = randomise_(Square())
    for layer in (net.a, net.b):
        zero_(layer, [0, 3])
    net.rest = None
    y = torch.zeros(1, 2, 8, 8)
    _, plan = check_equal(net, X, y)
    assert kept(plan)["c"] == (8, 4)  # the mean over channels reads how many there are


def test_concat_chunk_and_shuffle():
    def forward(m, x):
        a, b = torch.cat([m.a(x), m.b(x)], 1).chunk(2, dim=1)
        return m.c(shuffle(torch.cat([a, b.relu()], 1), 2)).mean((2, 3))

    net = randomise_(Fn(forward, a=conv(4, 6), b=conv(4, 6), c=conv(12, 5)))
    zero_(net.a, [0, 1, 2])
    zero_(net.b, [1, 2])
    _, plan = check_equal(net, X)
    assert kept(plan) == {"a": (4, 4), "b": (4, 4), "c": (8, 5)}
    assert plan.modules["a"].idle == 1


def test_squeeze_and_excitation():
    def forward(m, x):
        y = m.a(x)
        gate = torch.sigmoid(m.up(m.down(y.mean((2, 3), keepdim=True)).relu()))
        return m.b(y * gate)

    net = Fn(forward, a=conv(4, 8, 3, padding=1), down=conv(8, 4), up=conv(4, 8), b=conv(8, 4))
    randomise_(net)
    zero_(net.a, [0, 1, 2])
    zero_(net.down, [3])
    _, plan = check_equal(net, X)
    assert kept(plan) == {"a": (4, 5), "down": (5, 3), "up": (3, 5), "b": (5, 4)}


def test_sigmoid_of_a_zero_channel_is_not_zero():
    net = randomise_(Fn(lambda m, x: m.b(torch.sigmoid(m.a(x))), a=conv(4, 8), b=conv(8, 4)))
    zero_(net.a, [0, 1])
    assert kept(make_plan(net, X, constants=False))["a"] == (4, 8)
    _, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 6)
    assert plan.modules["b"].folded == (0, 1)
    assert plan.modules["b"].constants == (0.5, 0.5)


@pytest.mark.parametrize("how", ["module", "alias", "weight"])
def test_shared_weights(how):
    net = randomise_(Fn(lambda m, x: m.d(m.c(m.b(m.a(x)))), a=conv(4, 6), d=conv(6, 4)))
    net.b = conv(6, 6)
    net.c = net.b if how != "weight" else conv(6, 6)
    net.c.weight = net.b.weight
    if how == "module":
        net.function[0] = lambda m, x: m.d(m.b(m.b(m.a(x)).relu()))
    for layer in (net.a, net.b, net.c):
        zero_(layer, [1, 4])
    small, plan = check_equal(net, X)
    expected = (6, 6) if how == "weight" else (4, 4)
    assert kept(plan).get("b") == expected
    assert (small.c is small.b) == (net.c is net.b)
    assert small.c.weight is small.b.weight


def test_functional_calls_block():
    net = randomise_(Fn(lambda m, x: m.b(F.conv2d(m.a(x), m.w)), a=conv(4, 6), b=conv(5, 4)))
    net.w = nn.Parameter(torch.randn(5, 6, 1, 1))
    zero_(net.a, [0])
    _, plan = check_equal(net, X)
    assert kept(plan) == {"a": (4, 6), "b": (5, 4)}


@pytest.mark.parametrize("view", [(2, 4), (-1, 4), (2, -1)])
def test_sizes_fixed_by_the_code_block_and_are_noted(view):
    def forward(m, x):
        y = m.a(x)
        return m.b(y.view(len(y), *view, 8, 8).transpose(1, 2).flatten(1, 2))

    net = randomise_(Fn(forward, a=conv(4, 8), b=conv(8, 4)))
    zero_(net.a, [0, 4, 5])
    _, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 6 if view == (2, -1) else 8)  # pairs: 0 and 4
    assert bool(plan.notes) == (view != (2, -1))


def test_hard_coded_sizes_block_only_where_they_are():
    def forward(m, x):
        return m.d(m.c(m.b(m.a(x)).relu()).mean((2, 3)).view(-1, 6))

    net = Fn(forward, a=conv(4, 8), b=conv(8, 8), c=conv(8, 6), d=nn.Linear(6, 3))
    randomise_(net)
    for layer in (net.a, net.b, net.c):
        zero_(layer, [0, 2])
    _, plan = check_equal(net, X)
    assert kept(plan) == {"a": (4, 6), "b": (6, 6), "c": (6, 6), "d": (6, 3)}
    assert "view" in plan.notes[0]


def test_relu_in_place_on_a_tensor_read_twice():
    def forward(m, x):
        y = m.a(x)
        z = F.relu(y, inplace=True)
        return m.b(y) + m.c(z)

    net = randomise_(Fn(forward, a=conv(4, 8), b=conv(8, 4), c=conv(8, 4)))
    zero_(net.a, [0, 5])
    _, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 6)


def test_a_view_changed_in_place_changes_its_base():
    def forward(m, x):
        y = m.a(x)
        y[:, :2] += 1.0
        return m.b(y)

    net = randomise_(Fn(forward, a=conv(4, 8), b=conv(8, 4)))
    zero_(net.a, [0, 5])
    _, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 8)


def test_positions_named_by_number_block():
    def forward(m, x):
        y = m.a(x)
        return m.b(y[:, 2:]) + y[:, 1:2]

    net = randomise_(Fn(forward, a=conv(4, 8), b=conv(6, 4)))
    zero_(net.a, [0, 5])
    _, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 8)
    assert plan.notes == ()


@pytest.mark.parametrize("kwargs", [
    {"padding": "same"}, {"padding": "valid"}, {"padding": 1, "padding_mode": "circular"},
    {"padding": 1, "stride": 2, "dilation": 2}, {"groups": 2}, {"groups": 4}, {"groups": 8},
])  # fmt: skip
def test_convolutions(kwargs):
    net = Fn(lambda m, x: m.c(m.b(m.a(x)).relu()), a=conv(4, 8), b=conv(8, 16, 3, **kwargs))
    net.c = conv(16, 4)
    randomise_(net)
    zero_(net.a, [0, 1, 4])
    zero_(net.b, [0, 1, 2, 3, 8])
    _, plan = check_equal(net, X)
    groups = kwargs.get("groups", 1)
    expected = {1: (5, 11), 2: (6, 14), 4: (6, 12), 8: (5, 10)}[groups]
    assert kept(plan)["b"] == expected


def test_a_group_without_channels_goes():
    net = Fn(lambda m, x: m.c(m.b(m.a(x))), a=conv(4, 8), b=conv(8, 8, groups=4), c=conv(8, 4))
    randomise_(net)
    zero_(net.a, [2, 3])
    zero_(net.b, [2, 3])
    small, plan = check_equal(net, X)
    assert kept(plan)["b"] == (6, 6)
    assert small.b.groups == 3


def test_a_layer_without_live_inputs_becomes_its_bias():
    net = Fn(lambda m, x: m.c(F.max_pool2d(m.b(m.a(x)), 2)), a=conv(4, 8), b=conv(8, 6, 3))
    net.c = conv(6, 4)
    randomise_(net)
    zero_(net.a, slice(None))
    net.b.bias.requires_grad_(False)
    small, plan = check_equal(net, X)
    assert plan.modules["b"].constant
    assert isinstance(small.a, ZeroConv)
    assert isinstance(small.b, ZeroConv)
    assert not small.b.bias.requires_grad


@pytest.mark.parametrize("kind", [nn.LocalResponseNorm, ChannelResponseNorm])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_response_norm_keeps_its_neighbours(size, kind):
    net = Fn(lambda m, x: m.b(m.n(m.a(x))), a=conv(4, 12), n=kind(size, alpha=1.0))
    net.b = conv(12, 4)
    randomise_(net)
    zero_(net.a, [0, 3, 4, 8])
    small, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 8)
    zero_(small.a, [1, 2])
    again, plan = check_equal(small, X)
    assert kept(plan)["a"] == (4, 6)
    assert again.n.width == 12


@pytest.mark.parametrize("norm", [
    nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8, track_running_stats=False),
    nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8),
])  # fmt: skip
def test_norms(norm):
    net = randomise_(Fn(lambda m, x: m.b(m.n(m.a(x))), a=conv(4, 8), n=norm, b=conv(8, 4)))
    zero_(net.a, [0, 1])
    with torch.no_grad():
        if getattr(norm, "running_mean", None) is not None:
            norm.running_mean[:2] = 0
        if norm.weight is not None if hasattr(norm, "weight") else False:
            norm.bias[:2] = 0
    _, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 8 if isinstance(norm, nn.GroupNorm) else 6)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("case", ["linear", "last", "first", "groups", "one group", "instance"])
def test_norms_over_channels_keep_their_statistics(case, affine):
    """Zero channels go; what is left is still divided by the number of all."""
    norms = {
        "linear": nn.LayerNorm(8, elementwise_affine=affine),
        "last": nn.LayerNorm(8, elementwise_affine=affine),
        "first": ChannelsFirst(8, elementwise_affine=affine),
        "groups": nn.GroupNorm(4, 8, affine=affine),
        "one group": nn.GroupNorm(1, 8, affine=affine),
        "instance": nn.InstanceNorm2d(8, affine=affine),
    }

    def forward(m, x):
        x = m.a(x)
        if case == "last":
            return m.b(m.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return m.b(m.n(x))

    layer = nn.Linear if case == "linear" else conv
    net = randomise_(Fn(forward, a=layer(4, 8), n=norms[case], b=layer(8, 4)))
    zero_(net.a, [0, 1, 3, 6], net.n if affine else None)
    with torch.no_grad():
        net.b.weight[:, [0, 1, 3, 6]] = 0  # without scales, channels do not stay zero
    inputs = torch.zeros(1, 5, 4) if case == "linear" else X
    small, plan = check_equal(net, inputs)
    assert kept(plan) == {"a": (4, 4), "n": (4, 4), "b": (4, 4)}
    small.train()(inputs).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


class NormThenAct(nn.GroupNorm):
    """A norm with an activation as its child, as in timm."""

    def __init__(self):
        super().__init__(4, 8)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(super().forward(x))


def test_children_of_a_norm_survive():
    net = randomise_(Fn(lambda m, x: m.b(m.n(m.a(x))), a=conv(4, 8), n=NormThenAct(), b=conv(8, 4)))
    zero_(net.a, [0, 1, 3], net.n)
    small, plan = check_equal(net, X)
    assert kept(plan)["n"] == (5, 5)
    assert isinstance(small.n[1], nn.SiLU)


def test_operations_that_cannot_be_run_alone_count_as_varying():
    def forward(m, x):
        with torch.autocast("cpu", enabled=False):
            x = m.a(x).relu()
        return m.b(x)

    net = randomise_(Fn(forward, a=conv(4, 8), b=conv(8, 4)))
    zero_(net.a, [0, 1])
    check_equal(net, X)


class ChannelsFirst(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_a_zero_channel_is_not_zero_behind_a_norm_over_channels():
    net = randomise_(Fn(lambda m, x: m.b(m.n(m.a(x))), a=conv(4, 8), n=nn.GroupNorm(1, 8)))
    net.b = conv(8, 4)
    zero_(net.a, [0, 1])
    _, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 8)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(2, 8)])
def test_wide_norms_follow_autocast_and_half_precision(norm):
    if isinstance(norm, nn.LayerNorm):
        wide, x = WideLayerNorm(norm, range(6), -1), torch.randn(2, 6)
    else:
        wide, x = WideGroupNorm(norm, range(6)), torch.randn(2, 6, 3)
    full = torch.cat([x, torch.zeros_like(x[:, :2])], 1)
    for dtype in (torch.bfloat16, torch.float16):
        found = wide.to(dtype)(x.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), norm(full)[:, :6], atol=0.05, rtol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert wide.float()(x.bfloat16()).dtype == norm(full.bfloat16()).dtype


def zero_width(norm):
    kept = list(range(6))
    return (
        WideLayerNorm(norm, kept, -1)
        if isinstance(norm, nn.LayerNorm)
        else WideGroupNorm(norm, kept)
    )


def test_parameters_that_no_layer_owns_are_cut_too():
    """A layer scale, a class token and a positional embedding on one trunk."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Linear(4, 8)
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.position = nn.Parameter(torch.randn(1, 6, 8))
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
            self.gamma, self.head = nn.Parameter(torch.randn(8)), nn.Linear(8, 3)

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), self.patch(x)], 1) + self.position
            x = x + self.gamma * self.down(F.gelu(self.up(self.norm(x))))
            return self.head(x[:, 0])

    net, x = Net(), torch.zeros(1, 5, 4)
    sets = resolve_groups(net, [{"kind": "coupled"}], x)
    assert {s.name: s.num_groups for s in sets} == {"patch:coupled": 8, "up:coupled": 12}
    trunk = {"patch.weight", "down.weight", "norm.weight", "token", "position", "gamma"}
    assert trunk <= set(sets[0].parameters())
    before = copy.deepcopy(net.state_dict())
    prune_(net, x, fraction=0.5)
    assert any(not torch.equal(before[k], v) for k, v in net.state_dict().items())
    small, plan = check_equal(net, x)
    left = len(plan.modules["position"].outputs)
    assert small.position.shape == (1, 6, left)
    assert small.token.shape == (1, 1, left)
    assert small.gamma.shape == (left,)
    assert small.norm.weight.shape == (left,)
    assert left < 8
    rebuilt = apply_plan(Net(), type(plan).from_json(plan.to_json()))
    rebuilt.load_state_dict(small.state_dict())
    assert_same(small, rebuilt, torch.randn(2, 5, 4), tolerance=0.0)


class ShiftedNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).sigmoid()


class PaddedConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 0, 1, 0)))


def test_subclasses_are_shrunk_but_not_replaced():
    net = Fn(lambda m, x: m.b(x + m.n(m.a(x))), a=PaddedConv(4, 4, 2), n=ShiftedNorm(4))
    net.b = conv(4, 4)
    randomise_(net)
    zero_(net.a, slice(None), net.n)
    small, _ = check_equal(net, X)
    assert type(small.a) is PaddedConv
    assert type(small.n) is ShiftedNorm


def test_an_embedding_and_integer_inputs():
    def forward(m, tokens):
        return m.b(F.relu(m.a(m.e(tokens)))).mean(1)

    net = Fn(forward, e=nn.Embedding(10, 6), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    zero_(net.a, [1, 2])
    tokens = torch.arange(8).view(2, 4)
    _, plan = check_equal(net, tokens)
    assert kept(plan) == {"a": (6, 6), "b": (6, 3)}
    assert plan.input_types == ("int64",)


def test_an_embedding_of_which_channels_are_zero():
    net = Fn(lambda m, tokens: m.b(m.a(m.e(tokens))).mean(1), e=nn.Embedding(10, 6))
    net.a, net.b = nn.Linear(6, 8), nn.Linear(8, 3)
    with torch.no_grad():
        net.e.weight[:, [0, 4]] = 0
    small, plan = check_equal(net, torch.arange(8).view(2, 4))
    assert small.e.weight.shape == (10, 4)
    assert kept(plan)["a"] == (4, 8)


@pytest.mark.parametrize("layer", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(layer, groups):
    dims = int(layer.__name__[-2])
    plain = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    net = Fn(lambda m, x: m.c(F.relu(m.b(m.a(x)))), a=plain(4, 8, 1), c=plain(6, 3, 1))
    net.b = layer(8, 6, 3, stride=2, padding=1, output_padding=1, groups=groups)
    randomise_(net)
    zero_(net.a, [0, 5])
    with torch.no_grad():
        net.b.weight[:, 1] = 0
        net.b.bias[1 :: 6 // groups] = 0
    _, plan = check_equal(net, torch.zeros(1, 4, *[5] * dims))
    assert kept(plan)["a"] == (4, 6)  # zero 0 and 5: one of each group
    assert kept(plan)["c"] == (5 if groups == 1 else 4, 3)  # output 1 of every group


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "constant"])
def test_padding_of_all_modes(mode):
    net = Fn(lambda m, x: m.b(F.pad(m.a(x), (1, 2, 2, 1), mode=mode)), a=conv(4, 8), b=conv(8, 3))
    randomise_(net)
    zero_(net.a, [0, 5])
    _, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 6)


def test_gated_linear_units():
    net = randomise_(Fn(lambda m, x: m.b(F.glu(m.a(x), 1)), a=conv(4, 8), b=conv(4, 3)))
    zero_(net.a, [1, 5])
    _, plan = check_equal(net, X)
    assert kept(plan)["a"] == (4, 6)


# --- what must survive ---------------------------------------------------------------------------


def test_the_compact_network_is_an_ordinary_module():
    net = randomise_(create_backbone("resnet20"))
    zero_randomly_(net, example(net), 0.4)
    net.train()
    net.layer1[0].eval()
    net.note = "kept"
    calls = []
    net.fc.register_forward_hook(lambda *_: calls.append(1))
    net.conv1.weight.requires_grad_(False)
    plan = make_plan(net, example(net))
    small = compact(net, plan)
    assert small.note == "kept"
    assert net.training
    assert small.training
    assert not small.layer1[0].training
    assert not small.layer1[0].bn1.training
    calls.clear()
    small(torch.randn(2, 3, 32, 32)).sum().backward()
    assert calls == [1]
    assert small.conv1.weight.grad is None
    frozen = [n for n, p in small.named_parameters() if not p.requires_grad]
    assert frozen == ["conv1.layer.weight"]
    assert all(p.grad is not None for p in small.parameters() if p.requires_grad)
    small.fc._forward_hooks.clear()
    x = torch.randn(2, 3, 32, 32)
    rebuilt = apply_plan(create_backbone("resnet20"), plan)
    rebuilt.load_state_dict(small.state_dict())
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), rebuilt):
        assert_same(small.eval(), other.eval(), x, tolerance=0.0)


def test_compacting_a_compact_network():
    net = randomise_(create_backbone("resnet20"))
    zero_randomly_(net, example(net), 0.3)
    block = net.layer2[1]
    for layer, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
        zero_(layer, slice(None), norm)
    small, _ = check_equal(net, example(net))
    _, plan = check_equal(small, example(net))
    assert not [n for n, s in plan.removed().items() if s.of not in ((0, s.of[1]),) and not s.zero]
    zero_randomly_(small, example(net), 0.5)
    smaller, plan = check_equal(small, example(net))
    assert plan.notes == ()
    count = [sum(p.numel() for p in m.parameters()) for m in (net, small, smaller)]
    assert count[0] > count[1] > count[2]


def test_constant_layers_of_a_compact_network_shrink_again():
    net = Fn(lambda m, x: m.c(m.b(m.a(x)).relu().mean((2, 3))), a=conv(4, 8), b=conv(8, 6, 3))
    net.c = nn.Linear(6, 3)
    randomise_(net)
    zero_(net.a, slice(None))
    small = compact(net, make_plan(net, X, constants=False))
    with torch.no_grad():
        small.b.bias[2:] = 0
    plan = make_plan(small, X, constants=False)
    smaller = compact(small, plan)
    assert_same(small, smaller, X, tolerance=1e-5)
    assert kept(plan)["b"] == (0, 2)
    assert kept(plan)["c"] == (2, 3)
    assert smaller.b.bias.shape == (2,)


@pytest.mark.parametrize("layer", ["conv", "linear"])
def test_constant_layers_follow_autocast_and_layout(layer):
    bias = torch.tensor([0.5, 0.25])
    zero = ZeroConv(2, (1, 1), (1, 1), (0, 0), (1, 1), bias) if layer == "conv" else None
    zero = zero or ZeroLinear(2, bias)
    x = torch.randn(2, 3, 4, 4 if layer == "conv" else 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert zero(x).dtype == torch.bfloat16
    assert zero.half()(x.half()).dtype == torch.float16
    if layer == "conv":
        last = x.to(memory_format=torch.channels_last).half()
        assert zero(last).is_contiguous(memory_format=torch.channels_last)


def test_equivalent_forwards_are_replaced_by_what_they_stand_for():
    class Skip:
        equivalent = True

        def __init__(self, layer):
            self.layer = layer

        def __call__(self, x):
            return torch.zeros_like(x)

    net = randomise_(create_backbone("resnet20"))
    block = net.layer1[1]
    for layer, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
        zero_(layer, slice(None), norm)
        layer.forward, norm.forward = Skip(layer), Skip(norm)
    small, _ = check_equal(net, example(net))
    assert isinstance(small.layer1[1].conv1, ZeroConv)
    assert isinstance(net.layer1[1].conv1.forward, Skip)


# --- mutants: wrong rules are noticed ------------------------------------------------------------


def gap(monkeypatch, net, kind, rule):
    """Return whether the last gate refuses what a wrong rule allows."""
    monkeypatch.setitem(RULES, kind, rule)
    plan = make_plan(net, X)
    return bool(plan.notes)


def test_a_sigmoid_said_to_preserve_zero_is_refused(monkeypatch):
    net = randomise_(Fn(lambda m, x: m.b(torch.sigmoid(m.a(x))), a=conv(4, 8), b=conv(8, 4)))
    zero_(net.a, [0, 1])
    assert gap(monkeypatch, net, "sigmoid", Rule.identity())


def test_a_sum_said_to_tie_nothing_is_refused(monkeypatch):
    net = Fn(lambda m, x: m.c(m.a(x) + m.b(x)), a=conv(4, 8), b=conv(4, 8), c=conv(8, 4))
    randomise_(net)
    zero_(net.b, [0, 1])
    assert gap(monkeypatch, net, "add", Rule(pointwise.sum_support, keep_labels))


def test_a_norm_said_to_have_no_shift_is_refused(monkeypatch):
    net = Fn(lambda m, x: m.b(m.n(m.a(x))), a=conv(4, 8), n=nn.BatchNorm2d(8), b=conv(8, 4))
    randomise_(net)
    zero_(net.a, [0, 1])
    assert gap(monkeypatch, net, "batch_norm", Rule(same, norms.channel_norm_labels))


def test_a_max_pool_said_to_read_nothing_is_refused(monkeypatch):
    net = randomise_(Fn(lambda m, x: m.b(F.max_pool2d(m.a(x), 8)), a=conv(4, 8), b=conv(8, 4)))
    wrong = Rule(pooling.pool_support, pooling.pool_labels, lambda *_: {})
    assert gap(monkeypatch, net, "max_pool2d", wrong)
