"""Backbones: sizes known from the literature, and one contract that iterates the table."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_lightning.backbones import (
    BACKBONES,
    AlexNet,
    ChannelResponseNorm,
    LeNet,
    PadShortcut,
    ResNetCIFAR,
    SpatialResponseNorm,
    create_backbone,
    list_backbones,
)

SMALL = [name for name in BACKBONES if name != "resnet110"]  # 110 adds time, not kinds of layers


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *model.input_shape))
    return counter.get_total_flops() / 2


@functools.cache
def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(name)


def pixels(name: str, model: nn.Module) -> tuple[int, ...]:
    """Return the shape of what a network says of each pixel; nothing for a classifier."""
    return model.input_shape[1:] if name == "unet" else ()


# --- contract of every entry ---


@pytest.mark.parametrize("name", BACKBONES)
def test_forward_gives_logits(name):
    model = built(name).eval()
    with torch.no_grad():
        output = model(torch.zeros(2, *model.input_shape))
    assert output.shape == (2, model.num_classes, *pixels(name, model))


@pytest.mark.parametrize("name", SMALL)
def test_backward_reaches_every_parameter(name):
    torch.manual_seed(0)
    model = create_backbone(name).train()
    model(torch.randn(2, *model.input_shape)).square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


@pytest.mark.parametrize("name", SMALL)
def test_export_and_fx_give_the_same_function(name):
    model = built(name).eval()
    x = torch.randn(2, *model.input_shape, generator=torch.Generator().manual_seed(1))
    exported = torch.export.export(model, (x,), strict=False).module()
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(exported(x), expected)
        torch.testing.assert_close(traced(x), expected)


@pytest.mark.parametrize("name", SMALL)
def test_same_seed_same_weights(name):
    torch.manual_seed(0)
    again = create_backbone(name).state_dict()
    for key, value in built(name).state_dict().items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(again[key], value), key


@pytest.mark.parametrize("name", BACKBONES)
def test_num_classes_and_in_channels_are_arguments(name):
    argument = {"input_shape": (2, 32, 32)} if name == "mlp" else {"in_channels": 2}
    model = create_backbone(name, num_classes=7, **argument).eval()
    assert model.input_shape[0] == 2
    with torch.no_grad():
        output = model(torch.zeros(1, *model.input_shape))
    assert output.shape == (1, 7, *pixels(name, model))


def test_list_is_the_table():
    assert list_backbones() == sorted(BACKBONES)


# --- sizes ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lenet", 431_080),
        ("mlp", 784 * 500 + 500 + 500 * 300 + 300 + 300 * 10 + 10),
        ("convnet", 3 * 32 * 25 + 32 + 32 * 32 * 25 + 32 + 32 * 64 * 25 + 64 + 1024 * 10 + 10),
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        ("alexnet", 60_965_224),
    ],
)
def test_parameter_counts(name, expected):
    assert num_parameters(built(name)) == expected


def test_macs_of_resnet20_and_caffenet():
    stage_macs = 3 * 16 + 6 * 16 * 16  # channel pairs at 32 x 32 (and as many in other stages)
    resnet = 9 * (stage_macs * 32**2 + (16 * 32 + 5 * 32**2) * 16**2)
    resnet += 9 * (32 * 64 + 5 * 64**2) * 8**2 + 640
    assert macs(built("resnet20")) == resnet
    assert resnet == pytest.approx(40.55e6, rel=1e-3)
    assert macs(built("alexnet")) == pytest.approx(0.7244e9, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("lenet", {"conv1": (20, 24, 24), "pool1": (20, 12, 12), "conv2": (50, 8, 8)}),
        ("convnet", {"pool1": (32, 16, 16), "pool2": (32, 8, 8), "pool3": (64, 4, 4)}),
        (
            "alexnet",
            {
                "conv1": (96, 55, 55),
                "conv2": (256, 27, 27),
                "conv3": (384, 13, 13),
                "pool5": (256, 6, 6),
            },
        ),
        ("resnet20", {"layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8)}),
    ],
)
def test_map_sizes(name, shapes):
    model, seen = built(name).eval(), {}
    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda _m, _i, out, layer=layer: seen.__setitem__(layer, tuple(out.shape[1:]))
        )
        for layer in shapes
    ]
    with torch.no_grad():
        model(torch.zeros(1, *model.input_shape))
    for handle in handles:
        handle.remove()
    assert seen == shapes


@pytest.mark.parametrize("name", ["lenet", "mlp"])
def test_state_dict_keys(name):
    layers = {"lenet": ["conv1", "conv2", "fc1", "fc2"], "mlp": ["fc1", "fc2", "fc3"]}[name]
    assert list(built(name).state_dict()) == [
        f"{x}.{p}" for x in layers for p in ("weight", "bias")
    ]


def test_state_dict_keys_of_resnet20():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    pair = [[f"conv{i}.weight", *(f"bn{i}.{p}" for p in norm)] for i in (1, 2)]
    expected = [*pair[0]]
    for stage in (1, 2, 3):
        for block in range(3):
            expected += [f"layer{stage}.{block}.{key}" for key in (*pair[0], *pair[1])]
    assert list(built("resnet20").state_dict()) == [*expected, "fc.weight", "fc.bias"]


# --- single networks ---


def test_lenet_has_one_relu():
    """Doubling a bias-free LeNet's input doubles fc1's input: nothing before it clips."""
    model, seen = LeNet(), []
    model.fc1.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    x = torch.randn(2, 1, 28, 28)
    model(x)
    model(2 * x)
    torch.testing.assert_close(seen[1], 2 * seen[0])
    assert (seen[0] < 0).any()


def reference_spatial_norm(x, size, alpha, beta):
    out = np.empty_like(x)
    r = size // 2
    for n, c, i, j in np.ndindex(*x.shape):
        patch = x[n, c, max(i - r, 0) : i + r + 1, max(j - r, 0) : j + r + 1]
        out[n, c, i, j] = x[n, c, i, j] / (1 + alpha / size**2 * np.sum(patch**2)) ** beta
    return out


@pytest.mark.parametrize("size", [1, 3, 5])
def test_spatial_response_norm_against_loops(size):
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 5)) * 3
    actual = SpatialResponseNorm(size, alpha=0.7, beta=0.75)(torch.from_numpy(x))
    torch.testing.assert_close(actual.numpy(), reference_spatial_norm(x, size, 0.7, 0.75))


def test_alexnet_torchvision_geometry_equals_torchvision():
    import torchvision

    reference = torchvision.models.alexnet(weights=None).eval()
    model = AlexNet("torchvision").eval()
    assert num_parameters(model) == num_parameters(reference)
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            mine.copy_(theirs)
        x = torch.randn(2, 3, 224, 224)
        torch.testing.assert_close(model(x), reference(x))
    model.train(), reference.train()
    torch.manual_seed(3)
    expected = reference(x)
    torch.manual_seed(3)
    torch.testing.assert_close(model(x), expected)


def test_alexnet_accepts_smaller_images_and_other_groups():
    model = AlexNet(num_classes=5, groups=1).eval()
    assert model.conv2.groups == 1
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 128, 128)).shape == (1, 5)


def reference_pad_shortcut(x, source, stride):
    n, _, h, w = x.shape
    out = np.zeros((n, len(source), -(-h // stride), -(-w // stride)), x.dtype)
    for j, c in enumerate(source):
        if c >= 0:
            for a in range(out.shape[2]):
                for b in range(out.shape[3]):
                    out[:, j, a, b] = x[:, c, a * stride, b * stride]
    return out


@pytest.mark.parametrize(
    ("in_channels", "source"),
    [
        (3, (0, 1, 2, -1, -1, -1)),  # as built
        (3, (-1, 0, 1, 2, -1)),  # zeros on both sides
        (3, (0, 1, 2)),  # nothing padded
        (3, (2, -1, 0)),  # permuted, with a hole
        (3, (1, 1, -1)),  # one channel twice, one unused
        (3, (-1, -1)),  # only zeros
        (1, (0, -1)),
    ],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_pad_shortcut_against_loops(in_channels, source, stride):
    x = np.random.default_rng(0).normal(size=(2, in_channels, 5, 4))
    module = PadShortcut(in_channels, in_channels + 1, stride)
    module.source = source
    assert module.source == source
    assert module.out_channels == len(source)
    actual = module(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(actual, reference_pad_shortcut(x, source, stride))
    assert not module.state_dict()
    exported = torch.export.export(module, (torch.from_numpy(x),), strict=False).module()
    np.testing.assert_array_equal(exported(torch.from_numpy(x)).numpy(), actual)


def test_pad_shortcut_can_lose_input_channels():
    module = PadShortcut(4, 8, 2)
    module.in_channels = 2
    module.source = (0, -1, 1)
    x = torch.randn(1, 2, 4, 4)
    expected = reference_pad_shortcut(x.numpy(), (0, -1, 1), 2)
    np.testing.assert_array_equal(module(x).numpy(), expected)


def test_shortcut_b_has_parameters_and_a_has_none():
    a, b = create_backbone("resnet20"), create_backbone("resnet20", shortcut="B")
    extra = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert num_parameters(b) - num_parameters(a) == extra
    assert isinstance(a.layer1[0].shortcut, nn.Identity)
    assert isinstance(a.layer2[0].shortcut, PadShortcut)
    assert b.layer2[0].shortcut[0].kernel_size == (1, 1)


# --- timm and torchvision ---


def test_timm_backbone():
    model = create_backbone("timm:resnet18", num_classes=4, in_chans=1)
    assert model.input_shape == (1, 224, 224)
    assert model.num_classes == 4
    model = create_backbone("timm:vit_tiny_patch16_224", img_size=32).eval()
    assert model.input_shape == (3, 32, 32)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_torchvision_backbone():
    model = create_backbone("torchvision:resnet18", num_classes=4)
    assert (model.input_shape, model.num_classes) == ((3, 224, 224), 4)
    assert model.fc.out_features == 4


def test_torchvision_inception_gives_a_tensor_in_training():
    model = create_backbone("torchvision:inception_v3", num_classes=3, init_weights=False)
    assert model.input_shape == (3, 299, 299)
    assert model.train()(torch.zeros(2, 3, 75, 75)).shape == (2, 3)


def test_import_needs_neither_timm_nor_torchvision():
    code = (
        "import sys, ssl_lightning.backbones\n"
        "heavy = {'timm', 'torchvision', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- errors ---


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnet2", {}, "Unknown backbone `resnet2`. Did you mean .*resnet20"),
        ("zzzz", {}, "No name is similar.*lenet"),
        ("mynets.Net", {}, r"A class of your own is given as `\{class_path: mynets.Net\}`"),
        ("timm:resnet1", {}, "Did you mean .*timm:resnet1"),
        ("torchvision:alexnett", {}, "Did you mean torchvision:alexnet"),
        ("keras:resnet", {}, "Unknown backbone `keras:resnet`"),
        ("lenet", {"classes": 3}, "`lenet` has no argument `classes`.*num_classes, in_channels"),
        ("resnet20", {"depth": 32}, "`resnet20` has no argument `depth`"),
        ("timm:resnet18", {"foo": 1}, "`timm:resnet18` has no argument `foo`.*num_classes"),
        (
            "torchvision:resnet18",
            {"foo": 1},
            "`torchvision:resnet18` has no .*`foo`.*groups",
        ),
        ("resnet20", {"shortcut": "C"}, "'A' or 'B', got 'C'"),
        ("resnet20", {"widths": (8, 16)}, "three `widths`"),
        ("alexnet", {"geometry": "zf"}, "`geometry` to be one of"),
        ("alexnet", {"groups": 5}, "divide the filters"),
        ("mlp", {"widths": (5, 0)}, "at least 1"),
    ],
)
def test_errors_say_what_to_do(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_backbone(name, **kwargs)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_depth_must_be_6n_plus_2(depth):
    with pytest.raises(ValueError, match="6 n"):
        ResNetCIFAR(depth=depth)


def test_modules_refuse_impossible_arguments():
    with pytest.raises(ValueError, match="cannot remove channels"):
        PadShortcut(4, 2)
    with pytest.raises(ValueError, match="-1 to 1"):
        PadShortcut(2, 4).source = (2,)
    with pytest.raises(ValueError, match="odd"):
        SpatialResponseNorm(4)


NORMS = [
    {"size": size, "alpha": alpha, "beta": beta, "k": k}
    for size in (1, 2, 3, 4, 5, 9)
    for alpha, beta, k in ((1e-4, 0.75, 1.0), (2.0, 0.75, 2.0), (0.5, 0.5, 0.1))
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("settings", NORMS, ids=str)
def test_channel_response_norm_is_torchs(settings, layout):
    """Values, gradients and second derivatives, also where the window is wider than the map."""
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    direction, found = torch.randn_like(x), []
    for norm in (nn.LocalResponseNorm(**settings), ChannelResponseNorm(**settings)):
        y = norm(x)
        (slope,) = torch.autograd.grad((y * direction).sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sin().sum(), x)
        found.append((y, slope, bend))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_channel_response_norm_takes_bfloat16_and_keeps_the_layout():
    x = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
    y = ChannelResponseNorm(5, alpha=0.5)(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        y.float(), nn.LocalResponseNorm(5, alpha=0.5)(x), rtol=0.02, atol=1e-2
    )
