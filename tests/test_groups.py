"""Groups: views, norms, zeroing, counting and resolving, against loops in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_lightning import create_backbone
from ssl_lightning.groups import (
    KINDS,
    GroupSet,
    Member,
    Selector,
    group_counts,
    group_norms,
    kept_groups,
    nonzero_groups,
    resolve_each,
    resolve_groups,
    zero_groups_,
)
from ssl_lightning.groups.sets import CHUNK
from test_attention import Block as Transformer
from test_attention import X as TOKENS

LAYERS = {
    "linear": lambda: nn.Linear(5, 3),
    "conv1d": lambda: nn.Conv1d(4, 6, 3),
    "conv2d": lambda: nn.Conv2d(4, 6, (3, 2)),
    "conv3d": lambda: nn.Conv3d(2, 3, 2),
    "pointwise": lambda: nn.Conv2d(4, 6, 1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "depthwise_doubling": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3),
    "transposed_grouped": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "transposed1d": lambda: nn.ConvTranspose1d(2, 3, 2),
}
ABLE = [
    (layer, name)
    for layer in LAYERS
    for name, kind in KINDS.items()
    if kind.view(LAYERS[layer]()) is not None
]


def group_numbers(module: Any, kind: str) -> np.ndarray:
    """Number of the group of every element of a layer's weight, from what its axes mean."""
    shape = tuple(module.weight.shape)
    numbers = np.zeros(shape, dtype=np.int64)
    groups = getattr(module, "groups", 1)
    transposed = type(module).__name__.startswith("ConvTranspose")
    for place in np.ndindex(*shape):
        first, second, space = place[0], place[1], place[2:]
        conv_group = first // (shape[0] // groups)
        if transposed:
            channel_in, channel_out = first, conv_group * shape[1] + second
        else:
            channel_in, channel_out = conv_group * shape[1] + second, first
        pixel = 0
        for index, size in zip(space, shape[2:], strict=True):
            pixel = pixel * size + index
        numbers[place] = {
            "filter": channel_out,
            "neuron_out": channel_out,
            "channel": channel_in,
            "neuron_in": channel_in,
            "shape": channel_in * math.prod(shape[2:]) + pixel,
            "kernel": first * shape[1] + second,
            "depth": 0,
            "element": np.ravel_multi_index(place, shape),
            "l1": np.ravel_multi_index(place, shape),
        }[kind]
    return numbers


def weight_set(module: nn.Module, kind: str) -> GroupSet:
    view = KINDS[kind].view(module)
    assert view is not None
    return GroupSet("layer", kind, (Member("w", *view),))


def norms_by_loop(weight: Tensor, numbers: np.ndarray) -> Tensor:
    sums = [0.0] * (int(numbers.max()) + 1)
    for value, number in zip(weight.double().flatten().tolist(), numbers.flatten(), strict=True):
        sums[number] += value * value
    return torch.tensor([math.sqrt(s) for s in sums], dtype=torch.float64)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module


# --- views -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "kind"), ABLE)
def test_norms_match_loops(layer: str, kind: str) -> None:
    module = randomised(LAYERS[layer]()).double()
    numbers = group_numbers(module, kind)
    group_set = weight_set(module, kind)
    assert group_set.num_groups == numbers.max() + 1
    assert group_set.group_size * group_set.num_groups == numbers.size
    found = group_norms(group_set, {"w": module.weight})
    torch.testing.assert_close(found.detach(), norms_by_loop(module.weight, numbers))


@pytest.mark.parametrize("kind", ["filter", "channel", "shape", "kernel", "depth"])
@pytest.mark.parametrize("layer", ["conv2d", "grouped", "transposed_grouped"])
def test_channels_last_weights(layer: str, kind: str) -> None:
    module = randomised(LAYERS[layer]()).to(memory_format=torch.channels_last)
    assert not module.weight.is_contiguous()
    group_set, numbers = weight_set(module, kind), group_numbers(module, kind)
    weight = module.weight.detach()
    torch.testing.assert_close(
        group_norms(group_set, {"w": weight}), norms_by_loop(weight, numbers).float()
    )
    factors = torch.arange(1.0, group_set.num_groups + 1)
    expected = weight * factors[torch.from_numpy(numbers)]
    group_set.members[0].scale_(weight, factors)
    torch.testing.assert_close(module.weight.detach(), expected)
    zero = torch.arange(group_set.num_groups) % 3 == 1
    zero_groups_(group_set, zero, {"w": weight})
    assert torch.equal(nonzero_groups(group_set, {"w": weight}), ~zero)


