"""Mistakes in calls from Python: each is refused in words that say what to give instead."""

from __future__ import annotations

import os
import stat
import warnings

import pytest
import torch
from torch import nn

from ssl_lightning import (
    GroupLocks,
    LatencyMeter,
    Regularizer,
    benchmark,
    choose_layers,
    compact,
    compare_precisions,
    count_macs,
    create_backbone,
    export_int8,
    export_model,
    factorise,
    for_inference,
    load_compact,
    make_plan,
    prune_,
    save_compact,
    sensitivity,
)
from ssl_lightning.callbacks.measuring import MEASUREMENTS
from ssl_lightning.measure.record import BenchmarkResult
from ssl_lightning.report.run_report import RunReport

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


LATER = ("Regularizer", "LatencyMeter")
"""They do not run the network when they are made."""


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


@pytest.mark.parametrize("call", TAKING_INPUTS)
def test_an_example_input_has_a_row(net, call):
    with pytest.raises(ValueError, match=r"at least one row, got the shape \(0, 1, 28, 28\)"):
        TAKING_INPUTS[call](net, torch.zeros(0, 1, 28, 28))


@pytest.mark.parametrize("call", [name for name in TAKING_INPUTS if name not in LATER])
def test_an_example_input_has_the_channels_of_the_network(net, call):
    with pytest.raises(ValueError, match=r"LeNet .*\(1, 3, 28, 28\).* Check shapes, types"):
        TAKING_INPUTS[call](net, torch.zeros(1, 3, 28, 28))


def test_threads_are_no_more_than_cores(net):
    most = max(os.cpu_count() or 1, torch.get_num_threads())
    for call in (
        lambda threads: benchmark({"dense": net}, X, threads=threads),
        lambda threads: LatencyMeter(net, X, threads=threads),
    ):
        with pytest.raises(ValueError, match=rf"cores of this machine, got {most + 1}"):
            call(most + 1)


