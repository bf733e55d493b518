"""Networks that are analysed on smaller maps than those of the example: the same is removed.

A few run with all tests, all of them with ``make test-zoo-matrix``.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nets_with_zeros import assert_same, zero_randomly_
from ssl_lightning import compact, make_plan, prune_
from ssl_lightning.compaction import planning
from ssl_lightning.compaction.gate import open_gate
from ssl_lightning.compaction.planning import first_trace
from ssl_lightning.graph import (
    analyse,
    as_inputs,
    is_same_everywhere,
    may_be_same_everywhere,
    trace,
    with_plain_weights,
    working_copy,
)
from zoo_matrix import ARCHITECTURES, NOT_TRACED, network

QUICK = ["torchvision:mobilenet_v3_small", "torchvision:densenet121", "timm:resnet18"]
NAMES = [name for name in ARCHITECTURES if name not in NOT_TRACED]
CHOSEN = NAMES if "SSL_ZOO_MATRIX" in os.environ else QUICK
EXAMPLE = torch.zeros(1, 3, 160, 160)


def analysed(net, x):
    """What the analysis of the trace that plans are made of says, and that of the example's."""
    double = with_plain_weights(working_copy(net, torch.float64))
    chosen = first_trace(double, open_gate(net, as_inputs(x)))
    return chosen, analyse(double, chosen), analyse(double, trace(double, x.double()))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, slices in found.items():
        torch.testing.assert_close(slices.constants, expected[name].constants)
        assert replace(slices, constants=()) == replace(expected[name], constants=())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["coupled", "uncoupled"])
@pytest.mark.parametrize("name", CHOSEN)
def test_the_same_is_removed_as_on_the_example(name, way):
    net, _ = network(name)
    if not may_be_same_everywhere(net):
        pytest.skip("its parameters know positions: it is analysed on the example")
    if way == "coupled":
        prune_(net, EXAMPLE, fraction=0.4)
    else:
        zero_randomly_(net, EXAMPLE, 0.4, norms=False)
    chosen, found, expected = analysed(net, EXAMPLE)
    assert "SSL_ZOO_MATRIX" in os.environ or next(iter(chosen.inputs.values())).shape[-1] < 160
    assert any(slices.shrinks() for slices in found.values())
    assert_equal(found, expected)


class Net(nn.Module):
    """A convolution with two filters that are zero, and what a function makes of its map."""

    def __init__(self, function, **parts):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.function = nn.Conv2d(3, 6, 3, padding=1), function
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)
        with torch.no_grad():
            for parameter in self.first.parameters():
                parameter[[1, 4]] = 0

    def forward(self, x):
        return self.function(self, self.first(x))


def shifted(net, x):
    """Reads a map far to the right of where it writes: on small maps there is nothing."""
    return net.second(F.pad(x[..., 90:], (0, 90))).mean((2, 3))


def striped(net, x):
    """Multiplies by a stored map of which one row is not zero, which small maps miss."""
    return net.second(x * F.interpolate(net.map, x.shape[-2:])).mean((2, 3))


def branching(net, x):
    """Has another layer for large maps."""
    return (net.second(x) if x.shape[-1] > 100 else net.third(x)).mean((2, 3))


def switched(net, x):
    """Adds another layer's result for large maps, without a branch."""
    return (net.second(x) + (x.shape[-1] > 100) * net.third(x)).mean((2, 3))


def padded(net, x):
    """Reads the padding alone where maps are small."""
    return net.second(F.max_pool2d(x, 32)).mean((2, 3))


def sampled(net, x):
    """Reads one position in 64, which is padding where maps are small."""
    return net.second(net.third(x)).mean((2, 3))


ROW = torch.zeros(1, 1, 100, 100)
ROW[..., 33, :] = 1
KNOWS_POSITIONS = {
    "shifted": lambda: Net(shifted, second=nn.Conv2d(6, 4, 1)),
    "striped": lambda: Net(striped, second=nn.Conv2d(6, 4, 1), map=ROW),
    "branching": lambda: Net(branching, second=nn.Conv2d(6, 4, 3), third=nn.Conv2d(6, 4, 1)),
    "padded": lambda: Net(padded, second=nn.Conv2d(6, 4, 1, stride=2, padding=1)),
    "sampled": lambda: Net(
        sampled, second=nn.Conv2d(5, 4, 1, stride=64), third=nn.Conv2d(6, 5, 1, padding=1)
    ),
    "dilated": lambda: Net(padded, second=nn.Conv2d(6, 4, 2, dilation=8, padding="same")),
}