@settings(deadline=None, max_examples=60)
@given(
    case=st.sampled_from(ABLE),
    seed=st.integers(0, 2**20),
    share=st.floats(0.0, 1.0),
    channels_last=st.booleans(),
)
def test_each_element_is_in_one_group_and_zeroing_writes_through(
    case: tuple[str, str], seed: int, share: float, channels_last: bool
) -> None:
    layer, kind = case
    module = randomised(LAYERS[layer](), seed)
    if channels_last and module.weight.dim() == 4:
        module.to(memory_format=torch.channels_last)
    numbers = torch.from_numpy(group_numbers(module, kind))
    group_set = weight_set(module, kind)
    zero = torch.rand(group_set.num_groups, generator=torch.Generator().manual_seed(seed)) < share
    before = module.weight.detach().clone()
    address = module.weight.data_ptr()
    zero_groups_(group_set, zero, {"w": module.weight})
    assert module.weight.data_ptr() == address
    torch.testing.assert_close(module.weight.detach(), before.masked_fill(zero[numbers], 0.0))
    assert torch.equal(nonzero_groups(group_set, {"w": module.weight}), ~zero)
    left = int((~zero).sum())
    assert group_counts([group_set], {"w": module.weight}) == {
        f"layer:{kind}": (left, group_set.num_groups)
    }


@pytest.mark.parametrize("kind", ["channel", "shape", "kernel"])
def test_large_weights_are_summed_in_chunks(kind: str) -> None:
    module = nn.Conv2d(300, 400, 3, dtype=torch.float64)
    assert module.weight.numel() > 4 * CHUNK
    numbers = torch.from_numpy(group_numbers(module, kind)).flatten()
    sums = torch.zeros(int(numbers.max()) + 1, dtype=torch.float64)
    sums.index_add_(0, numbers, module.weight.detach().flatten().square())
    found = group_norms(weight_set(module, kind), {"w": module.weight})
    torch.testing.assert_close(found.detach(), sums.sqrt())


def test_scale_of_every_layer_and_kind() -> None:
    for layer, kind in ABLE:
        module = randomised(LAYERS[layer]())
        group_set = weight_set(module, kind)
        numbers = torch.from_numpy(group_numbers(module, kind))
        factors = torch.rand(group_set.num_groups)
        weight = module.weight.detach()
        expected = weight * factors[numbers]
        group_set.members[0].scale_(weight, factors)
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_are_float32(dtype: torch.dtype) -> None:
    weight = torch.full((2, 3, 3, 3), 200.0, dtype=dtype)  # squares overflow float16
    for kind in ("filter", "channel", "depth"):
        group_set = weight_set(nn.Conv2d(3, 2, 3), kind)
        norms, (member,) = group_norms(group_set, {"w": weight}), group_set.members
        assert norms.dtype == torch.float32
        torch.testing.assert_close(norms, torch.full_like(norms, 200.0 * member_root(member)))


def member_root(member: Member) -> float:
    return math.sqrt(math.prod(member.shape) / member.num_groups)


def test_norms_of_several_members() -> None:
    w, b = torch.randn(3, 4), torch.randn(3)
    group_set = GroupSet("", "filter", (Member("w", (3, 4), (0,)), Member("b", (3,), (0,))))
    expected = [math.sqrt(float((w[i] ** 2).sum()) + float(b[i]) ** 2) for i in range(3)]
    torch.testing.assert_close(group_norms(group_set, {"w": w, "b": b}), torch.tensor(expected))
    assert group_set.group_size == 5


def test_zeroing_takes_companions_along_and_replaces_nan() -> None:
    tensors = {"w": torch.full((2, 2), math.nan), "b": torch.ones(2)}
    group_set = GroupSet("", "filter", (Member("w", (2, 2), (0,)),), (Member("b", (2,), (0,)),))
    zero_groups_(group_set, torch.tensor([False, True]), tensors)
    assert tensors["w"][1].tolist() == [0.0, 0.0]
    assert bool(tensors["w"][0].isnan().all())
    assert tensors["b"].tolist() == [1.0, 0.0]


def test_kept_groups() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    randomised(model)
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].weight[:, 0, 0, 0] = 0
        model[3].weight[:, 5] = 0
    assert kept_groups(model) == {
        "0": {"filters": [2, 3], "channels": [2, 2], "columns": [7, 8]},
        "3": {"filters": [4, 4], "channels": [11, 12]},
    }


# --- resolving ---------------------------------------------------------------------------------


