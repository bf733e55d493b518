"""Plans over sizes: networks, each at further input and batch sizes, in eval and in train mode.

A few run with all tests, all of them with ``make test-zoo-matrix``.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch

from nets_with_zeros import outputs_of, randomise_, zero_randomly_
from ssl_lightning import compact, create_backbone, make_plan, prune_
from zoo_matrix import AMPLIFY_ROUNDING, ARCHITECTURES, NOT_TRACED, network

OWN = {"convnet": (3, 32), "lenet": (1, 28), "alexnet": (3, 96), "resnet20": (3, 32)}
QUICK = ["lenet", "resnet20", "torchvision:shufflenet_v2_x0_5", "timm:lcnet_050"]
NAMES = [n for n in (*OWN, *ARCHITECTURES) if n not in {*NOT_TRACED, *AMPLIFY_ROUNDING}]
CHOSEN = NAMES if "SSL_ZOO_MATRIX" in os.environ else QUICK
SIZES = ((2, 1, 1), (1, 5, 10), (3, -3, 2))
"""Batch size, and what is added to height and width."""


def prepared(name):
    if name not in OWN:
        return network(name)
    channels, size = OWN[name]
    return randomise_(create_backbone(name)).eval(), torch.zeros(1, channels, size, size)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["coupled", "uncoupled"])
@pytest.mark.parametrize("name", CHOSEN)
def test_no_difference_at_other_sizes_and_no_exception_in_training(name, way):
    net, x = prepared(name)
    if way == "coupled":
        prune_(net, x, fraction=0.4)
    else:
        zero_randomly_(net, x, 0.4, norms=False)
    plan = make_plan(net, x)
    net = copy.deepcopy(net).double()
    small = compact(net, plan)
    height, width = x.shape[-2:]
    tried = 0
    for batch, more, wider in SIZES:
        images = torch.randn(batch, x.shape[1], height + more, width + wider).double()
        try:
            expected = outputs_of(net, images)
        except Exception:  # the network accepts only some sizes
            images = torch.randn(batch, *x.shape[1:]).double()
            expected = outputs_of(net, images)
        for a, b in zip(outputs_of(small, images), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * float(b.abs().max()))
        tried += 1
    assert tried == len(SIZES)
    images = torch.randn(2, *x.shape[1:]).double()
    try:
        expected = trained(net, images)
    except ValueError:  # a batch norm with one value per channel
        return
    outputs = trained(small, images)
    assert [out.shape for out in outputs] == [out.shape for out in expected]
    sum(out.sum() for out in outputs).backward()


def trained(net, images):
    torch.manual_seed(0)
    return torch.utils._pytree.tree_leaves(net.train()(images))
