"""Low rank factors: the mathematics, against references in numpy and formulas by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssl_lightning import count_macs, create_backbone, factorise
from ssl_lightning.compaction.factors import Factors, check_factors, insert_factors_, product
from ssl_lightning.low_rank.decomposing import decompose, fill_

NEAR = {"rtol": 0.0, "atol": 1e-10}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def randomised(module, seed=0):
    """The module in float64 and eval mode, with weights, biases and statistics that are random."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(drawn + 0.5 if tensor.dim() < 2 else drawn - 0.5)
    return module


def factors_of(layer, method, ranks):
    """A network of the layer alone, replaced by factors with its weights."""
    net = nn.Sequential(layer)
    small = nn.Sequential(*[layer])
    factor = Factors(method, ranks)
    small = insert_unchecked(small, factor)
    fill_(small[0], net[0], factor)
    return small


def insert_unchecked(net, factor):
    """As insert_factors_, also where the factors hold more weights than the layer."""
    from ssl_lightning.compaction.factor_layers import METHODS
    from ssl_lightning.compaction.factors import like

    parts = METHODS[factor.method].build(net[0], factor.ranks, torch.device("cpu"))
    return nn.Sequential(like(nn.Sequential(*parts), net[0]))


def full_tucker(layer):
    outputs, inputs = layer.weight.shape[:2]
    positions = layer.weight[0, 0].numel()
    return min(outputs, inputs * positions), min(inputs, outputs * positions)


geometries = st.fixed_dictionaries(
    {
        "dims": st.sampled_from([1, 2, 3]),
        "outputs": st.integers(1, 7),
        "inputs": st.integers(1, 6),
        "kernel": st.lists(st.integers(1, 4), min_size=3, max_size=3),
        "stride": st.lists(st.integers(1, 3), min_size=3, max_size=3),
        "padding": st.lists(st.integers(0, 2), min_size=3, max_size=3),
        "dilation": st.lists(st.integers(1, 2), min_size=3, max_size=3),
        "mode": st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
        "bias": st.booleans(),
    }
)


def conv_of(g):
    n = g["dims"]
    sizes = {
        "kernel_size": g["kernel"][:n],
        "stride": g["stride"][:n],
        "padding": g["padding"][:n],
        "dilation": g["dilation"][:n],
    }
    return randomised(
        CONVS[n](
            g["inputs"],
            g["outputs"],
            **{key: tuple(value) for key, value in sizes.items()},
            padding_mode=g["mode"],
            bias=g["bias"],
        )
    )


@given(geometries)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_at_full_rank_the_function_is_that_of_the_dense_layer(method, g):
    layer = conv_of(g)
    if method == "tucker" and layer.weight[0, 0].numel() == 1:
        return
    full = (min(layer.weight.flatten(1).shape),) if method == "svd" else full_tucker(layer)
    small = factors_of(layer, method, full)
    x = torch.randn(2, g["inputs"], *[11, 9, 10][: g["dims"]], dtype=torch.float64)
    torch.testing.assert_close(small(x), layer(x), **NEAR)


@given(geometries, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_cp_layers_compute_the_convolution_with_the_sum_of_outer_products(g, rank):
    layer = conv_of(g)
    if layer.weight[0, 0].numel() == 1:
        return
    small = randomised(insert_unchecked([layer], Factors("cp", (rank,))), seed=1)
    first, *middle, last = (part.weight.detach().numpy() for part in small[0])
    kernel = np.zeros(layer.weight.shape)
    for r in range(rank):
        piece = np.ones(layer.weight.shape[2:])
        for part in middle:
            piece = piece * part[r, 0]
        at = np.multiply.outer(last[:, r].ravel(), first[r].ravel())
        kernel += np.multiply.outer(at, piece)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel))
        if layer.bias is not None:
            layer.bias.copy_(small[0][-1].bias)
    x = torch.randn(2, g["inputs"], *[11, 9, 10][: g["dims"]], dtype=torch.float64)
    torch.testing.assert_close(small(x), layer(x), **NEAR)
    torch.testing.assert_close(product(small[0]), layer.weight.detach(), **NEAR)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("method", ["svd", "tucker", "cp"])