class Block(nn.Module):
    """Two convolutions with batch norm and a shortcut around them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=True)
        self.bn2 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return self.fc(x.mean((2, 3)))


INPUT = torch.zeros(2, 3, 8, 8)


def names(model: nn.Module, selector: Any, example: Tensor | None = INPUT) -> list[str]:
    return [s.name for s in resolve_groups(model, [selector], example)]


def test_globs_in_the_models_order() -> None:
    model = Block()
    assert names(model, {"kind": "channel", "layers": "conv*"}) == [
        "conv1:channel",
        "conv2:channel",
    ]
    both = {"kind": "channel", "layers": ["conv2", "stem", "conv?"]}
    assert names(model, both) == ["stem:channel", "conv1:channel", "conv2:channel"]
    assert names(model, {"kind": "neuron_in"}) == ["fc:neuron_in"]
    assert names(model, Selector("shape", "[!c]*")) == ["stem:shape"]
    assert names(nn.Conv2d(1, 1, 1), {"kind": "filter"}) == [":filter"]


def test_members_of_an_output_are_all_that_it_consists_of() -> None:
    found = resolve_groups(Block(), [{"kind": "filter", "layers": "conv*"}], INPUT)
    assert [[m.parameter for m in s.members] for s in found] == [
        ["conv1.weight", "bn1.weight", "bn1.bias"],
        ["conv2.weight", "conv2.bias", "bn2.weight", "bn2.bias"],
    ]
    assert [s.group_size for s in found] == [38, 39]
    assert not found[0].companions
    weights = resolve_groups(Block(), [Selector("filter", "conv2", "weight")], INPUT)[0]
    assert [m.parameter for m in weights.members] == ["conv2.weight"]
    assert [m.parameter for m in weights.companions] == ["conv2.bias", "bn2.weight", "bn2.bias"]
    whole = resolve_groups(Block(), [Selector("depth", "conv2")], INPUT)[0]
    assert (whole.num_groups, whole.group_size) == (1, 4 * 4 * 9 + 12)
    channel = resolve_groups(Block(), [Selector("channel", "conv2")], INPUT)[0]
    assert channel.parameters() == ["conv2.weight"]


def test_the_root_module_as_layer_has_parameters_without_dot() -> None:
    net = nn.Linear(2, 2)
    assert resolve_groups(net, [Selector("neuron_out")])[0].parameters() == ["weight", "bias"]


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ({"kind": "filtre"}, "Unknown group kind 'filtre'. Did you mean filter"),
        ({"kind": "filter", "layer": "x"}, "no argument 'layer'. Did you mean layers"),
        ({"layers": "x"}, "has no kind"),
        ({"kind": "filter", "members": "some"}, "expected members 'all' or 'weight', got 'some'"),
        ({"kind": "filter", "layers": "nope*"}, "'nope[*]' matches no layer .* stem, conv1, conv2"),
        ({"kind": "filter", "layers": "fc"}, "It matches fc, without such groups"),
        ({"kind": "filter", "layers": ["conv1", "nope"]}, "pattern 'nope' matches no layer"),
        ({"kind": "filter", "layers": []}, "expected `layers` to be a glob or a list"),
        ({"kind": "filter", "layers": 3}, "expected `layers` to be a glob or a list"),
        ({"kind": "filter", "layers": [3]}, "expected globs in `layers`, got 3"),
        ({"kind": "depth", "layers": "stem"}, "Cannot collapse `stem`: it has no shortcut"),
    ],
)
def test_resolve_errors(selector: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_groups(Block(), [selector], INPUT)


def test_depth_without_layers_is_the_last_layer_of_each_branch():
    found = resolve_groups(Block(), [{"kind": "depth"}], INPUT)
    assert [group_set.layer for group_set in found] == ["conv2"]
    net = create_backbone("resnet20")
    found = resolve_groups(net, [{"kind": "depth"}], torch.zeros(1, 3, 32, 32))
    assert [s.layer for s in found] == [f"layer{i}.{j}.conv2" for i in (1, 2, 3) for j in range(3)]
    message = "no layer of LeNet has a shortcut around it, so none can be collapsed"
    with pytest.raises(ValueError, match=message):
        resolve_groups(create_backbone("lenet"), [{"kind": "depth"}], torch.zeros(1, 1, 28, 28))


@pytest.mark.parametrize("kind", ["filter", "depth", "coupled"])
def test_an_example_input_is_asked_for_where_needed(kind: str) -> None:
    selector = Selector(kind, "conv*")
    with pytest.raises(ValueError, match="Pass `example_input`"):
        resolve_groups(Block(), [selector])
    assert resolve_groups(Block(), [Selector("channel", "conv*")])


def test_computed_weights_are_refused() -> None:
    net = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="is not a parameter but computed"):
        resolve_groups(net, [Selector("neuron_in")])


def test_same_groups_with_other_members_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    both = [Selector("filter", "*", "all"), Selector("filter", "1", "weight")]
    with pytest.raises(ValueError, match="groups of `1` are selected twice"):
        resolve_groups(net, both)
    assert (
        len(resolve_groups(net, [Selector("filter", "0"), Selector("filter", "1", "weight")])) == 2
    )


def test_same_groups_twice_are_one_object() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    first, second = resolve_each(net, [Selector("filter"), Selector("filter", "1")])
    assert first[1] is second[0]
    assert resolve_groups(net, [Selector("filter"), Selector("filter", "1")]) == first


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_resolves(kind: str) -> None:
    layers = "*" if kind != "depth" else "conv*"
    make, example = (Transformer, TOKENS) if kind in ("head", "ffn") else (Block, INPUT)
    parameters = dict(randomised(make()).named_parameters())
    for group_set in resolve_groups(make(), [Selector(kind, layers)], example):
        assert set(group_set.parameters()) <= parameters.keys()
        norms = group_norms(group_set, parameters)
        assert norms.shape == (group_set.num_groups,)
        assert bool((norms > 0).all())
