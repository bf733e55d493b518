"""Recurrent layers, weights stored transposed, and features viewed as maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nets_with_zeros import assert_same, check_equal
from ssl_lightning.compaction import Plan, apply_plan, compact
from ssl_lightning.groups import resolve_groups
from ssl_lightning.prune import prune_
from test_heads import random_

INPUTS, UNITS, PROJECTED = 10, 8, 5
X = torch.randn(2, 7, 6)


class Sequence(nn.Module):
    def __init__(self, kind, read="all", start="none", **settings):
        super().__init__()
        self.hidden_size, self.read, self.start = UNITS, read, start
        self.before = nn.Linear(6, INPUTS)
        self.layer = kind(INPUTS, UNITS, batch_first=True, **settings)
        self.rows = self.layer.num_layers * (1 + self.layer.bidirectional)
        width = (self.layer.proj_size or UNITS) * (1 + self.layer.bidirectional)
        self.out = nn.Linear(width if read != "state" else self.layer.proj_size or UNITS, 3)
        if start == "learned":
            self.first = nn.Parameter(torch.randn(self.rows, 1, UNITS))

    def forward(self, x):
        y = self.before(x)
        if self.start == "none":
            result = self.layer(y)
        else:
            zeros = torch.zeros(self.rows, len(x), self.hidden_size).to(y.dtype)
            given = self.first.expand(-1, len(x), -1) if self.start == "learned" else zeros
            pair = isinstance(self.layer, nn.LSTM)
            result = self.layer(y, (given, given) if pair else given)
        if self.read == "state":
            states = result[1][0] if isinstance(self.layer, nn.LSTM) else result[1]
            return self.out(states[-1])
        return self.out(result[0][:, -1] if self.read == "last" else result[0])


KINDS = [nn.LSTM, nn.GRU, nn.RNN]
SETTINGS = [
    {}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True},
    {"bias": False},
]  # fmt: skip
CASES = [(kind, s, "all") for kind in KINDS for s in SETTINGS]
CASES += [(kind, SETTINGS[3], read) for kind in KINDS for read in ("last", "state")]
CASES += [(nn.RNN, {"nonlinearity": "relu"}, "all")]
CASES += [(nn.LSTM, {"proj_size": PROJECTED, "num_layers": 2}, read) for read in ("all", "state")]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("kind", "settings", "read"), CASES, ids=str)
def test_units_and_inputs_go(kind, settings, read):
    net = random_(Sequence(kind, read, **settings))
    prune_(net, X, fraction=0.5)
    small, plan = check_equal(net, X)
    assert plan.notes == ()
    layer = small.layer
    assert small.before.out_features == layer.input_size == layer.weight_ih_l0.shape[1] < INPUTS
    assert layer.hidden_size == layer.weight_ih_l0.shape[0] // (
        len(net.layer.weight_ih_l0) // UNITS
    )
    assert layer.hidden_size < UNITS
    if "proj_size" in settings:
        assert layer.proj_size < PROJECTED
    full = net.double()
    cut = compact(full, plan)
    for length in (1, 12):
        x = torch.randn(3, length, 6, dtype=torch.float64)
        assert_same(full, cut, x, tolerance=1e-10)
    rebuilt = apply_plan(Sequence(kind, read, **settings), Plan.from_json(plan.to_json()))
    rebuilt.load_state_dict(small.state_dict())
    assert_same(small, rebuilt.eval(), X, tolerance=0.0)
    small.train()(X).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@torch.no_grad()
def zero_candidates_(layer, units):
    """Zero what makes the candidate of some units, and nothing else."""
    gates = len(layer.weight_ih_l0) // UNITS
    for name, p in layer.named_parameters():
        start = {4: 2, 3: 2, 1: 0}[gates] * UNITS
        if "hr" not in name:
            p[[start + unit for unit in units]] = 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", ["none", "zeros", "learned"])
def test_a_unit_whose_candidate_is_zero_goes_if_it_starts_at_zero(kind, start):
    net = random_(Sequence(kind, start=start))
    zero_candidates_(net.layer, [1, 4])
    small, plan = check_equal(net, X)
    if start == "learned":
        assert small.layer.hidden_size == UNITS
        return
    assert small.layer.hidden_size == UNITS - 2
    assert plan.modules["layer"].outputs == (0, 2, 3, 5, 6, 7)
    if start == "zeros":
        assert small.hidden_size == UNITS - 2


def test_inputs_that_no_gate_reads_go():
    net = random_(Sequence(nn.GRU, start="learned"))
    with torch.no_grad():
        net.layer.weight_ih_l0[:, [0, 3]] = 0
    small, _ = check_equal(net, X)
    assert small.before.out_features == small.layer.input_size == INPUTS - 2


def test_a_unit_that_only_dead_units_read_goes():
    net = random_(Sequence(nn.LSTM))
    with torch.no_grad():
        net.out.weight[:, 2] = 0
        net.layer.weight_hh_l0.view(4, UNITS, UNITS)[:, :, 2] = 0
    small, _ = check_equal(net, X)
    assert small.layer.hidden_size == UNITS - 1


def test_layers_of_one_stack_keep_equally_many_units():
    net = random_(Sequence(nn.LSTM, num_layers=2))
    with torch.no_grad():
        for name, p in net.layer.named_parameters():
            units = [0, 1, 2] if name.endswith("l0") else [5]
            p.view(4, UNITS, *p.shape[1:])[:, units] = 0
    small, _ = check_equal(net, X)
    assert small.layer.hidden_size == UNITS - 1


def test_the_convolution_that_feeds_a_recurrent_layer():
    class Crnn(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.layer = nn.LSTM(6 * 4, 5, bidirectional=True, batch_first=True)
            self.out = nn.Linear(10, 3)

        def forward(self, x):
            y = F.relu(self.norm(self.conv(x))).flatten(1, 2).transpose(1, 2)
            return self.out(self.layer(y)[0])

    net, x = random_(Crnn()), torch.zeros(1, 1, 4, 9)
    (set_of_conv, _) = resolve_groups(net, [{"kind": "coupled"}], x)
    assert set_of_conv.name == "conv:coupled"
    prune_(net, x, fraction=0.5)
    small, _ = check_equal(net, x)
    assert small.conv.out_channels < 6
    assert small.layer.input_size == 4 * small.conv.out_channels


def test_states_passed_on_tie_encoder_and_decoder():
    class Seq2Seq(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.GRU(6, UNITS, batch_first=True), nn.GRU(6, UNITS, batch_first=True)
            self.out = nn.Linear(UNITS, 3)

        def forward(self, x):
            return self.out(self.b(x, self.a(x)[1])[0])

    net = random_(Seq2Seq())
    prune_(net, X, fraction=0.5)
    small, _ = check_equal(net, X)
    assert small.a.hidden_size == small.b.hidden_size == UNITS // 2


def test_recurrent_groups():
    (_, units) = resolve_groups(Sequence(nn.LSTM), [{"kind": "coupled"}], X)
    assert (units.name, units.num_groups) == ("layer:coupled", UNITS)
    assert units.group_size == 4 * (INPUTS + UNITS + 2)


class Transposed(nn.Module):
    """A linear layer that holds its weight as (inputs, outputs), as in GPT-2, or as any matrix."""

    def __init__(self, inputs, outputs, how):
        super().__init__()
        self.nx, self.nf, self.how = inputs, outputs, how
        turned = how in ("raw", "einsum rows")
        self.weight = nn.Parameter(
            torch.randn(*((outputs, inputs) if turned else (inputs, outputs)))
        )
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        if self.how == "addmm":
            y = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
            return y.view(*x.shape[:-1], self.nf)
        if self.how in ("raw", "turned"):
            weight = self.weight if self.how == "raw" else self.weight.t()
            return F.linear(x, weight, self.bias)
        if self.how == "einsum":
            return torch.einsum("...i,io->...o", x, self.weight) + self.bias
        if self.how == "einsum rows":
            return torch.einsum("bti,oi->bto", x, self.weight) + self.bias
        if self.how == "left":
            return (self.weight.t() @ x.transpose(1, 2)).transpose(1, 2) + self.bias
        return torch.matmul(x, self.weight) + self.bias


HOW = ["addmm", "matmul", "raw", "turned", "einsum", "einsum rows", "left"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["coupled", "ffn"])
def test_channels_of_stored_matrices_go(how, kind):
    net = nn.Sequential(Transposed(6, 8, how), nn.GELU(), Transposed(8, 3, how))
    random_(net)
    (found,) = resolve_groups(net, [{"kind": kind}], X)
    assert (found.name, found.num_groups, found.group_size) == (f"0:{kind}", 8, 7)
    prune_(net, X, kind=kind, fraction=0.5)
    small, plan = check_equal(net, X)
    assert plan.notes == ()
    assert sorted(small[0].weight.shape) == [4, 6]
    assert sorted(small[2].weight.shape) == [3, 4]
    assert (small[0].nf, small[2].nx) == (4, 4)
    small.train()(X).sum().backward()
    rebuilt = apply_plan(
        nn.Sequential(Transposed(6, 8, how), nn.GELU(), Transposed(8, 3, how)),
        Plan.from_json(plan.to_json()),
    )
    rebuilt.load_state_dict(small.state_dict())
    assert_same(small, rebuilt, X, tolerance=0.0)


def test_a_matrix_that_something_else_reads_stays():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 8))

        def forward(self, x):
            return F.relu(x @ self.weight) @ self.weight.t() * self.weight.sum()

    net = random_(Tied())
    with torch.no_grad():
        net.weight[:, 2] = 0
    small, _ = check_equal(net, X)
    assert small.weight.shape == (6, 8)


def test_a_matrix_read_both_ways_loses_its_middle():
    class Auto(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 8))

        def forward(self, x):
            return F.relu(x @ self.weight) @ self.weight.t()

    net = random_(Auto())
    with torch.no_grad():
        net.weight[:, 2] = 0
    small, _ = check_equal(net, X)
    assert small.weight.shape == (6, 7)


class Gpt(nn.Module):
    """GPT-2's block: one transposed matrix for queries, keys and values, split by a number."""

    def __init__(self):
        super().__init__()
        self.embed_dim = self.split_size = 8
        self.num_heads, self.head_dim = 4, 2
        self.c_attn, self.c_proj = Transposed(8, 24, "addmm"), Transposed(8, 8, "addmm")
        self.c_fc, self.c_out = Transposed(8, 32, "addmm"), Transposed(32, 8, "addmm")
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        causal = torch.ones(32, 32, dtype=torch.bool).tril().view(1, 1, 32, 32)
        self.register_buffer("causal", causal)

    def forward(self, x):
        batch, tokens, _ = x.shape
        parts = self.c_attn(self.norm1(x)).split(self.split_size, dim=2)
        q, k, v = (p.view(batch, tokens, -1, self.head_dim).transpose(1, 2) for p in parts)
        scores = q @ k.transpose(-1, -2) / self.head_dim**0.5
        lowest = torch.full([], torch.finfo(torch.float32).min, dtype=scores.dtype)
        scores = torch.where(self.causal[:, :, :tokens, :tokens], scores, lowest)
        y = (scores.softmax(-1) @ v).transpose(1, 2)
        x = x + self.c_proj(y.reshape(batch, tokens, self.num_heads * self.head_dim))
        return x + self.c_out(F.gelu(self.c_fc(self.norm2(x))))


