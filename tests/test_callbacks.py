"""Each callback's own effect, and a contract that all of them keep."""

from __future__ import annotations

import copy
import json
import pickle
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from conftest import ROOT
from ssl_lightning import (
    DepthCollapse,
    FilterPictures,
    PruneLike,
    SaveCompact,
    SparsityMonitor,
    SSLLightningModule,
    StructuredSparsity,
    ThresholdPruning,
    compact,
    count_macs,
    create_backbone,
    kept_groups,
    load_compact,
    make_plan,
    prune_like_,
    zoo,
)
from ssl_lightning.callbacks import CALLBACKS
from ssl_lightning.compaction import expand
from ssl_lightning.compaction.store import Recipe
from ssl_lightning.groups import group_norms
from ssl_lightning.locks import GroupLocks
from toy import ToyNet, make_toy, toy_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
FILTERS = {"kind": "filter", "layers": "conv1", "strength": 1e-4}
DEPTH = {"kind": "depth", "layers": "conv2", "strength": 1e-4}

ARGUMENTS = {
    "ThresholdPruning": {"start": 1},
    "DepthCollapse": {"start": 1},
    "CompactDuringFit": {"at": 1},
    "LowRank": {"ranks": {"conv2": [3, 3]}, "at": 1},
    "SparsityMonitor": {"table": False},
    "FilterPictures": {},
    "NormPictures": {},
    "SaveCompact": {},
    "Sparsify": {"network": "backbone"},
    "Budget": {"macs": 0.5, "end": 1},
    "Distill": {"teacher": "zoo:lenet_mnist_dense"},
    "PruneLike": {"like": "zoo:lenet_mnist_shape", "start": 1},
}


def toy_module(*penalties, net=None, **settings):
    given = {"penalties": list(penalties), "optimizer": SGD, **settings}
    return SSLLightningModule(net or make_toy(), **given)


@pytest.mark.parametrize("name", CALLBACKS)
def test_contract(trainer, name):
    """State is plain and survives; pickling works; a foreign module is refused by name."""
    callback = CALLBACKS[name](**ARGUMENTS[name])
    pickle.loads(pickle.dumps(callback))
    state = callback.state_dict()
    assert json.loads(json.dumps(state)) == state
    callback.load_state_dict(copy.deepcopy(state))
    assert callback.state_dict() == state

    class Foreign(LightningModule):
        pass

    run = trainer(max_epochs=2)
    hook = "on_train_epoch_end" if name == "SparsityMonitor" else "on_fit_start"
    if name == "Sparsify":
        callback.on_fit_start = partial(callback.setup, stage="fit")
    with pytest.raises(MisconfigurationException, match=f"{name}: expected a LightningModule with"):
        getattr(callback, hook)(run, Foreign())


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_are_copied_after_a_run(trainer, tmp_path, name):
    """As `copy.deepcopy` of a trainer and processes that are spawned do."""
    pictures = {"folder": str(tmp_path)} if name.endswith("Pictures") else {}
    of_lenet = name in ("Distill", "PruneLike")
    shape = (1, 28, 28) if of_lenet else (1, 8, 8)
    callback = CALLBACKS[name](**{**ARGUMENTS[name], **pictures})
    if name == "Sparsify":
        module = PlainModule()
    else:
        net = create_backbone("lenet") if of_lenet else None
        penalties = [{**FILTERS, "kind": "shape"}] if name == "PruneLike" else [FILTERS, DEPTH]
        penalties = {"Distill": [], "LowRank": [FILTERS]}.get(name, penalties)
        module = toy_module(*penalties, net=net)
    run = trainer(max_epochs=2, callbacks=[callback], default_root_dir=tmp_path)
    run.fit(module, toy_loader(16, shape=shape))
    state = callback.state_dict()
    for again in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert type(again) is type(callback)
        assert again.state_dict() == state


