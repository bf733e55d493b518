"""Choosing between dense and column-sparse layers, and what a plan remembers of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_lightning import ColumnSparseConv2d, choose_layers, create_backbone
from ssl_lightning.compaction import Plan, compact, expand, load_compact, make_plan, save_compact
from ssl_lightning.compaction.sparse import column_sparse, time_ratio


@pytest.fixture
def net() -> nn.Module:
    """Return LeNet with a zero filter, and columns of conv2 that are zero in all filters."""
    model = create_backbone("lenet").eval()
    with torch.no_grad():
        model.conv1.weight[3] = 0
        model.conv1.bias[3] = 0
        model.conv2.weight[:, :, 2:] = 0
    return model


X = torch.randn(2, 1, 28, 28)


def faster(dense: nn.Module, sparse: nn.Module, x: torch.Tensor) -> float:
    assert x.shape == (1, 19, 12, 12)  # the input of the layer in the compact network
    torch.testing.assert_close(dense(x), sparse(x))
    return 0.5


def test_a_faster_layer_is_taken_and_written_down(net, tmp_path):
    plan = choose_layers(net, make_plan(net, X[:1]), compare=faster)
    assert plan.sparse == ("conv2",)
    assert "column-sparse, as measured" in plan.notes[-1]
    assert Plan.from_json(plan.to_json()) == plan
    small = compact(net, plan).eval()
    assert isinstance(small.conv2, ColumnSparseConv2d)
    assert small.conv2.columns.numel() == 19 * 10
    torch.testing.assert_close(small(X), net(X))
    save_compact(tmp_path, small, plan, "lenet", {})
    again = load_compact(tmp_path)
    assert isinstance(again.conv2, ColumnSparseConv2d)
    assert torch.equal(again(X), small(X))


def test_the_masked_network_comes_back(net):
    plan = choose_layers(net, make_plan(net, X[:1]), compare=faster)
    masked = expand(compact(net, plan), net, plan).eval()
    torch.testing.assert_close(masked(X), net(X))
    assert type(masked.conv2) is nn.Conv2d


def test_both_forms_take_turns_there_and_back():
    log: list[str] = []

    class Named(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            log.append(self.name)
            return x

    time_ratio(Named("dense"), Named("sparse"), X, rounds=3)
    order = [name for i, name in enumerate(log) if i == 0 or log[i - 1] != name]
    assert order == ["dense", "sparse"] * 2 + ["dense", "sparse"]


@pytest.mark.parametrize("ratio", [0.96, 1.0, 3.0])
def test_a_layer_that_is_not_faster_stays_dense(net, ratio):
    plan = make_plan(net, X[:1])
    chosen = choose_layers(net, plan, compare=lambda dense, sparse, x: ratio)
    assert chosen == plan
    assert type(compact(net, chosen).conv2) is nn.Conv2d


def test_layers_without_zeros_are_not_even_measured(net):
    measured = []
    choose_layers(net, make_plan(net, X[:1]), compare=lambda d, s, x: measured.append(d) or 0.1)
    assert len(measured) == 1  # conv1 has lost its zero filter


def test_measuring_for_real_leaves_the_model_alone(net):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    choose_layers(net, make_plan(net, X[:1]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(2, 2),
        nn.Conv1d(1, 1, 3),
        nn.Conv2d(1, 1, 3, padding_mode="circular"),
        nn.Conv2d(1, 1, 2, padding="same"),
        nn.Conv2d(2, 2, 3),
    ],
)
def test_layers_without_a_column_sparse_form(layer):
    assert column_sparse(layer) is None


def test_a_plan_for_another_network_is_refused(net):
    plan = choose_layers(net, make_plan(net, X[:1]), compare=faster)
    broken = Plan({}, plan.input_shapes, plan.input_types, (), ("conv9",))
    with pytest.raises(ValueError, match="expects a convolution `conv9`"):
        compact(net, broken)