def test_padding_by_name(padding, method):
    layer = randomised(nn.Conv2d(3, 4, (4, 3), padding=padding, dilation=(2, 1)))
    ranks = {"svd": (4,), "tucker": (4, 3), "cp": (2,)}[method]
    small = factors_of(layer, method, ranks)
    with torch.no_grad():
        layer.weight.copy_(product(small[0]))
    x = torch.randn(1, 3, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(small(x), layer(x), **NEAR)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_error_of_svd_is_the_tail_of_the_singular_values(outputs, inputs, kernel, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, kernel, kernel, generator=generator, dtype=torch.float64)
    matrix = weight.numpy().reshape(outputs, -1)
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in range(1, len(values) + 1):
        first, last = decompose(weight, Factors("svd", (rank,)))
        error = np.linalg.norm(matrix - (last @ first).numpy())
        assert error == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), abs=1e-10)


def test_both_sides_of_a_rank_have_the_root_of_the_singular_value_as_norm():
    weight = randomised(nn.Linear(7, 5)).weight
    values = np.linalg.svd(weight.detach().numpy(), compute_uv=False)
    first, last = decompose(weight, Factors("svd", (5,)))
    np.testing.assert_allclose(first.norm(dim=1) ** 2, values, atol=1e-10)
    np.testing.assert_allclose(last.norm(dim=0) ** 2, values, atol=1e-10)


def test_both_sides_of_the_ranks_of_tucker_have_one_norm():
    weight = randomised(nn.Conv2d(6, 8, 3)).weight
    first, core, last = decompose(weight, Factors("tucker", (5, 4)))
    read = core.transpose(0, 1).flatten(1).norm(dim=1)
    torch.testing.assert_close(first.norm(dim=1), read, rtol=1e-8, atol=0)
    torch.testing.assert_close(core.flatten(1).norm(dim=1), last.norm(dim=0), rtol=1e-8, atol=0)


def test_tucker_is_no_worse_than_truncating_the_unfoldings_one_after_the_other():
    weight = randomised(nn.Conv2d(6, 8, 3)).weight.detach()
    layer = randomised(nn.Conv2d(6, 8, 3))
    small = factors_of(layer, "tucker", (5, 4))
    found = np.linalg.norm((weight - product(small[0])).numpy())
    w = weight.numpy()
    u = np.linalg.svd(w.reshape(8, -1))[0][:, :5]
    v = np.linalg.svd(w.transpose(1, 0, 2, 3).reshape(6, -1))[0][:, :4]
    truncated = np.einsum("op,pq...->oq...", u @ u.T, w)
    truncated = np.einsum("ij,oj...->oi...", v @ v.T, truncated)
    assert found <= np.linalg.norm(w - truncated) + 1e-10


def test_cp_finds_components_that_are_there_balanced():
    generator = np.random.default_rng(0)
    parts = [generator.standard_normal((size, 2)) for size in (8, 6, 3, 3)]
    weight = np.einsum("or,ir,hr,wr->oihw", *parts)
    found = decompose(torch.from_numpy(weight), Factors("cp", (2,)))
    first, high, wide, last = (f.numpy() for f in found)
    again = np.einsum("or,ri,rh,rw->oihw", last, first, high, wide)
    assert np.linalg.norm(again - weight) < 1e-4 * np.linalg.norm(weight)
    norms = [np.linalg.norm(m, axis=1) for m in (first, high, wide, last.T)]
    for norm in norms[1:]:
        np.testing.assert_allclose(norm, norms[0], rtol=1e-10)
    sizes = np.prod([np.linalg.norm(p, axis=0) for p in parts], axis=0)
    np.testing.assert_allclose(np.sort(norms[0] ** 4), np.sort(sizes), rtol=1e-3)


