"""Mistakes in calls from Python: each is refused in words that say what to give instead."""

from __future__ import annotations

import stat

import pytest
import torch
from torch import nn

from ssl_lightning import (
    LatencyMeter,
    Regularizer,
    benchmark,
    compact,
    count_macs,
    create_backbone,
    export_model,
    load_compact,
    make_plan,
    prune_,
    save_compact,
    sensitivity,
)
from ssl_lightning.callbacks.measuring import MEASUREMENTS

X = torch.zeros(1, 1, 28, 28)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return create_backbone("lenet")


TAKING_INPUTS = {
    "make_plan": make_plan,
    "prune_": lambda net, x: prune_(net, x, macs=0.5),
    "count_macs": count_macs,
    "sensitivity": lambda net, x: sensitivity(net, x, lambda net: 0.0),
    "benchmark": lambda net, x: benchmark({"dense": net}, x),
    "export_model": lambda net, x: export_model(net, x, "never.onnx"),
    "LatencyMeter": LatencyMeter,
    "Regularizer": lambda net, x: Regularizer(net, [{"kind": "filter", "strength": 1e-3}], x),
}


@pytest.mark.parametrize("call", TAKING_INPUTS)
@pytest.mark.parametrize("shape", [(1, 1, 28, 28), [1, 28, 28]])
def test_a_shape_is_no_example_input(net, call, shape):
    with pytest.raises(ValueError, match=r"got the shape .*Give torch.zeros\(1, 1, 28, 28\)"):
        TAKING_INPUTS[call](net, shape)


@pytest.mark.parametrize("call", TAKING_INPUTS)
def test_arguments_in_the_other_order(net, call):
    with pytest.raises(ValueError, match="The network is the first argument"):
        TAKING_INPUTS[call](X, net)


def test_a_plan_is_needed(net):
    for plan in (None, X):
        with pytest.raises(ValueError, match=r"expected a plan, got \w+. Make it: make_plan"):
            compact(net, plan)


@pytest.mark.parametrize("given", [{"kind": "filter"}, ["filter"], X])
def test_penalties_are_a_list_of_mappings(net, given):
    with pytest.raises(ValueError, match="Write a list of them, one per penalty") as error:
        Regularizer(net, given, X)
    assert len(str(error.value)) < 300


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3)
        self.second = nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.second(self.first(x).relu()).mean((2, 3))


@pytest.fixture
def pruned():
    torch.manual_seed(0)
    model = Own()
    prune_(model, X, macs=0.5)
    return model, make_plan(model, X)


def test_what_was_not_compacted_is_not_saved(pruned, tmp_path):
    model, plan = pruned
    with pytest.raises(ValueError, match=r"Own that the plan was not carried out on"):
        save_compact(tmp_path / "small", model, plan)
    assert not (tmp_path / "small").exists()
    folder = save_compact(tmp_path / "small", compact(model, plan), plan)
    torch.testing.assert_close(load_compact(folder, model=Own)(X), model.eval()(X))


def test_arguments_of_save_compact_in_another_order(pruned, tmp_path):
    model, plan = pruned
    small = compact(model, plan)
    for given in ((small, tmp_path, plan), (tmp_path, plan, small), (tmp_path, small, None)):
        with pytest.raises(ValueError, match=r"Call save_compact\(folder, small, plan\)"):
            save_compact(*given)


def test_others_may_read_the_files(pruned, tmp_path):
    model, plan = pruned
    folder = save_compact(tmp_path / "small", compact(model, plan), plan)
    (folder / "any").touch()
    modes = {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert len(modes) == 1


def test_what_is_no_optimizer_is_refused(net):
    regularizer = Regularizer(net, [{"kind": "filter", "strength": 1e-3}], X)
    for given in (net, [net], None):
        with pytest.raises(ValueError, match="attach: expected an optimizer, or several, got"):
            regularizer.attach(given)


@pytest.mark.parametrize("given", [None, 1e-3, "filter", {"kind": "filter"}])
def test_penalties_are_a_list(net, given):
    with pytest.raises(ValueError, match="expected a list of mappings"):
        Regularizer(net, given, X)


@pytest.mark.parametrize("importance", MEASUREMENTS)
def test_importance_that_needs_data_says_where_it_is_measured(net, importance):
    with pytest.raises(ValueError, match=r"training inputs, .*Give Budget\(importance"):
        prune_(net, X, macs=0.5, importance=importance)


@pytest.mark.parametrize("multiple", [0, 8.0])
def test_multiples_are_whole_numbers(net, multiple):
    with pytest.raises(ValueError, match="expected a whole number >= 1 as multiple"):
        prune_(net, X, macs=0.5, multiple=multiple)
