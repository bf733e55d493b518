"""Operations between layers, each with random numbers: what is zero goes, and the rest is exact."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from nets_with_zeros import check_equal, randomise_
from ssl_lightning.prune import prune_
from toy import Fn

IMAGES, SOUND, VOLUME = (torch.zeros(1, 3, *[9] * n) for n in (2, 1, 3))
TOKENS = torch.zeros(1, 7, 3)


class Affine(nn.Module):
    """Scale and shift per channel, parameters or buffers of any shape."""

    def __init__(self, shape, buffers):
        super().__init__()
        for name in ("scale", "shift"):
            tensor = torch.ones(shape)
            if buffers:
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x):
        return x * self.scale + self.shift


class OwnNorm(nn.Module):
    """A batch norm written with the function, around parameters and buffers of its own."""

    def __init__(self, channels):
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.randn(channels)) for _ in range(2))
        self.register_buffer("mean", torch.randn(channels))
        self.register_buffer("var", torch.rand(channels) + 0.5)
        self.slope = nn.Parameter(torch.rand(channels))

    def forward(self, x):
        x = F.batch_norm(x, self.mean, self.var, self.gamma, self.beta)
        return F.prelu(x, self.slope)


def between(conv, *layers, channels=12, rank=2):
    """Return two layers with others between them."""
    kind = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
    given = {} if rank == 0 else {"kernel_size": 3, "padding": 1}
    first = kind(3, channels, **given) if conv is None else conv
    return nn.Sequential(first, *layers, nn.ReLU(), kind(channels, 4, **given))


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def unpooled(x):
    return F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=x.shape[2:])


def added_up(m, x):
    return m.out((m.a(x) * m.b(x)).sum(1, keepdim=True))


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def unet():
    return Fn(
        lambda m, x: m.out(torch.cat([m.up(F.relu(m.down(m.stem(x)))), m.stem(x)], 1)),
        stem=nn.Conv2d(3, 8, 3, padding=1),
        down=nn.Conv2d(8, 16, 3, stride=2, padding=1),
        up=nn.ConvTranspose2d(16, 24, 3, stride=2, padding=1),
        out=nn.Conv2d(32, 2, 1),
    )


def deconv(kind, groups=1, outputs=12):
    stem = getattr(nn, kind.__name__.replace("Transpose", ""))(3, 12, 1)
    return nn.Sequential(
        stem, kind(12, outputs, 3, stride=2, groups=groups), nn.ReLU(), kind(outputs, 4, 1)
    )


NETS = {
    "convtranspose1d": (lambda: deconv(nn.ConvTranspose1d), SOUND),
    "convtranspose2d_wide": (lambda: deconv(nn.ConvTranspose2d, outputs=30), IMAGES),
    "convtranspose3d": (lambda: deconv(nn.ConvTranspose3d), VOLUME),
    "convtranspose_groups": (lambda: deconv(nn.ConvTranspose2d, 3, 18), IMAGES),
    "convtranspose_depthwise": (lambda: deconv(nn.ConvTranspose2d, 12, 12), IMAGES),
    "convtranspose_multiplier": (lambda: deconv(nn.ConvTranspose2d, 12, 24), IMAGES),
    "convtranspose_norm": (
        lambda: between(nn.ConvTranspose2d(3, 12, 3, 2), nn.BatchNorm2d(12)),
        IMAGES,
    ),
    "unet": (unet, IMAGES),
    "prelu": (lambda: between(None, nn.BatchNorm2d(12), nn.PReLU(12)), IMAGES),
    "prelu_linear": (lambda: between(None, nn.PReLU(12), rank=0), TOKENS[0]),
    "frozen": (lambda: between(None, FrozenBatchNorm2d(12)), IMAGES),
    "frozen_eps_0": (lambda: between(None, FrozenBatchNorm2d(12, eps=0.0)), IMAGES),
    "own_norm": (lambda: between(None, OwnNorm(12)), IMAGES),
    "scale": (lambda: between(None, Affine((12, 1, 1), False)), IMAGES),
    "scale_map": (lambda: between(None, Affine((1, 12, 9, 9), False)), IMAGES),
    "scale_buffer": (lambda: between(None, Affine((1, 12, 1, 1), True)), IMAGES),
    "scale_vector_buffer": (lambda: between(None, Affine((12,), True), rank=0), TOKENS),
    "batch_norm_plain": (lambda: between(None, nn.BatchNorm2d(12, affine=False)), IMAGES),
    "batch_norm_of_batch": (
        lambda: between(None, nn.BatchNorm2d(12, track_running_stats=False)),
        IMAGES,
    ),
    "instance_norm": (lambda: between(None, nn.InstanceNorm2d(12)), IMAGES),
    "instance_norm_stored": (
        lambda: between(None, nn.InstanceNorm2d(12, affine=True, track_running_stats=True)),
        IMAGES,
    ),
    "instance_norm_plain_stored": (
        lambda: between(None, nn.InstanceNorm1d(12, track_running_stats=True), rank=1),
        SOUND,
    ),
    "adaptive_max": (lambda: between(None, nn.AdaptiveMaxPool2d(3)), IMAGES),
    "unpool": (lambda: between(None, nn.ReLU(), Call(unpooled)), IMAGES),
    "normalised": (lambda: between(None, Call(F.normalize)), IMAGES),
    "normalised_by_l1": (lambda: between(None, Call(lambda x: F.normalize(x, p=1.0))), IMAGES),
    "normalised_positions": (lambda: between(None, Call(lambda x: F.normalize(x, dim=2))), IMAGES),
    "max_of_points": (lambda: between(None, Call(lambda x: x.max(2)[0][..., None])), IMAGES),
    "amax": (lambda: between(None, Call(lambda x: x.amax((2, 3), keepdim=True))), IMAGES),
    "spread": (
        lambda: between(None, Call(lambda x: x / (1 + x.std((2, 3), keepdim=True)))),
        IMAGES,
    ),
    "added_up": (lambda: Fn(added_up, a=conv(3, 12), b=conv(3, 12), out=conv(1, 2)), IMAGES),
    "rms_norm": (lambda: between(None, nn.RMSNorm(12), rank=0), TOKENS),
    "rms_norm_plain": (
        lambda: between(None, nn.RMSNorm(12, elementwise_affine=False), rank=0),
        TOKENS,
    ),
    "layer_norm_positions": (lambda: between(None, nn.LayerNorm(9, bias=False)), IMAGES),
    "rms_norm_positions": (lambda: between(None, nn.RMSNorm((9, 9))), IMAGES),
}


def net_of(name):
    torch.manual_seed(0)
    make, x = NETS[name]
    net = randomise_(make())
    with torch.no_grad():
        for key, buffer in net.named_buffers():
            if key.rpartition(".")[2] in ("weight", "bias", "scale", "shift"):
                buffer.copy_(torch.randn(buffer.shape))
    return net.eval(), x


def sizes(net):
    return sum(t.numel() for t in (*net.parameters(), *net.buffers()))


@pytest.mark.parametrize("name", NETS)
def test_pruned_channels_go(name):
    net, x = net_of(name)
    report = prune_(net, x, fraction=0.5)
    small, plan = check_equal(net, x)
    assert sizes(small) < 0.75 * sizes(net), plan.explain()
    assert report.total[0] > 0.4 * report.total[1]


@pytest.mark.parametrize("name", NETS)
def test_pruned_channels_go_without_constants(name):
    from ssl_lightning.compaction import compact, make_plan

    net, x = net_of(name)
    prune_(net, x, fraction=0.5)
    small = compact(net, make_plan(net, x, constants=False))
    assert sizes(small) < 0.75 * sizes(net)


def test_prune_leaves_the_variance_of_a_frozen_norm_alone():
    net, x = net_of("frozen_eps_0")
    before = copy.deepcopy(net[1])
    prune_(net, x, fraction=0.5)
    assert torch.equal(net[1].running_var, before.running_var)
    assert torch.equal(net[1].running_mean, before.running_mean)
    gone = (net[0].weight == 0).flatten(1).all(1)
    assert torch.equal(net[1].bias == 0, gone)
    assert torch.equal(net[1].bias[~gone], before.bias[~gone])
