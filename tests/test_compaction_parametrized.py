"""Layers whose weight is computed from others: compacted exactly, zeroed where that is right."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from nets_with_zeros import assert_same
from ssl_lightning.compaction import compact, make_plan
from ssl_lightning.groups import resolve_groups
from ssl_lightning.prune import prune_

X = torch.zeros(1, 8, 20)


def old_weight_norm(layer):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


def masked(layer):
    return prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)


WRAPS = {
    "weight_norm": parametrizations.weight_norm,
    "old_weight_norm": old_weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old_spectral_norm": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "masked": masked,
}


def net_of(name, kind=nn.Conv1d):
    torch.manual_seed(0)
    net = nn.Sequential(WRAPS[name](kind(8, 32, 3)), nn.LeakyReLU(0.1), nn.Conv1d(32, 4, 1))
    return net.eval()


def same_everywhere(net, plan):
    full = plain(net).double()  # constants were rounded in the float32 network
    images = torch.randn(2, 8, 20, dtype=torch.float64)
    assert_same(full, compact(full, plan), images, tolerance=1e-9)


def plain(net):
    from ssl_lightning.graph import make_plain_, working_copy

    return make_plain_(working_copy(net))


@pytest.mark.parametrize("name", WRAPS)
def test_unread_channels_go(name):
    net = net_of(name)
    with torch.no_grad():
        net[2].weight[:, :20] = 0
    images = torch.randn(2, 8, 20)
    before = net(images)
    state = copy.deepcopy(net.state_dict())
    plan = make_plan(net, X)
    small = compact(net, plan)
    assert type(small[0]) is nn.Conv1d
    assert 4 <= small[0].out_channels <= 12  # masks zero further ones
    assert torch.equal(net(images), before)
    assert net.state_dict().keys() == state.keys()
    assert_same(net, small, images, tolerance=1e-5)
    same_everywhere(net, plan)


def test_layers_that_lose_nothing_stay_parametrised():
    net = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 6), nn.Linear(6, 2)
    )
    with torch.no_grad():
        net[2].weight[:, 3:] = 0
    small = compact(net, make_plan(net, torch.zeros(1, 8)))
    assert parametrize.is_parametrized(small[0])
    assert small[1].out_features == 3


@pytest.mark.parametrize("name", ["weight_norm", "old_weight_norm"])
def test_weight_norm_is_pruned(name):
    net = net_of(name)
    prune_(net, X, fraction=0.5)
    net(X)  # old-style hooks compute the weight
    zero = (net[0].weight == 0).flatten(1).all(1)
    assert int(zero.sum()) == 16
    plan = make_plan(net, X)
    assert compact(net, plan)[0].weight.shape == (16, 8, 3)
    same_everywhere(net, plan)


@pytest.mark.parametrize(
    ("name", "kind", "call"),
    [
        ("spectral_norm", nn.Conv1d, r'parametrize.remove_parametrizations\(net\[0\], "weight"\)'),
        ("orthogonal", nn.Conv1d, r'parametrize.remove_parametrizations\(net\[0\], "weight"\)'),
        ("old_spectral_norm", nn.Conv1d, r'remove_spectral_norm\(net\[0\], "weight"\)'),
        ("masked", nn.Conv1d, r'prune.remove\(net\[0\], "weight"\)'),
        ("weight_norm", nn.ConvTranspose1d, r'remove_parametrizations\(net\[0\], "weight"\)'),
    ],
)
def test_what_cannot_be_zeroed_says_which_call_helps(name, kind, call):
    net = net_of(name, kind)
    state = copy.deepcopy(net.state_dict())
    with pytest.warns(UserWarning, match=call):
        report = prune_(net, X, fraction=0.5)
    assert "net[0]" in str(report)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    with pytest.raises(ValueError, match=call):
        resolve_groups(net, [{"kind": "filter", "layers": "0"}], X)