# --- multiply-adds, by the formulas of the papers -------------------------------------------------


def test_multiply_adds_of_tucker_are_those_of_kim():
    """Kim et al. 2016, equation 6: the speed-up of D^2 S T H' W' over S R3 HW + ...."""
    S, T, D, R3, R4, H, W = 16, 32, 3, 5, 7, 12, 10
    layer = nn.Conv2d(S, T, D, stride=2, padding=1)
    net = nn.Sequential(layer)
    x = torch.zeros(1, S, H, W)
    _, _, report = factorise(net, x, ranks={"0": (R4, R3)}, method="tucker")
    h, w = layer(x).shape[2:]
    dense = D * D * S * T * h * w
    factored = S * R3 * H * W + D * D * R3 * R4 * h * w + T * R4 * h * w
    assert report.macs == (dense, factored)
    speed_up = dense / factored
    assert report.macs[0] / report.macs[1] == pytest.approx(speed_up)


def test_multiply_adds_of_cp_are_those_of_lebedev():
    """Lebedev et al. 2015, section 3: R (S + 2d + T) per output position against S T d^2."""
    S, T, d, R, side = 16, 32, 5, 6, 9
    net = nn.Sequential(nn.Conv2d(S, T, d, padding=d // 2))
    _, _, report = factorise(net, torch.zeros(1, S, side, side), ranks={"0": R}, method="cp")
    assert report.macs == (S * T * d**2 * side**2, R * (S + 2 * d + T) * side**2)


def test_multiply_adds_of_svd():
    net = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1))
    _, _, report = factorise(net, torch.zeros(1, 16, 8, 8), ranks={"0": 6}, method="svd")
    assert report.macs[1] == 6 * (16 * 9 + 32) * 64


def test_the_report_says_what_the_network_has():
    net = randomised(create_backbone("convnet"))
    x = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    small, plan, report = factorise(net, x, macs=0.5)
    assert report.macs == (count_macs(net, x), count_macs(small, x))
    assert set(report.rows) == set(plan.factors)
    for name, row in report.rows.items():
        weight = net.get_submodule(name).weight.detach()
        kernel = product(small.get_submodule(name))
        found = np.linalg.norm((weight - kernel).numpy()) / np.linalg.norm(weight.numpy())
        assert row.error == pytest.approx(found, abs=1e-12)
        assert name in str(report)


# --- factors that do not fit ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factors", "text"),
    [
        ({"9": Factors("svd", (2,))}, "no such layer"),
        ({"1": Factors("svd", (2,))}, "expected a linear layer or an ungrouped convolution"),
        ({"0": Factors("svd", (10**9,))}, "expected 1 of the ranks 1 to 8"),
        ({"0": Factors("tucker", (9, 4))}, "ranks 1 to 8 and 1 to 4"),
        ({"0": Factors("tucker", (4,))}, "ranks 1 to 8 and 1 to 4"),
        ({"0": Factors("cp", (36,))}, "would hold 648 weights, the layer holds 288"),
        ({"2": Factors("tucker", (2, 2))}, "for convolutions with a kernel of more than one"),
        ({"0": Factors("pca", (2,))}, "Unknown method of factors 'pca'"),
        ({"3": Factors("svd", (1,))}, "expected a linear layer or an ungrouped convolution"),
        ({"": Factors("svd", (1,))}, "expected a linear layer or an ungrouped convolution"),
    ],
)
def test_factors_that_do_not_fit_are_refused(factors, text):
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=2)
    )
    before = str(net)
    with pytest.raises(ValueError, match=text):
        check_factors(net, factors)
    with pytest.raises(ValueError, match=text):
        insert_factors_(net, {"2": Factors("svd", (2,)), **factors})
    assert str(net) == before