@pytest.mark.parametrize("name", KNOWS_POSITIONS)
def test_what_knows_positions_is_analysed_on_the_example(name):
    net = KNOWS_POSITIONS[name]().eval()
    chosen, found, expected = analysed(net, EXAMPLE)
    assert next(iter(chosen.inputs.values())).shape == EXAMPLE.shape
    assert_equal(found, expected)
    assert make_plan(net, EXAMPLE).modules["first"].outputs == (0, 2, 3, 5)


def test_what_the_last_gate_refuses_is_analysed_on_the_example():
    """The number that the size is compared with is no part of the trace."""
    net = Net(switched, second=nn.Conv2d(6, 4, 1), third=nn.Conv2d(6, 4, 3, padding=1)).eval()
    chosen, _, expected = analysed(net, EXAMPLE)
    assert next(iter(chosen.inputs.values())).shape != EXAMPLE.shape
    assert_equal(make_plan(net, EXAMPLE).modules, expected)
    assert expected["first"].outputs == (0, 2, 3, 5)


def test_what_is_only_captured_at_the_examples_size(monkeypatch):
    def fails(model, inputs, **settings):
        if as_inputs(inputs).tensors()[0].shape != EXAMPLE.shape:
            raise ValueError("not at this size")
        return trace(model, inputs, **settings)

    monkeypatch.setattr(planning, "trace", fails)
    net = Net(padded, second=nn.Conv2d(6, 4, 1)).eval()
    assert make_plan(net, EXAMPLE).modules["first"].outputs == (0, 2, 3, 5)


def far(net, x):
    """Reads what is right of 50 pixels, which the example does not have."""
    return net.head(x.mean((2, 3))) + net.second(x)[..., 50:].sum((2, 3))


def far_of_pooled(net, x):
    return net.head(F.max_pool2d(x, 32).mean((2, 3))) + net.second(x)[:, :, 50:].sum((2, 3))


def wide(net, x):
    return net.head(x.mean((2, 3))) + net.second(x)[..., 300:].sum((2, 3))


def high(net, x):
    return net.head(x.mean((2, 3))) + net.second(x)[:, :, 300:].sum((2, 3))


@pytest.mark.parametrize(
    ("function", "size"), [(far, 32), (far_of_pooled, 32), (wide, 160), (high, 160)]
)
def test_what_only_larger_maps_have_is_retained(function, size):
    net = Net(function, head=nn.Linear(6, 4), second=nn.Conv2d(6, 4, 1)).eval().double()
    small = compact(net, make_plan(net, torch.zeros(1, 3, size, size)))
    assert_same(net, small, torch.randn(2, 3, 2 * size, 2 * size).double(), tolerance=1e-9)


def with_auxiliary(net, x):
    """Has another output in training, for large maps."""
    y = net.second(x).mean((2, 3))
    return (y, net.third(x).mean((2, 3))) if net.training and x.shape[-1] > 100 else (y,)


def test_paths_for_training_are_run_at_the_examples_size():
    net = Net(with_auxiliary, second=nn.Conv2d(6, 4, 1), third=nn.Conv2d(6, 4, 3))
    small = compact(net, make_plan(net, EXAMPLE))
    assert small.third.in_channels == 4
    assert len(small.train()(EXAMPLE)) == 2


def test_an_example_of_small_maps_is_analysed_as_it_is():
    net, x = network("timm:resnet18")
    prune_(net, x, fraction=0.4)
    chosen, _, _ = analysed(net, x)
    assert next(iter(chosen.inputs.values())).shape == x.shape


def test_a_chain_of_such_operations_is_the_same_everywhere():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish(), nn.MaxPool2d(2))
    assert is_same_everywhere(trace(net.eval(), EXAMPLE))
    assert not is_same_everywhere(trace(nn.Sequential(net, nn.Flatten(2), nn.Softmax(2)), EXAMPLE))