def test_heads_and_neurons_of_gpt2():
    net, x = random_(nn.Sequential(Gpt(), Gpt())), torch.randn(2, 7, 8)
    prune_(net, x, kind="head", fraction=0.5)
    prune_(net, x, kind="ffn", fraction=0.5)
    small, plan = check_equal(net, x)
    assert plan.notes == ()
    heads = [block.num_heads for block in small]
    assert sum(heads) == 4
    for block, count in zip(small, heads, strict=True):
        assert block.c_attn.weight.shape == (8, 3 * 2 * count)
        assert (block.c_attn.nf, block.split_size) == (6 * count, 2 * count)
        assert block.c_proj.weight.shape == (2 * count, 8)
    assert sum(block.c_fc.weight.shape[1] for block in small) == 32


class Viewed(nn.Module):
    def __init__(self, how, transposed):
        super().__init__()
        self.how, self.channels = how, 8
        self.layer, self.norm = nn.Linear(5, 8 * 16), nn.BatchNorm2d(8)
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.conv, self.unflatten = kind(8, 3, 4, 2, 1), nn.Unflatten(1, (8, 4, 4))

    def forward(self, x):
        y = self.layer(x)
        if self.how == "module":
            y = self.unflatten(y)
        elif self.how == "attribute":
            y = y.view(-1, self.channels, 4, 4)
        elif self.how == "unflatten":
            y = y.unflatten(1, (-1, 4, 4))
        else:
            y = y.reshape(len(x), -1, 4, 4)
        return self.conv(F.relu(self.norm(y)))


