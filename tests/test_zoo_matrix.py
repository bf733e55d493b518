"""Architectures of torchvision and timm, pruned and compacted: always exact, no exception.

A few of them run with all tests, all of them with ``make test-zoo-matrix``.
"""

from __future__ import annotations

import os

import pytest
import torch

from ssl_lightning.graph import trace
from zoo_matrix import ARCHITECTURES, NOT_TRACED, TIMM, TORCHVISION, Outcome, check, network

WHOLE = "SSL_ZOO_MATRIX" in os.environ
QUICK = [
    *("torchvision:resnet18", "torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5"),
    *("torchvision:mobilenet_v3_small", "timm:lcnet_050", "timm:regnetx_002", "timm:tinynet_e"),
    *("timm:convnext_atto", "timm:vit_tiny_patch16_224", "timm:fasternet_t0"),
]
TRACED = [name for name in ARCHITECTURES if name not in NOT_TRACED] if WHOLE else QUICK
LEFT = {
    "torchvision:resnet18": 0.50,
    "torchvision:resnet50": 0.49,
    "torchvision:densenet121": 0.42,
    "torchvision:mobilenet_v2": 0.58,
    "torchvision:vgg11_bn": 0.65,
}
"""Share of the parameters that may be left with 40 % of all filters zero."""

OUTCOMES: dict[str, Outcome] = {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRACED)
def test_pruned_by_coupled_groups(name):
    outcome = OUTCOMES[name] = check(name, "coupled")
    assert outcome.macs_left < 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRACED)
def test_filters_zeroed_at_random(name):
    outcome = check(name, "uncoupled")
    assert outcome.parameters_left <= LEFT.get(name, 1.0)
    assert outcome.macs_left <= 1


@pytest.mark.skipif(not WHOLE, reason="needs the whole matrix: make test-zoo-matrix")
def test_convolutional_networks_really_shrink():
    left = {name: o.macs_left for name, o in OUTCOMES.items() if o.convolutional}
    assert len(left) > 50
    small = [name for name, share in left.items() if share <= 0.65]
    print({name: share for name, share in left.items() if share > 0.65})
    assert len(small) >= 0.9 * len(left)


def test_the_matrix_is_as_large_as_it_says():
    assert len(TIMM) >= 60
    assert set(ARCHITECTURES) >= set(QUICK)
    assert len(NOT_TRACED) <= 0.05 * len(ARCHITECTURES)
    families = {name.split("_")[0].rstrip("0123456789") for name in TORCHVISION}
    assert {"alexnet", "convnext", "densenet", "googlenet", "maxvit", "swin", "vit"} <= families


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not WHOLE, reason="part of the whole matrix: make test-zoo-matrix")
@pytest.mark.parametrize("name", NOT_TRACED)
def test_what_is_said_not_to_trace_does_not(name):
    net, x = network(name)
    with pytest.raises(ValueError, match="Cannot capture"):
        trace(net, torch.as_tensor(x))