class PlainModule(StructuredSparsity, LightningModule):
    """Of a user."""

    def __init__(self):
        super().__init__()
        self.backbone = make_toy()

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.backbone(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("name", ["ThresholdPruning", "DepthCollapse", "PruneLike"])
def test_occasions_that_never_come_are_refused(trainer, name):
    module = toy_module(FILTERS, DEPTH)
    with pytest.raises(ValueError, match=f"{name}: start=5 is never reached.*epochs 0 to 1"):
        trainer(max_epochs=2, callbacks=[CALLBACKS[name](**{**ARGUMENTS[name], "start": 5})]).fit(
            module, toy_loader()
        )
    with pytest.raises(ValueError, match="start >= 0 and every_n_epochs >= 0"):
        CALLBACKS[name](**{**ARGUMENTS[name], "start": -1})


def reference_filter_norms(net):
    parts = [net.conv1.weight, net.conv1.bias, net.bn1.weight, net.bn1.bias]
    rows = [p.detach().double().reshape(6, -1).numpy() for p in parts]
    return np.sqrt(sum((row**2).sum(1) for row in rows))


@pytest.mark.parametrize("relative", [False, True])
def test_threshold_pruning_zeroes_exactly_the_small_groups(trainer, relative):
    net = make_toy()
    with torch.no_grad():
        net.conv1.weight *= torch.tensor([1, 1, 9, 9, 9, 9.0]).view(-1, 1, 1, 1)
    norms = reference_filter_norms(net)
    limit = float(np.sort(norms)[1] + np.sort(norms)[2]) / 2
    callback = ThresholdPruning(
        start=0, threshold=limit / norms.max() if relative else limit, relative=relative
    )
    module = toy_module(FILTERS, net=net)
    run = trainer(max_epochs=2, callbacks=[callback])
    run.fit(module, toy_loader())
    small = torch.tensor(norms <= limit)
    assert small.sum() == 2
    for parameter in (net.conv1.weight, net.conv1.bias, net.bn1.weight, net.bn1.bias):
        assert not parameter[small].any()
    assert (
        group_norms(module.sparsity.regularizer.group_sets[0], dict(net.named_parameters()))[~small]
        > 0
    ).all()
    assert len(module.sparsity.locks) == 2


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.filterwarnings("ignore:ThresholdPruning zeroes all groups")
@pytest.mark.parametrize("place", [0.0, 0.5, 1.5, 9.0])
def test_threshold_pruning_says_which_group_is_next(trainer, monkeypatch, relative, place):
    """The one nearest to its threshold: place 1.5 lies between the second and the third norm."""
    said = []
    monkeypatch.setattr("ssl_lightning.callbacks.pruning.rank_zero_info", said.append)
    net = make_toy()
    with torch.no_grad():
        net.conv1.weight *= torch.tensor([1, 2, 4, 8, 16, 32.0]).view(-1, 1, 1, 1)
    norms = np.sort(reference_filter_norms(net))
    limit = float(np.interp(place, range(1, 7), norms)) if place >= 1 else place * norms[0]
    threshold = limit / norms[-1] if relative else limit
    pruning = ThresholdPruning(start=0, threshold=threshold, relative=relative)
    trainer(max_epochs=1, callbacks=[pruning]).fit(toy_module(FILTERS, net=net), toy_loader())
    zeroed = int((norms <= limit).sum())
    text = f"ThresholdPruning: {zeroed} groups newly zeroed in epoch 0."
    if zeroed < 6:
        text += (
            f" Next would be one of conv1:filter, with norm {norms[zeroed]:.3g} (threshold "
            f"{limit:.3g}{f', {threshold:.3g} of the largest' if relative else ''})."
        )
    assert said == [text]


def test_threshold_pruning_by_fraction_names_no_next_group(trainer, monkeypatch):
    said = []
    monkeypatch.setattr("ssl_lightning.callbacks.pruning.rank_zero_info", said.append)
    pruning = ThresholdPruning(start=0, fraction=0.5)
    trainer(max_epochs=1, callbacks=[pruning]).fit(toy_module(FILTERS), toy_loader())
    assert said == ["ThresholdPruning: 3 groups newly zeroed in epoch 0."]


@pytest.mark.parametrize(("fraction", "zeroed"), [(0.0, 0), (0.2, 1), (0.5, 3), (0.9, 5)])
def test_threshold_pruning_by_fraction_zeroes_the_smallest(trainer, fraction, zeroed):
    net = make_toy()
    norms = reference_filter_norms(net)
    module = toy_module(FILTERS, net=net)
    callback = ThresholdPruning(start=0, fraction=fraction)
    trainer(max_epochs=1, callbacks=[callback]).fit(module, toy_loader())
    gone = [not w.any() for w in net.conv1.weight]
    assert gone == [bool(rank < zeroed) for rank in np.argsort(np.argsort(norms))]


def test_threshold_pruning_by_fraction_counts_zeros_and_takes_turns(trainer):
    """What is zero already is part of the fraction; the largest group stays."""
    net = make_toy()
    with torch.no_grad():
        for parameter in (net.conv1.weight, net.conv1.bias, net.bn1.weight, net.bn1.bias):
            parameter[:2] = 0
    module = toy_module(FILTERS, net=net)
    callback = ThresholdPruning(start=0, every_n_epochs=1, fraction=0.5)
    trainer(max_epochs=2, callbacks=[callback]).fit(module, toy_loader())
    assert kept_groups(module.backbone)["conv1"]["filters"] == [3, 6]
    nearly_all = ThresholdPruning(start=0, fraction=0.99)
    assert nearly_all.to_zero(torch.arange(6.0), "conv1").tolist() == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("zeros", "goal", "multiple", "left"),
    [
        (0, {"fraction": 0.5}, 1, 3),
        (0, {"fraction": 0.5}, 2, 4),  # the nearest to 3, of 2 and 4 the even multiple
        (0, {"fraction": 0.5}, 4, 4),
        (0, {"fraction": 0.7}, 4, 4),  # never none
        (0, {"fraction": 0.0}, 4, 6),  # loses none
        (0, {"fraction": 0.7}, 16, 4),  # of 6, as many as half of half of 16
        (1, {"threshold": 0.0}, 2, 4),  # 5 are left, 6 cannot be
        (1, {"threshold": 0.0}, 4, 4),
        (3, {"threshold": 0.0}, 2, 2),
        (3, {"threshold": 0.0}, 4, 3),  # too few for a multiple
        (0, {"threshold": 1e9}, 4, 0),  # a layer that is emptied stays empty
    ],
)
@pytest.mark.filterwarnings("ignore:ThresholdPruning zeroes all groups")
def test_threshold_pruning_retains_multiples(trainer, zeros, goal, multiple, left):
    net = make_toy()
    with torch.no_grad():
        for parameter in (net.conv1.weight, net.conv1.bias, net.bn1.weight, net.bn1.bias):
            parameter[:zeros] = 0
    norms = reference_filter_norms(net)
    callback = ThresholdPruning(start=0, multiple=multiple, **goal)
    trainer(max_epochs=1, callbacks=[callback]).fit(toy_module(FILTERS, net=net), toy_loader())
    alive = [bool(w.any()) for w in net.conv1.weight]
    assert alive == [bool(rank >= 6 - left) for rank in np.argsort(np.argsort(norms))]


