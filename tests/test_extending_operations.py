"""Operations and layers of the user's own, with public names only: trained, compacted, exact."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ssl_lightning import (
    Inputs,
    Regularizer,
    Rule,
    compact,
    load_compact,
    make_plan,
    prune_,
    register_rule,
    register_shrinker,
    save_compact,
)
from ssl_lightning.compaction import expand, slice_optimizer_
from ssl_lightning.graph import trace

X = torch.zeros(1, 3, 8, 8)


# --- the user's own layer and operation: what the examples add ------------------------------------


class GatedConv(nn.Module):
    """A 1x1 convolution with a gate for each output, a parameter of its own."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel = nn.Parameter(torch.randn(in_channels, out_channels) * 0.3)
        self.shift = nn.Parameter(torch.randn(out_channels) * 0.1)
        self.gate = nn.Parameter(torch.randn(out_channels))

    def forward(self, x):
        assert x.shape[1] == self.in_channels
        y = torch.einsum("nihw,io->nohw", x, self.kernel) + self.shift.view(-1, 1, 1)
        return y * torch.sigmoid(self.gate).view(self.out_channels, 1, 1)


GATED = {
    "outputs": {"kernel": 1, "shift": 0, "gate": 0},
    "inputs": {"kernel": 0},
    "counts": {"in_channels": "inputs", "out_channels": "outputs"},
    "written": ["kernel", "shift"],
}


class Affine(nn.Module):
    """A scale and a shift of each channel, applied by a view that only fits their number."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.scale = nn.Parameter(torch.rand(channels) + 0.5)
        self.shift = nn.Parameter(torch.randn(channels))

    def forward(self, x):
        rows = x.reshape(len(x), self.channels, -1)
        return torch.addcmul(self.shift[:, None], rows, self.scale[:, None]).view_as(x)


AFFINE = {"outputs": {"scale": 0, "shift": 0}, "counts": {"channels": "outputs"}}


@torch.library.custom_op("ssl_tests::sway", mutates_args=())
def sway(x: torch.Tensor) -> torch.Tensor:
    return x * torch.special.erfc(x)


sway.register_fake(torch.empty_like)
sway.register_autograd(
    lambda ctx, g: (
        g * (torch.special.erfc(ctx.x) - 2 * ctx.x * (-(ctx.x**2)).exp() / torch.pi**0.5)
    ),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "x", inputs[0]),
)


@torch.library.custom_op("ssl_tests::turn", mutates_args=())
def turn(x: torch.Tensor) -> torch.Tensor:
    return x.flip(3).transpose(2, 3).contiguous()


turn.register_fake(lambda x: x.new_empty((*x.shape[:2], x.shape[3], x.shape[2])))


class Smooth(nn.Module):
    """A mean over neighbours, each channel alone: a module without parameters."""

    def forward(self, x):
        return x.cumsum(2) / (1 + torch.arange(x.shape[2], dtype=x.dtype).view(-1, 1))


class Net(nn.Module):
    def __init__(self, middle: nn.Module, operation=torch.relu) -> None:
        super().__init__()
        self.a, self.middle, self.b = nn.Conv2d(3, 12, 3, padding=1), middle, nn.Conv2d(12, 4, 1)
        self.operation = operation

    def forward(self, x):
        return self.b(self.operation(self.middle(self.operation(self.a(x))))).mean((2, 3))


# --- helpers --------------------------------------------------------------------------------------


def trained(net: nn.Module, **strengths: float) -> nn.Module:
    """Train a few steps under strong penalties on the groups of layers, so that some are zero."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, *X.shape[1:], generator=generator)
    penalties = [
        {"kind": "coupled", "layers": name, "strength": value} for name, value in strengths.items()
    ]
    regularizer = Regularizer(net, penalties, example_input=X)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    regularizer.attach(sgd)
    for _ in range(12):
        sgd.zero_grad()
        net(x).square().mean().backward()
        sgd.step()
    return net.eval()


@torch.no_grad()
def zeroed(net: nn.Module, layers: list[str], count: int = 5) -> nn.Module:
    for name in layers:
        for tensor in net.get_submodule(name).parameters():
            dim = 1 if name == "middle" and tensor.dim() == 2 else 0
            tensor.index_fill_(dim, torch.arange(count), 0)
    return net.eval()


