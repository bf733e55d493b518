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

from nets_with_zeros import randomise_, zero_randomly_
from ssl_lightning import make_plan, prune_
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


class Shifted(nn.Module):
    """Reads a map far to the right of where it writes: on small maps there is nothing."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.first(x)
        return self.second(F.pad(x[..., 90:], (0, 90))).mean((2, 3))


class Striped(nn.Module):
    """Adds a parameter that is stretched to the size of the map."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)
        self.map = nn.Parameter(torch.randn(1, 6, 4, 4))

    def forward(self, x):
        x = self.first(x)
        return self.second(x + F.interpolate(self.map, x.shape[-2:])).mean((2, 3))


class Branching(nn.Module):
    """Has another layer for large maps."""

    def __init__(self):
        super().__init__()
        self.first, self.large = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.small = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.first(x)
        return (self.large(x) if x.shape[-1] > 100 else self.small(x)).mean((2, 3))


@pytest.mark.parametrize("kind", [Shifted, Striped, Branching])
def test_what_knows_positions_is_analysed_on_the_example(kind):
    torch.manual_seed(0)
    net = randomise_(kind()).eval()
    with torch.no_grad():
        for p in net.first.parameters():
            p[[1, 4]] = 0
        if kind is Striped:
            net.map[:, [1, 4]] = 0
    chosen, found, expected = analysed(net, EXAMPLE)
    assert next(iter(chosen.inputs.values())).shape == EXAMPLE.shape
    assert_equal(found, expected)
    assert make_plan(net, EXAMPLE).modules["first"].outputs == (0, 2, 3, 5)


def test_an_example_of_small_maps_is_analysed_as_it_is():
    net, x = network("timm:resnet18")
    prune_(net, x, fraction=0.4)
    chosen, _, _ = analysed(net, x)
    assert next(iter(chosen.inputs.values())).shape == x.shape


def test_a_chain_of_such_operations_is_the_same_everywhere():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish(), nn.MaxPool2d(2))
    assert is_same_everywhere(trace(net.eval(), EXAMPLE))
    assert not is_same_everywhere(trace(nn.Sequential(net, nn.Flatten(2), nn.Softmax(2)), EXAMPLE))