@pytest.mark.parametrize("multiple", [0, -8, 1.5, True, "auto"])
def test_threshold_pruning_refuses_wrong_multiples(multiple):
    with pytest.raises(ValueError, match="ThresholdPruning: expected a whole number >= 1"):
        ThresholdPruning(start=0, multiple=multiple)


@pytest.mark.parametrize(
    "arguments",
    [
        {"fraction": 1.0},
        {"fraction": -0.1},
        {"fraction": float("nan")},
        {"fraction": 0.5, "threshold": 0.1},
        {"fraction": 0.5, "relative": True},
        {"fraction": {"conv1": 0.5, "conv2": 1.0}},
        {"fraction": {"conv1": 0.5}, "layers": "conv1"},
        {"fraction": {"conv1": 0.5}, "threshold": 0.1},
    ],
)
def test_threshold_pruning_refuses_wrong_fractions(arguments):
    with pytest.raises(ValueError, match=r"ThresholdPruning: expected .*fraction.*, got"):
        ThresholdPruning(start=0, **arguments)


def test_threshold_pruning_by_fractions_of_layers(trainer):
    """The first glob that matches counts; layers that none matches are left alone."""
    every = {"kind": "filter", "layers": "*", "strength": 1e-6}
    module = toy_module(every)
    callback = ThresholdPruning(start=0, fraction={"conv1": 0.5, "conv*": 0.2})
    trainer(max_epochs=1, callbacks=[callback]).fit(module, toy_loader())
    zero = {
        s.layer: int((group_norms(s, dict(module.backbone.named_parameters())) == 0).sum())
        for s in module.sparsity.regularizer.group_sets
    }
    sizes = {s.layer: s.num_groups for s in module.sparsity.regularizer.group_sets}
    assert zero == {
        layer: round({"conv1": 0.5, "fc": 0.0}.get(layer, 0.2) * size)
        for layer, size in sizes.items()
    }
    assert len(set(zero.values())) > 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"fraction": {"conv1": 0.5, "conv9": 0.5}},
        {"layers": ["conv1", "conv9"]},
        {"kinds": ["shape"], "layers": "conv9"},
    ],
)
def test_threshold_pruning_refuses_layers_without_groups(trainer, arguments):
    module = toy_module(FILTERS)
    run = trainer(max_epochs=1, callbacks=[ThresholdPruning(start=0, **arguments)])
    with pytest.raises(ValueError, match=r"got layers \['conv9'\].*match none.*conv1.filter"):
        run.fit(module, toy_loader())