def check_exact(net: nn.Module) -> nn.Module:
    """Compact in float64; the same function, smaller; return the compact network."""
    net = net.double()
    before = copy.deepcopy(net.state_dict())
    small = compact(net, make_plan(net, X.double()))
    x = torch.randn(3, 3, 10, 8, dtype=torch.float64)
    torch.testing.assert_close(net(x), small(x), atol=1e-12, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    count = [sum(p.numel() for p in m.parameters()) for m in (net, small)]
    assert count[1] < count[0]
    return small


# --- a layer --------------------------------------------------------------------------------------


def test_a_layer_of_ones_own_is_trained_sparse_and_shrunk():
    torch.manual_seed(0)
    with register_shrinker(GatedConv, **GATED):
        small = check_exact(trained(Net(GatedConv(12, 12)), a=0.09, middle=0.2))
    kept = small.middle
    assert kept.kernel.shape == (small.a.out_channels, small.b.in_channels)
    assert len(kept.shift) == len(kept.gate) == kept.out_channels == small.b.in_channels
    assert kept.in_channels == small.a.out_channels
    assert 1 < kept.in_channels < 12
    assert 1 < kept.out_channels < 12


def test_a_layer_on_each_channel_alone_is_shrunk_with_its_channels():
    torch.manual_seed(0)
    with register_shrinker(Affine, **AFFINE):
        small = check_exact(trained(Net(Affine(12)), a=0.2))
    assert small.middle.channels == len(small.middle.shift) == small.a.out_channels
    assert 1 < small.middle.channels < 12


def test_constants_pass_a_layer_on_each_channel_alone():
    torch.manual_seed(0)
    net = zeroed(Net(Affine(12)), ["a"])
    with register_shrinker(Affine, **AFFINE):
        assert check_exact(net).middle.channels == 7


def test_without_registration_nothing_is_removed_and_nothing_fails():
    net = zeroed(Net(Affine(12)), ["a", "middle"])
    assert len(make_plan(net, X).modules["a"].outputs) == 12


def test_a_channel_that_only_zero_weights_read_is_removed():
    net = Net(GatedConv(12, 12)).eval()
    with torch.no_grad():
        net.middle.kernel[:4] = 0
    with register_shrinker(GatedConv, **GATED):
        assert check_exact(net).a.out_channels == 8


def test_a_layer_that_runs_twice_is_tied():
    class Twice(Net):
        def forward(self, x):
            return self.b(self.middle(self.middle(self.a(x)))).mean((2, 3))

    net = Twice(GatedConv(12, 12))
    with register_shrinker(GatedConv, **GATED):
        assert len(trace(net, X).ops) == 5
        small = check_exact(zeroed(net, ["a", "middle"]))
    assert small.middle.kernel.shape == (7, 7)


def test_what_is_no_such_layer_is_not_taken_for_one():
    class Two(GatedConv):
        def forward(self, x, y):
            return super().forward(x) + y

    class Holds(GatedConv):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.act = nn.Softplus()

        def forward(self, x):
            return self.act(super().forward(x))

    class Both(Net):
        def forward(self, x):
            y = self.a(x)
            z = self.middle(y, y) if isinstance(self.middle, Two) else self.middle(y)
            return self.b(z).mean((2, 3))

    for kind in (Two, Holds):
        with register_shrinker(kind, **GATED):
            net = zeroed(Both(kind(12, 12)), ["a", "middle"]).double()
            small = compact(net, make_plan(net, X.double()))
            x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
            torch.testing.assert_close(net(x), small(x), atol=1e-12, rtol=0)


# --- an operation ---------------------------------------------------------------------------------


def test_an_operation_of_ones_own_is_trained_sparse_and_passed():
    torch.manual_seed(0)
    with register_rule(sway, Rule.pointwise()):
        net = Net(nn.Conv2d(12, 12, 3, padding=1), sway)
        small = check_exact(trained(net, a=0.09, middle=0.045))
    assert 1 < small.a.out_channels < 12
    assert 1 < small.middle.out_channels < 12


def test_a_module_without_parameters_is_one_operation():
    net = zeroed(Net(Smooth()), ["a"])
    assert len(make_plan(net, X).modules["a"].outputs) == 12
    with register_rule(Smooth, Rule.by_channel()):
        assert check_exact(net).a.out_channels == 7


def test_an_operation_that_moves_elements_needs_no_gradient():
    net = zeroed(Net(nn.Conv2d(12, 12, 1), turn), ["a", "middle"])
    with register_rule("ssl_tests::turn", Rule.moving()):
        small = check_exact(net)
    assert (small.a.out_channels, small.middle.out_channels) == (7, 7)


def test_an_operation_can_have_the_rule_of_a_built_in_one():
    net = zeroed(Net(nn.Conv2d(12, 12, 1), sway), ["a", "middle"])
    with register_rule(sway, "relu"):
        assert check_exact(net).a.out_channels == 7


def test_an_operation_of_another_library_is_not_taken_for_torchs():
    @torch.library.custom_op("ssl_tests::relu", mutates_args=())
    def relu(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    relu.register_fake(torch.empty_like)
    net = zeroed(Net(nn.Conv2d(12, 12, 1), relu), ["a", "middle"])
    assert "ssl_tests::relu" in {op.kind for op in trace(net, X).ops}
    assert len(make_plan(net, X).modules["a"].outputs) == 12


# --- wrong rules are refused ----------------------------------------------------------------------


def wrong_cases():
    sum_of_all = type("SumOfAll", (nn.Module,), {"forward": lambda self, x: x + x.sum(1)[:, None]})
    cosine = Net(nn.Conv2d(12, 12, 1), torch.cos)
    yield cosine, lambda: register_rule("cos", Rule.identity(), replace=True), "`cos`"
    kind = Net(sum_of_all())
    yield kind, lambda: register_rule(sum_of_all, Rule.by_channel()), "SumOfAll`"
    turned = {**GATED, "outputs": {**GATED["outputs"], "kernel": 0}, "inputs": {"kernel": 1}}
    gated = Net(GatedConv(12, 12))
    yield gated, lambda: register_shrinker(GatedConv, **turned), "`middle`"
    counts = {**GATED, "counts": {"out_channels": "outputs"}}
    yield gated, lambda: register_shrinker(GatedConv, **counts), "`middle`"
    missing = {**GATED, "outputs": {"kernel": 1, "gate": 0}, "written": ["kernel"]}
    yield gated, lambda: register_shrinker(GatedConv, **missing), "`middle`"


@pytest.mark.parametrize("number", range(5))
def test_a_wrong_rule_is_refused_by_name_and_the_network_is_unchanged(number):
    net, register, named = list(wrong_cases())[number]
    net = zeroed(net, ["a", *(["middle"] if list(net.middle.parameters()) else [])])
    before, classes = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()]
    match = f"make_plan: the rule registered for .*{named}"
    with register(), pytest.raises(ValueError, match=match):
        make_plan(net, X)
    assert [type(m) for m in net.modules()] == classes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_of_two_rules_the_wrong_one_is_named():
    net = zeroed(Net(Smooth(), torch.cos), ["a"])
    with register_rule(Smooth, Rule.by_channel()), register_rule("cos", "relu", replace=True):
        plan = make_plan(net, X)  # it asks what becomes of 0
        assert len(plan.modules["a"].outputs) == 12
    with (
        register_rule(Smooth, Rule.by_channel()),
        register_rule("cos", Rule.identity(), replace=True),
        pytest.raises(ValueError, match="registered for `cos` is wrong"),
    ):
        make_plan(net, X)


def test_a_right_rule_is_not_blamed_for_sizes_in_the_code():
    class Sized(Net):
        def forward(self, x):
            y = self.operation(self.a(x)).view(len(x), 12, -1)
            return self.b(y.unflatten(2, (8, -1))).mean((2, 3))

    for operation in (sway, Smooth()):
        net = zeroed(Sized(nn.Identity(), operation), ["a"])
        with register_rule(sway, Rule.pointwise()), register_rule(Smooth, Rule.by_channel()):
            plan = make_plan(net, X)
        assert len(plan.modules["a"].outputs) == 12
        assert "sizes are fixed by the code" in plan.notes[-1]


def test_optimizer_state_and_the_masked_network_follow():
    with register_shrinker(GatedConv, **GATED):
        net = zeroed(Net(GatedConv(12, 12)), ["a", "middle"])
        sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        net(torch.randn(2, 3, 8, 8)).sum().backward()
        sgd.step()
        zeroed(net, ["a", "middle"])
        plan = make_plan(net, X, constants=False)
        small = compact(net, plan)
        momentum = sgd.state[net.middle.kernel]["momentum_buffer"]
        slice_optimizer_(sgd, net, plan, small)
        masked = expand(small, net, plan)
    assert torch.equal(sgd.state[small.middle.kernel]["momentum_buffer"], momentum[5:, 5:])
    assert torch.equal(masked.middle.kernel[5:, 5:], net.middle.kernel[5:, 5:])


# --- registering ----------------------------------------------------------------------------------


def test_registering_twice_or_a_built_in_name_is_refused():
    with register_rule(sway, Rule.pointwise()):
        with pytest.raises(ValueError, match="the name 'ssl_tests::sway' already means"):
            register_rule(sway, Rule.unknown())
        with register_rule(sway, Rule.unknown(), replace=True):
            pass
    for name in ("relu", torch.ops.aten.relu.default):
        with pytest.raises(ValueError, match="the name 'relu' already means"):
            register_rule(name, Rule.identity())
    with pytest.raises(ValueError, match="LocalResponseNorm` is a layer that this library knows"):
        register_rule(nn.LocalResponseNorm, Rule.identity())
    with pytest.raises(ValueError, match="Conv2d` is a layer that this library knows"):
        register_shrinker(nn.Conv2d, **GATED)
    other = {**AFFINE, "channel_dim": 2}
    with register_shrinker(Affine, **AFFINE), pytest.raises(ValueError, match="already means"):
        register_shrinker(Affine, **other)


def test_undoing_restores_what_was_there():
    net = zeroed(Net(nn.Conv2d(12, 12, 1), sway), ["a", "middle"])
    outer = register_rule(sway, Rule.pointwise())
    with register_rule(sway, Rule.unknown(), replace=True):
        assert len(make_plan(net, X).modules["a"].outputs) == 12
    assert len(make_plan(net, X).modules["a"].outputs) == 7
    outer.undo()
    outer.undo()
    assert len(make_plan(net, X).modules["a"].outputs) == 12


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: register_rule("rleu", Rule.identity()), "or a type of module, got 'rleu'"),
        (lambda: register_rule(sway, "rleu"), "Did you mean relu"),
        (lambda: register_rule(3, Rule.identity()), "got 3"),
        (lambda: register_rule(int, Rule.identity()), "expected a subclass of torch.nn.Module"),
        (lambda: register_shrinker("Affine", outputs={"scale": 0}), "expected a subclass"),
        (lambda: register_shrinker(Affine, outputs={}), "expected tensors in `outputs`"),
        (
            lambda: register_shrinker(Affine, outputs={"scale": 0}, written=["shift"]),
            "some of them in `written`",
        ),
        (
            lambda: register_shrinker(Affine, outputs={"scale": 0}, counts={"channels": "both"}),
            "'inputs' or 'outputs' in `counts`, got 'both'",
        ),
    ],
)
def test_a_wrong_argument_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.filterwarnings("ignore:prune_. Net has no coupled groups")
def test_dimensions_that_do_not_fit_the_layer_are_named_in_the_report():
    net = zeroed(Net(GatedConv(12, 6)), ["a"])
    net.b = nn.Conv2d(6, 4, 1)
    with register_shrinker(GatedConv, outputs={"kernel": 0, "gate": 0}, inputs={"kernel": 1}):
        plan = make_plan(net, X)
        retained = prune_(net, X, fraction=0.3).retained["middle"]
    assert len(plan.modules["a"].outputs) == 12
    assert "rule failed" in plan.modules["a"].reason
    assert "expected the output dimensions {'kernel': 0, 'gate': 0} of GatedConv" in retained


def test_a_compact_network_with_own_layers_is_stored_and_loaded(tmp_path):
    with register_shrinker(GatedConv, **GATED):
        net = zeroed(Net(GatedConv(12, 12)), ["a", "middle"])
        plan = make_plan(net, Inputs(X))
        small = compact(net, plan)
        save_compact(tmp_path, small, plan, "own.Net", {})
        again = load_compact(tmp_path, model=Net(GatedConv(12, 12)))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.eval()(x), small(x))