@pytest.mark.parametrize("how", ["module", "attribute", "unflatten", "minus one"])
@pytest.mark.parametrize("transposed", [True, False])
def test_features_viewed_as_maps_go_by_channels(how, transposed):
    net, x = random_(Viewed(how, transposed)), torch.randn(2, 5)
    net.norm.running_var.fill_(0.5)
    (found,) = resolve_groups(net, [{"kind": "coupled"}], x)
    assert (found.num_groups, found.group_size) == (8, 16 * 6 + 2)
    prune_(net, x, fraction=0.5)
    small, plan = check_equal(net, x)
    assert plan.notes == ()
    assert small.layer.out_features == 64
    assert small.norm.num_features == small.conv.in_channels == 4
    rebuilt = apply_plan(Viewed(how, transposed), Plan.from_json(plan.to_json()))
    rebuilt.load_state_dict(small.state_dict())
    assert_same(small, rebuilt.eval(), x, tolerance=0.0)


def test_a_plan_for_an_unflatten_needs_the_one_it_was_made_for():
    net, x = random_(Viewed("module", False)), torch.randn(2, 5)
    prune_(net, x, fraction=0.5)
    _, plan = check_equal(net, x)
    other = Viewed("module", False)
    other.unflatten = nn.Unflatten(1, (4, 8, 4))
    with pytest.raises(ValueError, match="expects `unflatten` to make 8 channels"):
        apply_plan(other, plan)


def test_a_packed_sequence_is_no_input_of_an_export():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.GRU(6, UNITS, batch_first=True)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 5]), batch_first=True)
            return nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0]

    with pytest.raises(ValueError, match="Cannot capture Packed"):
        prune_(random_(Packed()), X, fraction=0.5)