def test_two_regularizers_of_the_same_groups_on_one_optimizer(net):
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    penalties = [{"kind": "filter", "layers": "conv1", "strength": 1e-3}]
    first = Regularizer(net, penalties).attach(sgd)
    with pytest.warns(UserWarning, match=r"Another Regularizer .* this SGD .*such as conv1.bias"):
        second = Regularizer(net, penalties).attach(sgd)
    second.detach()
    first.detach()
    of_filters, of_columns = penalties, [{**penalties[0], "kind": "shape"}]
    attached = Regularizer(net, of_filters).attach(sgd)
    with pytest.warns(UserWarning, match=r"Another Regularizer .* such as conv1.weight: both"):
        Regularizer(net, of_columns).attach(sgd).detach()
    attached.detach()
    other = create_backbone("lenet")  # whose layers have the same names
    both = torch.optim.SGD([*net.parameters(), *other.parameters()], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Regularizer(net, penalties).attach(both)
        Regularizer(other, penalties).attach(both)
        again = Regularizer(net, penalties)
        again.attach(sgd)
        again.attach(sgd)
        Regularizer(net, [{**penalties[0], "layers": "conv2"}]).attach(sgd)
        Regularizer(net, penalties).attach(torch.optim.SGD(net.parameters(), lr=0.1))


def test_a_plan_that_is_older_than_the_zeros(tmp_path):
    torch.manual_seed(0)
    model = Own()
    early = make_plan(model, X)
    prune_(model, X, macs=0.7)
    plan = make_plan(model, X)
    with pytest.warns(UserWarning, match="compact: . filters of `first` became zero after"):
        masked = compact(model, early)
    with pytest.warns(UserWarning, match="save_compact: . filters of `first` became zero after"):
        save_compact(tmp_path / "masked", masked, early)
    small = compact(model, plan)
    prune_(model, X, macs=0.4)
    with pytest.warns(UserWarning, match="compact: . filters of `first` became zero after"):
        compact(model, plan)
    prune_(small, X, macs=0.7)
    with pytest.warns(UserWarning, match="save_compact: . filters of `first` became zero after"):
        save_compact(tmp_path / "late", small, plan)


def test_a_plan_of_the_zeros_that_there_are_is_no_mistake(tmp_path):
    torch.manual_seed(0)
    model = Own()
    prune_(model, X, macs=0.5)
    plan = make_plan(model, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_compact(tmp_path / "compact", compact(model, plan), plan)
        fresh = Own()
        save_compact(tmp_path / "dense", fresh, make_plan(fresh, X))
        with torch.no_grad():
            fresh.second.weight[1] = fresh.second.bias[1] = 0  # the network's output
        kept = make_plan(fresh, X)
        assert kept.modules["second"].idle == 1
        save_compact(tmp_path / "kept", compact(fresh, kept), kept)


def test_a_compact_network_in_place_of_the_dense_one(pruned, tmp_path):
    model, plan = pruned
    folder = save_compact(tmp_path / "small", compact(model, plan), plan)
    with pytest.raises(ValueError, match="Give the dense network that it was made for") as error:
        load_compact(folder, model=compact(model, plan))
    assert "ValueError" not in str(error.value)


@pytest.mark.parametrize("content", ['{"a": 1}', "[1]", '"schema"'])
def test_a_foreign_record_is_named(tmp_path, content):
    path = tmp_path / "foreign.json"
    path.write_text(content)
    for record in (RunReport, BenchmarkResult):
        with pytest.raises(ValueError, match=r"foreign.json: (report|benchmark)?.*expected"):
            record.load(path)


def test_no_penalties_and_no_locks_are_no_attachment(net):
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no penalties and no locks, so that nothing would act"):
        Regularizer(net, []).attach(sgd)
    Regularizer(net, []).attach(sgd, locks=GroupLocks()).detach()


TAKING_NETWORKS = {
    "export_model": lambda net: export_model(net, X, "never.onnx"),
    "export_int8": lambda net: export_int8(net, X, "n.xml", calibration=[X], evaluate=len),
    "compare_precisions": lambda net: compare_precisions({"a": net}, X, [X], len),
    "for_inference": lambda net: for_inference(net, X),
    "factorise": lambda net: factorise(net, X, energy=0.9, method="svd"),
    "choose_layers": lambda net: choose_layers(net, make_plan(create_backbone("lenet"), X)),
}


@pytest.mark.parametrize("call", TAKING_NETWORKS)
@pytest.mark.parametrize("given", ["resnet20", None])
def test_a_name_is_no_network(call, given):
    with pytest.raises(ValueError, match=r"Expected a network, a torch.nn.Module, got"):
        TAKING_NETWORKS[call](given)


@pytest.mark.parametrize("threads", [1.5, "2", True, 0, [1, 1.5]])
def test_threads_are_whole_numbers(net, threads):
    with pytest.raises(ValueError, match="threads: expected a whole number >= 1, got"):
        benchmark({"dense": net}, X, threads=threads)


def test_what_cannot_be_stored_of_a_compact_network(pruned, tmp_path):
    model, plan = pruned
    small = compact(model, plan)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"expected a folder, got the file .*file. Give another"):
        save_compact(tmp_path / "file", small, plan)
    with pytest.raises(ValueError, match=r"got Tensor as 'classes'\. Give plain values"):
        save_compact(tmp_path / "new", small, plan, arguments={"classes": torch.ones(1)})
    assert not (tmp_path / "new").exists()


def test_an_entry_of_the_zoo_is_no_folder():
    with pytest.raises(ValueError, match=r"Load it with `zoo.load\('lenet_mnist_shape'\)`"):
        load_compact("zoo:lenet_mnist_shape")


def test_a_network_that_torch_cannot_run_is_not_the_fault_of_its_capture(net):
    with pytest.raises(ValueError, match=r"Cannot run LeNet .* Check shapes, types") as error:
        prune_(net, X.double(), macs=0.5)
    assert "control flow" not in str(error.value)
