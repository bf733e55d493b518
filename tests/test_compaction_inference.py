"""The fast form of a network computes the same."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nets_with_zeros import randomise_
from ssl_lightning import (
    ColumnSparseConv2d,
    compact,
    create_backbone,
    for_inference,
    make_plan,
)
from ssl_lightning.compaction.modules import SparseResponseNorm
from ssl_lightning.compaction.sparse import replace_layers
from ssl_lightning.kernels import local_response_norm, max_pool2d

NETWORKS = {
    "lenet": ("lenet", {}),
    "convnet": ("convnet", {}),
    "mlp": ("mlp", {}),
    "caffenet": ("alexnet", {"num_classes": 10}),
    "alexnet": ("alexnet", {"num_classes": 10, "geometry": "torchvision"}),
    "resnet20": ("resnet20", {}),
    "resnet18": ("torchvision:resnet18", {"num_classes": 10}),
    "vgg11_bn": ("torchvision:vgg11_bn", {"num_classes": 10}),
    "mobilenetv2": ("timm:mobilenetv2_100", {"num_classes": 10}),
}
LEFT = {  # ReLUs that are not in a column-sparse convolution or a pooling, and batch norms
    "convnet": (0, 0),
    "caffenet": (2, 0),
    "resnet20": (9, 0),
    "resnet18": (8, 0),
    "vgg11_bn": (2, 0),
    "mobilenetv2": (0, 0),  # its norms hold activations (ReLU6, which is not counted)
}


def sparse_network(name: str, **arguments: object) -> nn.Module:
    """Return a network with random statistics whose convolutions are all column-sparse."""
    net = randomise_(create_backbone(name, **arguments)).eval()
    names = tuple(name for name, m in net.named_modules() if type(m) is nn.Conv2d)
    with torch.no_grad():
        for layer in names:
            net.get_submodule(layer).weight.flatten(1)[:, ::2] = 0
    replace_layers(net, names)
    return net


def count_relus(net: nn.Module) -> int:
    assert isinstance(net, fx.GraphModule)
    modules = dict(net.named_modules())
    called = [modules.get(str(n.target)) for n in net.graph.nodes if n.op == "call_module"]
    targets = [n.target for n in net.graph.nodes]
    return sum(isinstance(m, nn.ReLU) for m in called) + sum(
        t in (F.relu, torch.relu, "relu") for t in targets
    )


def count_norms(net: nn.Module) -> int:
    assert isinstance(net, fx.GraphModule)
    called = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    return called + sum(n.target is F.batch_norm for n in net.graph.nodes)


@pytest.mark.parametrize("key", NETWORKS)
def test_networks_compute_the_same(key):
    name, arguments = NETWORKS[key]
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    net = sparse_network(name, **arguments)
    x = torch.randn(2, *net.input_shape)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.inference_mode():
        fast = for_inference(net, x[:1])
        expected = net(x)
        scale = float(expected.abs().max())
        torch.testing.assert_close(fast(x), expected, rtol=0, atol=1e-5 * scale)
    assert isinstance(fast, fx.GraphModule)
    assert not any(p.requires_grad for p in fast.parameters())
    assert not any(isinstance(m, nn.LocalResponseNorm) for m in fast.modules())
    if key in LEFT:
        assert (count_relus(fast), count_norms(fast)) == LEFT[key]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    again = for_inference(fast, x[:1])
    with torch.inference_mode():
        torch.testing.assert_close(again(x), fast(x), rtol=0, atol=1e-6 * scale)


def test_norms_among_fewer_channels_run_in_the_kernel_too():
    net = create_backbone("alexnet", num_classes=10).eval()
    x = torch.randn(2, 3, 67, 67)
    with torch.no_grad():
        for conv in (net.conv1, net.conv2):
            conv.weight[::3] = 0
            conv.bias[::3] = 0
    small = compact(net, make_plan(net, x[:1]))
    assert sum(isinstance(m, SparseResponseNorm) for m in small.modules()) == 2
    fast = for_inference(small, x[:1])
    assert sum(n.target is local_response_norm for n in fast.graph.nodes) == 2
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(copy.deepcopy(fast)(x), fast(x), rtol=0, atol=0)


def test_dense_layers_keep_relu_and_take_norms():
    net = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout())
    fast = for_inference(randomise_(net), torch.zeros(1, 2, 8, 8))
    kinds = [type(m) for m in fast.children()]
    assert nn.BatchNorm2d not in kinds
    assert count_relus(fast) == 1


def test_norms_of_timm_that_hold_an_activation_are_folded():
    layers = pytest.importorskip("timm.layers")
    shared = layers.BatchNormAct2d(3, act_layer=nn.PReLU)
    watched = layers.BatchNormAct2d(3)
    watched.register_forward_hook(lambda *_: None)
    net = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, bias=False), layers.BatchNormAct2d(3, drop_layer=nn.Dropout)),
        *(nn.Conv2d(3, 3, 1), shared, nn.Conv2d(3, 3, 1), shared),  # called twice
        *(nn.Conv2d(3, 3, 1), watched, nn.Conv2d(3, 3, 1)),
        layers.BatchNormAct2d(3, affine=False, apply_act=False),
    )
    x = torch.randn(2, 2, 8, 8)
    fast = for_inference(randomise_(net).eval(), x[:1])
    kinds = [type(m) for m in fast.modules()]
    assert count_norms(fast) == 1, "that with a hook"
    assert kinds.count(nn.PReLU) == 1
    assert all(type(m) is layers.BatchNormAct2d for m in (net[1], net[3], net[7], net[9]))
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), net(x))


class Reused(nn.Module):
    """One convolution, pooling and norm in several places, and values that several read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ColumnSparseConv2d(4, 4, 3, padding=1, columns=range(0, 36, 2))
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2, 1)
        self.other = ColumnSparseConv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        y = self.conv(x)
        x = self.pool(y) + self.pool(F.relu(y)) - F.max_pool2d(y, 2, stride=1, ceil_mode=True)
        z = self.other(x)
        return z.relu() - z + torch.max_pool2d(z, 1) + F.local_response_norm(z, 3, k=2.0)


