"""Working copies: whatever is done to one, the model does not show it."""

from __future__ import annotations

import random
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune, weight_norm

from ssl_lightning.graph import trace
from ssl_lightning.graph.copies import same_random_state, working_copy


class Caching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.table = {}

    def forward(self, x):
        y = self.conv(x)
        self.table[tuple(y.shape)] = [y.mean(), y]
        return y + self.table[tuple(y.shape)][0]


def test_results_with_a_history_are_copied_without_it():
    net, x = Caching(), torch.randn(2, 3, 4, 4)
    net(x)
    copied = working_copy(net)
    ((_mean, y),) = copied.table.values()
    assert not y.requires_grad
    assert torch.equal(y, net.table[(2, 4, 4, 4)][1])
    assert net.table[(2, 4, 4, 4)][0].grad_fn is not None
    assert copied.conv.weight.requires_grad
    assert copied.conv.weight is not net.conv.weight
    assert torch.equal(copied(x), net(x))


def test_all_tensors_are_converted_also_those_that_are_attributes():
    net, x = Caching(), torch.randn(2, 3, 4, 4)
    net.register_buffer("scale", torch.ones(1))
    net(x)
    copied = working_copy(net, torch.float64)
    assert copied.table[(2, 4, 4, 4)][1].dtype == torch.float64
    assert copied.conv.weight.dtype == copied.scale.dtype == torch.float64
    assert net.table[(2, 4, 4, 4)][1].dtype == net.conv.weight.dtype == torch.float32


def mask(layer):
    return prune.random_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize("wrap", [weight_norm, mask])
def test_weights_that_a_hook_computes(wrap):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(wrap(nn.Linear(3, 4)))
    x = torch.randn(2, 3)
    before = net(x)
    copied = working_copy(net, torch.float64)
    torch.testing.assert_close(copied(x.double()), before.double(), rtol=1e-6, atol=1e-6)
    assert torch.equal(net(x), before)


def test_hooks_see_the_copy_and_collect_in_copies():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    seen, first = [], net[0]
    net[1].register_forward_hook(lambda module, args, out: seen.append(first.weight))
    net(torch.ones(1, 2))
    copied = working_copy(net)
    copied(torch.ones(1, 2))
    copied(torch.ones(1, 2))
    assert len(seen) == 1
    assert seen[0] is net[0].weight
    (hook,) = copied[1]._forward_hooks.values()
    collected = dict(zip(hook.__code__.co_freevars, hook.__closure__, strict=True))["seen"]
    assert collected.cell_contents[-1] is copied[0].weight


def test_a_forward_that_is_a_closure_runs_the_copys_layers():
    net = nn.Sequential(nn.Linear(2, 2))
    layer = net[0]
    net.forward = lambda x: 2 * layer(x)
    copied = working_copy(net)
    with torch.no_grad():
        copied[0].weight.zero_()
        copied[0].bias.zero_()
    assert not copied(torch.ones(1, 2)).any()
    assert net(torch.ones(1, 2)).any()


def test_random_generators_are_as_they_were():
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    def seed():
        torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002

    seed()
    with same_random_state():
        draw(), draw()
    found = draw()
    seed()
    assert found == draw()


class Held(nn.Module):
    """Holds what cannot be copied, by itself and in a list beside a cache."""

    def __init__(self, held):
        super().__init__()
        self.conv, self.held, self.parts = nn.Conv2d(3, 4, 1), held, [{"held": held}, []]

    def forward(self, x):
        self.parts[1].append(x.shape)
        return self.conv(x)


@pytest.mark.parametrize("held", [threading.Lock(), threading.RLock(), (i for i in "ab"), sys])
def test_what_cannot_be_copied_is_shared(held):
    net = Held(held)
    copied = working_copy(net)
    copied(torch.ones(1, 3, 2, 2))
    assert copied.held is copied.parts[0]["held"] is held
    assert net.parts == [{"held": held}, []]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_script_is_refused_with_a_sentence():
    net = nn.Sequential(nn.ReLU(), torch.jit.script(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"expected modules in Python, but `1` is a TorchScript"):
        working_copy(net)


def test_a_network_that_cannot_be_captured_is_one_sentence(capfd):
    class Branching(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum().item() > 0 else x

    with pytest.raises(ValueError, match="Could not guard on data-dependent") as caught:
        trace(Branching(), torch.ones(1, 3))
    assert len(str(caught.value).splitlines()) == 1
    assert "def forward" not in "".join(capfd.readouterr())