def test_threshold_pruning_without_lock_lets_groups_come_back(trainer):
    module = toy_module({"kind": "channel", "layers": "conv2", "strength": 1e-6})
    callback = ThresholdPruning(start=0, threshold=0.97, relative=True, lock=False)
    seen = []
    module.on_train_batch_start = lambda *_: seen.append(kept_groups(module.backbone)["conv2"])
    trainer(max_epochs=1, callbacks=[callback]).fit(module, toy_loader())
    assert len(module.sparsity.locks) == 0
    assert seen[0]["channels"][0] < 6
    assert seen[-1]["channels"][0] == 6


def test_threshold_pruning_chooses_kinds_and_layers(trainer):
    module = toy_module(FILTERS, {"kind": "channel", "layers": "conv2", "strength": 1e-4})
    callback = ThresholdPruning(start=0, threshold=0.5, relative=True, kinds=["channel"])
    assert [s.name for s in callback.chosen(module.sparsity.regularizer)] == ["conv2:channel"]
    with pytest.raises(ValueError, match=r"match none of the penalised groups: conv1:filter"):
        trainer(max_epochs=1, callbacks=[ThresholdPruning(start=0, layers="fc")]).fit(
            module, toy_loader()
        )
    with pytest.raises(ValueError, match="threshold >= 0"):
        ThresholdPruning(start=0, threshold=-1)


L1_TERMS = [
    {"kind": "l1", "layers": "conv*", "strength": 1e-6, "schedule": {"kind": "window", "end": 1}},
    {"kind": "l1", "layers": "conv1", "strength": 1e-6},  # the same weights a second time
]


