"""Layers are found through their parameters, whatever the export calls their modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nets_with_zeros import check_equal, randomise_
from ssl_lightning.prune import prune_
from toy import Fn

X = torch.zeros(1, 3, 8, 8)


class Block(nn.Module):
    def __init__(self, inputs, outputs, act):
        super().__init__()
        self.conv, self.norm, self.act = (
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            act,
        )

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


def blocks(kind=nn.Sequential):
    act = nn.SiLU()
    layers = [Block(3, 16, act), Block(16, 24, act), Block(24, 8, act)]
    return kind(*layers) if kind is nn.Sequential else kind(layers)


def run(layers, x):
    for layer in layers:
        x = layer(x)
    return x


class InList(nn.Module):
    """Layers of which plain containers hold some."""

    def __init__(self, container):
        super().__init__()
        self.layers, self.out = blocks(nn.ModuleList), nn.Conv2d(8, 2, 1)
        self.held = container(list(self.layers))

    def forward(self, x):
        held = self.held.values() if isinstance(self.held, dict) else self.held
        return self.out(run(held, x))


def twice_named():
    net = Fn(lambda m, x: m.out(run(m.again, x)), layers=blocks(), out=nn.Conv2d(8, 2, 1))
    net.again = net.layers
    return net


def functional():
    def forward(m, x):
        x = F.relu(F.conv2d(x, m.a.weight, m.a.bias, padding=1))
        x = F.batch_norm(x, m.n.running_mean, m.n.running_var, m.n.weight, m.n.bias)
        x = F.prelu(F.conv_transpose2d(x, m.b.weight, m.b.bias), m.p.weight)
        return F.linear(x.mean((2, 3)), m.c.weight, m.c.bias)

    return Fn(
        forward,
        a=nn.Conv2d(3, 16, 3),
        n=nn.BatchNorm2d(16),
        b=nn.ConvTranspose2d(16, 12, 2),
        p=nn.PReLU(12),
        c=nn.Linear(12, 4),
    )


NETS = {
    "sliced": lambda: Fn(
        lambda m, x: m.out(m.layers[-1](run(m.layers[:-1], x))),
        layers=blocks(),
        out=nn.Conv2d(8, 2, 1),
    ),
    "called_slice": lambda: Fn(
        lambda m, x: m.out(m.layers[1:](m.layers[:1](x))), layers=blocks(), out=nn.Conv2d(8, 2, 1)
    ),
    "slice_of_list": lambda: Fn(
        lambda m, x: m.out(run(m.layers[1:], m.layers[0](x))),
        layers=blocks(nn.ModuleList),
        out=nn.Conv2d(8, 2, 1),
    ),
    "plain_list": lambda: InList(list),
    "plain_tuple": lambda: InList(tuple),
    "plain_dict": lambda: InList(lambda layers: dict(enumerate(layers))),
    "two_names": twice_named,
    "functional": functional,
}


@pytest.mark.parametrize("name", NETS)
def test_layers_are_found(name):
    torch.manual_seed(0)
    net = randomise_(NETS[name]()).eval()
    report = prune_(net, X, fraction=0.5)
    assert report.total[1] == (28 if name == "functional" else 48)
    small, plan = check_equal(net, X)
    sizes = [sum(p.numel() for p in n.parameters()) for n in (net, small)]
    assert sizes[1] < 0.5 * sizes[0], plan.explain()


@pytest.mark.parametrize("container", [list, tuple, lambda layers: dict(enumerate(layers))])
def test_layers_that_are_replaced_are_so_in_plain_containers(container):
    torch.manual_seed(0)
    net = randomise_(InList(container)).eval()
    with torch.no_grad():
        net.layers[1].conv.weight.zero_()
    small, plan = check_equal(net, X)
    assert plan.modules["layers.1.conv"].constant or plan.modules["layers.1.conv"].zero
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


def test_a_layer_called_as_a_function_is_never_replaced():
    torch.manual_seed(0)
    net = randomise_(functional()).eval()
    with torch.no_grad():
        net.a.weight.zero_()
    small, _ = check_equal(net, X)
    assert type(small.a) is nn.Conv2d