class InPlace(nn.Module):
    """ReLU in place on what is still read under another name."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        F.relu(y, inplace=True)
        z = (x * 3).view(x.shape)
        F.relu_(z[:, :1])
        return F.max_pool2d(y, 2) + F.max_pool2d(z, 2)


class Returned(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, index = F.max_pool2d(x, 2, return_indices=True)
        return F.relu(pooled), index


@pytest.mark.parametrize("kind", [Reused, InPlace, Returned])
def test_what_others_read_stays(kind):
    net, x = randomise_(kind()).eval(), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(for_inference(net, x)(x), net(x))


def test_hooks_see_what_they_saw():
    net = nn.Sequential(ColumnSparseConv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2)).eval()
    seen = []
    for layer in net:
        layer.register_forward_hook(lambda _, args, output: seen.append(output))
    x = torch.randn(1, 2, 8, 8)
    fast = for_inference(net, x)
    seen.clear()
    net(x)
    expected = list(seen)
    seen.clear()
    fast(x)
    assert len(seen) == 3
    for a, b in zip(seen, expected, strict=True):
        torch.testing.assert_close(a, b)


class Branching(nn.Module):
    """A network that torch.fx cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ColumnSparseConv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.features(x if x.sum() > 0 else -x))


def test_a_network_that_cannot_be_traced_is_made_faster_in_parts(caplog):
    net, x = randomise_(Branching()).eval(), torch.rand(1, 2, 9, 9)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        fast = for_inference(net, x)
        torch.testing.assert_close(fast(x), net(x))
    assert len(fast.features) == len(net.features)
    assert fast.features[0].get_submodule("0").relu
    assert any(n.target is max_pool2d for n in fast.pool[0].graph.nodes)
    assert caplog.text.count("cannot be traced") == 1


class Peeking(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.features[3](x if x.sum() > 0 else -x))


def test_a_network_that_would_change_stays(caplog):
    net, x = Peeking().eval(), torch.rand(1, 2, 9, 9)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        fast = for_inference(net, x)
        torch.testing.assert_close(fast(x), net(x))
    assert "is unchanged for inference" in caplog.text
    assert type(fast) is Peeking


def test_the_fast_form_is_exported_copied_and_compiled():
    net = sparse_network("lenet")
    x = torch.randn(2, 1, 28, 28)
    fast = for_inference(net, x)
    program = torch.export.export(fast, (x,))
    assert "ssl_lightning.max_pool2d.default" in {str(n.target) for n in program.graph.nodes}
    with torch.no_grad():
        compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
        for other in (program.module(), copy.deepcopy(fast), compiled):
            torch.testing.assert_close(other(x), net(x))