@pytest.mark.parametrize("channels_last", [False, True])
def test_threshold_pruning_of_single_weights(trainer, channels_last):
    """The smallest of an l1 penalty's weights become zero, alone, and stay so."""
    net = make_toy()
    before = {n: getattr(net, n).weight.detach().clone().numpy() for n in ("conv1", "conv2")}
    module = toy_module(*L1_TERMS, net=net, channels_last=channels_last)
    callback = ThresholdPruning(start=0, kinds=["l1"], fraction={"conv1": 0.5, "conv2": 0.9})
    run = trainer(max_epochs=2, callbacks=[callback])
    run.fit(module, toy_loader())
    for name, share in (("conv1", 0.5), ("conv2", 0.9)):
        size = np.abs(before[name]).ravel()
        gone = np.argsort(np.argsort(size)) < round(share * size.size)
        zero = getattr(module.backbone, name).weight.detach().numpy() == 0
        assert np.array_equal(zero.ravel(), gone)
    assert module.backbone.conv1.bias.all(), "a weight's zero is not its filter's"
    assert module.backbone.bn2.weight.all()
    again = GroupLocks()
    again.load_state_dict(module.sparsity.locks.state_dict())
    parameters = dict(module.backbone.named_parameters())
    marks = again.marks(parameters)
    assert set(marks) == {"conv1.weight", "conv2.weight"}
    assert all(torch.equal(mask, parameters[n] == 0) for n, mask in marks.items())
    assert len(again) == sum(int(mask.sum()) for mask in marks.values())


def test_single_weights_are_pruned_only_if_named(trainer):
    """A threshold that suits the norms of groups would take most single weights."""
    module = toy_module(FILTERS, *L1_TERMS)
    pruning = ThresholdPruning(start=0, threshold=1e-9)
    assert [s.name for s in pruning.chosen(module.sparsity.regularizer)] == ["conv1:filter"]
    pruning.kinds = ["filter", "l1"]
    chosen = ["conv1:filter", "conv1:l1", "conv2:l1"]
    assert sorted(s.name for s in pruning.chosen(module.sparsity.regularizer)) == chosen
    run = trainer(max_epochs=1, callbacks=[ThresholdPruning(start=0)])
    with pytest.raises(ValueError, match=r"none of the penalised groups: conv1:l1, .*only if .*l1"):
        run.fit(toy_module(*L1_TERMS), toy_loader())


def test_pruning_a_whole_layer_warns(trainer):
    module = toy_module(FILTERS)
    with pytest.warns(UserWarning, match="zeroes all groups of conv1:filter.*network is cut"):
        trainer(max_epochs=1, callbacks=[ThresholdPruning(start=0, threshold=1e9)]).fit(
            module, toy_loader()
        )


def count_convolutions(net, x):
    """Count the convolutions that a forward pass in eval mode really computes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.number += "convolution" in str(func)
            return func(*args, **(kwargs or {}))

    modes = {module: module.training for module in net.modules()}
    with Count() as mode, torch.no_grad():
        net.eval()(x)
    for module, training in modes.items():
        module.training = training
    return mode.number


@pytest.mark.parametrize("backbone", ["resnet20", "torchvision:resnet18"])
def test_depth_collapse_skips_the_branch_and_keeps_the_function(trainer, backbone):
    torch.manual_seed(0)
    settings = {} if backbone == "resnet20" else {"num_classes": 10}
    net = create_backbone(backbone, **settings)
    layer = "layer2.1.conv1"
    with torch.no_grad():
        net.get_submodule(layer).weight.zero_()
    before = count_convolutions(net, torch.zeros(2, 3, 32, 32))
    keys = {name: p.shape for name, p in net.state_dict().items()}
    callback = DepthCollapse(start=0)
    module = SSLLightningModule(
        net, penalties=[{**DEPTH, "layers": "layer*.conv?"}], optimizer=SGD, input_shape=[3, 32, 32]
    )
    trainer(max_epochs=1, limit_train_batches=2, callbacks=[callback]).fit(
        module, toy_loader(16, shape=(3, 32, 32))
    )
    x = torch.randn(2, 3, 32, 32)
    net.eval()
    assert count_convolutions(net, x) == before - 2
    assert {name: p.shape for name, p in net.state_dict().items()} == keys
    fresh = create_backbone(backbone, **settings).eval()
    fresh.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(x), fresh(x))
    for name in ("layer2.1.conv1", "layer2.1.conv2", "layer2.1.bn1", "layer2.1.bn2"):
        assert not any(p.any() for p in net.get_submodule(name).parameters())


def test_collapsed_branches_are_skipped_again_after_resuming(trainer, tmp_path):
    def make():
        net = make_toy()
        with torch.no_grad():
            net.conv2.weight.zero_()
        return toy_module(DEPTH, net=net), DepthCollapse(start=0)

    module, callback = make()
    run = trainer(max_epochs=1, callbacks=[callback])
    run.fit(module, toy_loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    again, restored = make()
    trainer(max_epochs=2, callbacks=[restored]).fit(
        again, toy_loader(), ckpt_path=tmp_path / "a.ckpt"
    )
    assert restored.collapsed == callback.collapsed != []
    assert count_convolutions(again.backbone.eval(), torch.zeros(1, 1, 8, 8)) == 1
    assert not again.backbone.conv2.weight.any()
    assert not again.backbone.bn2.bias.any()


def test_depth_collapse_needs_residual_branches(trainer):
    module = SSLLightningModule("lenet")
    with pytest.raises(ValueError, match="LeNet has no residual additions"):
        trainer(max_epochs=1, callbacks=[DepthCollapse()]).fit(
            module, toy_loader(shape=(1, 28, 28))
        )


def test_sparsity_monitor_logs_to_any_logger_and_prints_a_table(trainer, tmp_path, capsys):
    net = make_toy()
    with torch.no_grad():
        net.conv1.weight[:3] = 0
    module = SSLLightningModule(
        net,
        penalties=[{**FILTERS, "members": "weight"}],
        optimizer=partial(torch.optim.SGD, lr=1e-9),
    )
    logger = CSVLogger(tmp_path)
    trainer(max_epochs=1, logger=logger, callbacks=[SparsityMonitor()]).fit(module, toy_loader())
    text = Path(logger.experiment.metrics_file_path).read_text()
    header, *rows = (line.split(",") for line in text.splitlines())
    last = {
        k.strip(): v.strip() for row in rows for k, v in zip(header, row, strict=True) if v.strip()
    }
    kept = kept_groups(net)["conv1"]["filters"]
    assert float(last["sparsity/conv1/filters"]) == pytest.approx(100 * (1 - kept[0] / 6))
    assert float(last["strength/conv1:filter"]) == pytest.approx(1e-4 * 3)
    norms = net.conv1.weight.detach().double().flatten(1).norm(dim=1)
    assert float(last["smallest_norm/conv1:filter"]) == pytest.approx(float(norms[norms > 0].min()))
    table = capsys.readouterr().out
    assert "Groups left" in table
    assert f"{kept[0]} of 6" in table


def test_sparsity_monitor_counts_the_zeros_of_l1(trainer):
    """Percent of the weights that the layer has now; layers without l1 have no such figure."""
    module = toy_module(FILTERS, {"kind": "l1", "layers": "conv2", "strength": 1e-9})
    pruning = ThresholdPruning(start=0, kinds=["l1"], fraction=0.75)
    run = trainer(max_epochs=1, callbacks=[pruning, SparsityMonitor(table=False)])
    run.fit(module, toy_loader())
    found = {k: float(v) for k, v in run.logged_metrics.items() if k.endswith("/weights")}
    assert found == {"sparsity/conv2/weights": pytest.approx(75.0)}


def test_filter_pictures_reach_tensorboard_and_file(trainer, tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = toy_module(FILTERS)
    logger = TensorBoardLogger(tmp_path, log_graph=False)
    callback = FilterPictures(folder=str(tmp_path / "pictures"))
    trainer(max_epochs=1, logger=logger, callbacks=[callback]).fit(module, toy_loader())
    logger.finalize("success")
    with Image.open(tmp_path / "pictures" / "filters.png") as picture:
        assert min(picture.size) > 50
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert events.Tags()["images"] == ["filters"]


def test_filter_pictures_show_before_and_after(trainer, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("ssl_lightning.callbacks.monitor.filter_pictures",
                        lambda panels, path: drawn.append(panels))  # fmt: skip
    kept = {}

    class Keep(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            kept[trainer.current_epoch] = pl_module.backbone.conv1.weight.detach().clone().numpy()

    def fit(epochs, module, **settings):
        callbacks = [FilterPictures(before=1), Keep()]
        trainer(max_epochs=epochs, callbacks=callbacks).fit(module, toy_loader(), **settings)
        return callbacks[0]

    first = toy_module()
    fit(2, first)
    first.trainer.save_checkpoint(tmp_path / "a.ckpt")
    fit(3, toy_module(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    for panels, last in zip(drawn, (1, 2), strict=True):
        assert list(panels) == ["before", "after"]
        np.testing.assert_array_equal(panels["before"], kept[0])
        np.testing.assert_array_equal(panels["after"], kept[last])
    with pytest.raises(ValueError, match="start=1 is never reached"):
        fit(1, toy_module())


def test_filter_pictures_name_the_convolutions_there_are(trainer):
    callback = FilterPictures(layer="conv9")
    with pytest.raises(
        ValueError, match=r"no convolution 'conv9' in ToyNet. Convolutions: conv1, conv2"
    ):
        trainer(max_epochs=1, callbacks=[callback]).fit(toy_module(), toy_loader())


def test_save_compact_writes_a_network_with_the_same_function(trainer, tmp_path):
    module = SSLLightningModule("lenet", penalties=[FILTERS], optimizer=SGD)
    with torch.no_grad():
        module.backbone.conv1.weight[5:] *= 0.01
    pruning = ThresholdPruning(start=0, threshold=0.5, relative=True)
    run = trainer(max_epochs=1, callbacks=[pruning, SaveCompact(str(tmp_path / "small"))])
    run.fit(module, toy_loader(shape=(1, 28, 28)))
    small = load_compact(tmp_path / "small")
    assert small.conv1.out_channels < 20
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(small(x), module.backbone.eval()(x), rtol=1e-4, atol=1e-5)


def test_save_compact_takes_a_backbone_given_as_an_object(trainer, tmp_path):
    unsized = toy_module(net=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(ValueError, match="shape of the network's input is not known"):
        trainer(max_epochs=1, callbacks=[SaveCompact()]).fit(unsized, toy_loader())
    module = toy_module()
    callbacks = [SaveCompact(str(tmp_path / "small"))]
    trainer(max_epochs=1, callbacks=callbacks).fit(module, toy_loader())
    with pytest.raises(ValueError, match=r"of the network 'toy\.ToyNet'\. Give it: "):
        load_compact(tmp_path / "small")
    small, x = load_compact(tmp_path / "small", ToyNet), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(small(x), module.backbone.eval()(x), rtol=1e-4, atol=1e-5)


# PruneLike: controls with the groups of a compact network


SHAPES = [{"kind": "coupled"}, {"kind": "shape", "layers": "conv*"}]
MNIST = (1, 28, 28)


def controlled(trainer, like, seed=0, groups=None, importance="l2", epochs=2, **settings):
    """A LeNet trained for two short epochs, pruned at the start of the second."""
    pl.seed_everything(seed)
    module = SSLLightningModule("lenet", optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9))
    callback = PruneLike(like, start=1, groups=groups, importance=importance)
    run = trainer(max_epochs=epochs, callbacks=[callback], **settings)
    run.fit(module, toy_loader(shape=MNIST))
    return module.backbone.eval()


@pytest.mark.parametrize(
    ("name", "groups"),
    [("lenet_mnist_filter_channel", None), ("lenet_mnist_shape", SHAPES)],
)
@pytest.mark.parametrize("importance", ["l2", "random"])
def test_a_control_has_the_groups_and_multiply_adds_of_the_entry(trainer, name, groups, importance):
    backbone = controlled(trainer, f"zoo:{name}", groups=groups, importance=importance)
    card = zoo.card(name)
    x = torch.zeros(1, *MNIST)
    small = compact(backbone, make_plan(backbone, x))
    left = kept_groups(small)
    for layer, kinds in card.groups.items():
        for kind in ("filters", "columns") if groups else ("filters",):
            if kind in kinds:
                assert left[layer][kind][0] == kinds[kind][0], (layer, kind)
    assert count_macs(small, x) == card.compact.macs


def test_random_groups_are_others_and_the_same_for_the_same_seed(trainer):
    like = "zoo:lenet_mnist_filter_channel"
    nets = [
        controlled(trainer, like, seed, importance=importance)
        for seed, importance in ((0, "l2"), (0, "random"), (0, "random"), (1, "random"))
    ]
    kept = [net.conv2.weight.flatten(1).any(1) for net in nets]
    assert torch.equal(kept[1], kept[2])
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[3])


def test_the_largest_groups_stay_and_columns_are_those_of_living_channels():
    net, like = create_backbone("lenet"), zoo.load("lenet_mnist_shape")
    with torch.no_grad():
        net.conv1.weight[7] *= 10
        net.conv2.weight[:, 8] *= 100  # of a channel that goes
    entry = ROOT / "zoo" / "lenet_mnist_shape" / "plan.json"
    masked = expand(like, create_backbone("lenet"), Recipe.from_json(entry.read_text()).plans)
    prune_like_(net, torch.zeros(1, *MNIST), masked, SHAPES)
    assert net.conv1.weight.flatten(1).any(1).nonzero().tolist() == [[7]]
    assert net.conv2.weight.any(0).flatten(1).any(1).nonzero().tolist() == [[7]]


def test_a_control_is_resumed_bit_by_bit(trainer, tmp_path):
    like = "zoo:lenet_mnist_filter_channel"
    whole = controlled(trainer, like, importance="random", epochs=3)
    pl.seed_everything(0)
    module = SSLLightningModule("lenet", optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9))
    first = trainer(max_epochs=1, callbacks=[])
    first.fit(module, toy_loader(shape=MNIST))
    first.save_checkpoint(tmp_path / "a.ckpt")
    pl.seed_everything(5)
    again = SSLLightningModule("lenet", optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9))
    callback = PruneLike(like, start=1, importance="random")
    run = trainer(max_epochs=3, callbacks=[callback])
    run.fit(again, toy_loader(shape=MNIST), ckpt_path=tmp_path / "a.ckpt", weights_only=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.backbone.state_dict()[name]), name


def test_controls_of_other_backbones_and_rules_are_refused(trainer, tmp_path):
    with pytest.raises(ValueError, match="Unknown importance 'luck'"):
        PruneLike("zoo:lenet_mnist_shape", start=1, importance="luck")
    callback = PruneLike("zoo:lenet_mnist_shape", start=1)
    with pytest.raises(ValueError, match=r"was made from lenet .*other layers"):
        trainer(max_epochs=2, callbacks=[callback]).fit(toy_module(), toy_loader())
    callback = PruneLike(str(tmp_path), start=1)
    with pytest.raises(FileNotFoundError, match=r"No model\.safetensors"):
        trainer(max_epochs=2, callbacks=[callback]).fit(toy_module(), toy_loader())
    with pytest.raises(ValueError, match="of the same sizes as the model"):
        prune_like_(create_backbone("lenet"), torch.zeros(1, *MNIST), create_backbone("mlp"))
