"""Compaction in the middle of training: nothing but the sizes changes, and training goes on."""

from __future__ import annotations

import copy
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    TQDMProgressBar,
)
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from ssl_lightning import (
    Budget,
    CompactDuringFit,
    DepthCollapse,
    FilterPictures,
    MNISTDataModule,
    SaveCompact,
    SparsityMonitor,
    SSLLightningModule,
    ThresholdPruning,
    compact,
    count_macs,
    create_backbone,
    load_backbone,
    load_compact,
    make_plan,
)
from ssl_lightning.compaction import slice_tensors
from ssl_lightning.compaction.state import SLICEABLE
from ssl_lightning.measure.left import MacsLeft
from toy import make_toy, toy_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # some tests read a checkpoint without the callbacks that wrote it
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
FILTERS = {"kind": "filter", "layers": "conv1", "strength": 1e-4}
KEPT = [0, 2, 5]
"""Channels of the toy that stay."""
COLUMNS = [16 * c + i for c in KEPT for i in range(16)]
"""Features of its linear layer that stay."""
SLICES = {
    "conv1.weight": (KEPT,),
    "conv1.bias": (KEPT,),
    "bn1.weight": (KEPT,),
    "bn1.bias": (KEPT,),
    "conv2.weight": (KEPT, KEPT),
    "bn2.weight": (KEPT,),
    "bn2.bias": (KEPT,),
    "fc.weight": (slice(None), COLUMNS),
    "fc.bias": (slice(None),),
}
"""By hand: what is kept of every parameter of the toy."""


def kept_part(name: str, tensor: torch.Tensor) -> torch.Tensor:
    for dim, index in enumerate(SLICES[name]):
        tensor = (
            tensor if isinstance(index, slice) else tensor.index_select(dim, torch.tensor(index))
        )
    return tensor


class Zero(Callback):
    """At the start of an epoch, zero all that writes the channels that are not kept."""

    def __init__(self, at=1, channels=(1, 3, 4)):
        self.at, self.channels = at, list(channels)

    @torch.no_grad()
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.at:
            net = pl_module.backbone
            for layer in (net.conv1, net.bn1, net.conv2, net.bn2):
                for parameter in layer.parameters():
                    parameter[self.channels] = 0


class Watch(Callback):
    """Call a function at the start of each epoch, at this place among the callbacks."""

    def __init__(self, look):
        self.look = look

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.look(trainer, pl_module)


def fit(trainer, *, net=None, penalties=(), optimizer=SGD, callbacks=(), before=None, after=None,
        epochs=3, loader=None, module_settings=None, **settings):  # fmt: skip
    """Train the toy, compacting at the start of epoch 1."""
    module = SSLLightningModule(
        make_toy() if net is None else net,
        penalties=list(penalties),
        optimizer=optimizer,
        **(module_settings or {}),
    )
    watches = [Watch(look) for look in (before, after) if look is not None]
    run = trainer(
        max_epochs=epochs,
        callbacks=[
            Zero(),
            *(watches[:1] if before else []),
            CompactDuringFit(at=1),
            *(watches[-1:] if after else []),
            *callbacks,
        ],
        **settings,
    )
    run.fit(module, loader or toy_loader(), toy_loader())
    return module, run


def optimizer_parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_the_loss_is_the_same_and_the_network_smaller(trainer):
    seen = []

    def loss(trainer, module):
        net = copy.deepcopy(module.backbone).double()
        batches = [(x.double(), y) for x, y in toy_loader()]
        with torch.no_grad():
            for mode in (net.train(), net.eval()):
                seen.append(sum(F.cross_entropy(mode(x), y) for x, y in batches))

    module, _ = fit(trainer, before=loss, after=loss)
    torch.testing.assert_close(seen[:2], seen[2:], rtol=1e-12, atol=0)
    assert {n: tuple(p.shape) for n, p in module.backbone.named_parameters()} == {
        n: tuple(kept_part(n, p).shape) for n, p in make_toy().named_parameters()
    }
    assert module.backbone.training


@pytest.mark.parametrize("compiled", [False, True])
def test_the_optimizer_holds_the_live_parameters_and_moves_them_all(trainer, compiled):
    found = {}

    def look(trainer, module):
        (optimizer,) = trainer.optimizers
        live = list(module.backbone.parameters())
        assert list(map(id, optimizer_parameters(optimizer))) == list(map(id, live))
        assert set(map(id, optimizer.state)) == set(map(id, live))
        found.update((n, p.detach().clone()) for n, p in module.backbone.named_parameters())

    class Step(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx == 0:
                for name, parameter in pl_module.backbone.named_parameters():
                    assert not torch.equal(parameter, found.pop(name)), name

    fit(trainer, after=look, callbacks=[Step()], epochs=2, limit_train_batches=3,
        module_settings={"compile": compiled})  # fmt: skip
    assert not found, "the step after compaction was looked at"


STATEFUL = {
    "SGD": {"lr": 0.05, "momentum": 0.9},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True},
}


@pytest.mark.parametrize(
    "kind", [k for k in SLICEABLE if k.__module__.startswith("torch.")], ids=lambda k: k.__name__
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_optimizer_state_is_the_slice_of_the_old_one(trainer, kind, channels_last):
    old = {}

    def remember(trainer, module):
        (optimizer,) = trainer.optimizers
        for name, parameter in module.backbone.named_parameters():
            old[name] = copy.deepcopy(optimizer.state[parameter])

    def compare(trainer, module):
        (optimizer,) = trainer.optimizers
        for name, parameter in module.backbone.named_parameters():
            state = optimizer.state[parameter]
            assert state.keys() == old[name].keys() != set()
            for key, value in old[name].items():
                expected = kept_part(name, value) if value.dim() else value
                torch.testing.assert_close(state[key], expected, rtol=0, atol=0)
                if value.dim():
                    assert state[key].stride() == parameter.stride()
        old["compared"] = True

    optimizer = partial(kind, **STATEFUL.get(kind.__name__, {"lr": 0.01}))
    fit(trainer, optimizer=optimizer, before=remember, after=compare, epochs=2,
        module_settings={"channels_last": channels_last})  # fmt: skip
    assert old["compared"]


def test_groups_schedules_scaler_and_accumulation_go_on(trainer):
    """The same learning rates, group by group, as a run that is not compacted."""

    class Rates(Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            groups = trainer.optimizers[0].param_groups
            self.seen.append([(g["lr"], g["weight_decay"], len(g["params"])) for g in groups])

    def run(*callbacks):
        rates = Rates()
        module = SSLLightningModule(
            make_toy(),
            optimizer=SGD,
            lr_scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20),
            lr_interval="step",
            parameter_groups=[
                {"parameters": "bn*", "weight_decay": 0.0},
                {"parameters": "conv2.*", "lr": 0.01},
            ],
        )
        trainer(
            max_epochs=3,
            accumulate_grad_batches=3,
            precision="bf16-mixed",
            callbacks=[*callbacks, rates],
        ).fit(module, toy_loader())
        return rates.seen

    assert run(Zero(), CompactDuringFit(1)) == run()


def test_a_group_that_lost_all_its_parameters_stays_empty(trainer, tmp_path):
    def make(**settings):
        net = make_toy()
        with torch.no_grad():
            for layer in (net.conv2, net.bn2):
                for parameter in layer.parameters():
                    parameter.zero_()
        module = SSLLightningModule(
            net,
            penalties=[{"kind": "depth", "layers": "conv2", "strength": 1e-4}],
            optimizer=SGD,
            parameter_groups=[{"parameters": "conv2.*", "lr": 0.01}],
        )
        callbacks = [
            ThresholdPruning(start=0, kinds=["depth"]),
            DepthCollapse(),
            CompactDuringFit(at=0),
            SparsityMonitor(table=False),
            FilterPictures(layer="conv2"),
        ]
        return module, trainer(callbacks=callbacks, **settings)

    module, run = make(max_epochs=1)
    run.fit(module, toy_loader())
    assert [len(g["params"]) for g in run.optimizers[0].param_groups] == [6, 0]
    assert run.callback_metrics["groups/depth"] == 0
    assert run.callback_metrics["sparsity/conv2/filters"] == 100
    run.save_checkpoint(tmp_path / "a.ckpt")
    again, run = make(max_epochs=2)
    run.fit(again, toy_loader(), ckpt_path=tmp_path / "a.ckpt")
    assert [len(g["params"]) for g in run.optimizers[0].param_groups] == [6, 0]
    assert "conv2.weight" not in dict(again.backbone.named_parameters())


def test_penalties_keep_their_strength_and_groups(trainer):
    penalties = [
        FILTERS,
        {"kind": "l1", "layers": "fc", "strength": 1e-5},
        {"kind": "neuron_in", "layers": "fc", "strength": 1e-4, "scaling": "none"},
        {"kind": "coupled", "layers": "conv2", "strength": 1e-5},
    ]
    seen = []

    def zero_what_is_not_read(trainer, module):
        gone = [c for c in range(6) if c not in KEPT]
        with torch.no_grad():
            module.backbone.conv2.weight[:, gone] = 0
            module.backbone.fc.weight.view(10, 6, 16)[:, gone] = 0
        look(trainer, module)

    def look(trainer, module):
        regularizer = module.sparsity.regularizer
        seen.append((regularizer.strengths(1.0), regularizer.values(1.0)))

    module, _ = fit(trainer, penalties=penalties, before=zero_what_is_not_read, after=look)
    assert seen[0][0] == seen[1][0]
    torch.testing.assert_close(seen[0][1], seen[1][1])
    assert [s.num_groups for s in module.sparsity.regularizer.group_sets] == [3, 480, 48, 3]
    module.sparsity.regularizer.check_active(3)


def test_locked_groups_that_cannot_go_stay_locked(trainer):
    """Filters of conv1 are zero, but the shortcut carries the channels: they stay, as zeros."""
    net = make_toy()
    with torch.no_grad():
        net.conv1.weight[:2] *= 0.01
        for parameter in (net.conv2.weight, net.bn2.weight, net.bn2.bias):
            parameter[1] = 0
    pruning = ThresholdPruning(start=0, threshold=0.2, relative=True)
    module = SSLLightningModule(net, penalties=[{**FILTERS, "members": "weight"}], optimizer=SGD)
    trainer(max_epochs=2, callbacks=[pruning, CompactDuringFit(at=0)]).fit(module, toy_loader())
    small = module.backbone
    assert len(small.conv1.weight) == 5
    for parameter in (small.conv1.weight, small.conv1.bias, small.bn1.weight, small.bn1.bias):
        assert not parameter[0].any()
        assert parameter[1:].any()
    assert module.sparsity.locks.mask(module.sparsity.regularizer.group_sets[0]).tolist() == [
        True
    ] + 4 * [False]
    assert len(module.sparsity.locks) == 1
    state = json.loads(json.dumps(module.sparsity.locks.state_dict()))
    module.sparsity.locks.load_state_dict(state)
    assert json.loads(json.dumps(module.sparsity.locks.state_dict())) == state
    assert set(module.sparsity.locks.marks(dict(small.named_parameters()))) == {
        "conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias"
    }  # fmt: skip


def test_averaged_weights_shrink_too(trainer, tmp_path):
    averages = {}

    def remember(trainer, module):
        averages.update(copy.deepcopy(dict(ema._average_model.module.backbone.named_parameters())))

    def compare(trainer, module):
        average = ema._average_model.module
        for name, parameter in average.backbone.named_parameters():
            torch.testing.assert_close(parameter, kept_part(name, averages[name]), rtol=0, atol=0)

    ema = EMAWeightAveraging(decay=0.9)
    module, _ = fit(trainer, before=remember, after=compare, callbacks=[ema])
    assert averages
    average = dict(ema._average_model.module.named_parameters())
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter, average[name], rtol=0, atol=0)


def test_stochastic_weight_averaging_goes_on(trainer):
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1, annealing_epochs=1)
    module, run = fit(trainer, callbacks=[averaging], epochs=4)
    assert module.backbone.conv1.out_channels == len(KEPT)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)
    average = dict(averaging._average_model.named_parameters())
    assert all(average[name].shape == p.shape for name, p in module.named_parameters())


class KilledError(Exception):
    pass


class Killer(SSLLightningModule):
    """Dies at a given step."""

    die_at: int | None = None

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == self.die_at:
            raise KilledError
        return super().training_step(batch, batch_idx)


class LockLastTwo(Callback):
    """At the start of each epoch but the first, zero and lock the last two groups of every set."""

    def on_train_epoch_start(self, trainer, pl_module):
        for group_set in pl_module.sparsity.regularizer.group_sets if trainer.current_epoch else []:
            mask = torch.arange(group_set.num_groups) >= group_set.num_groups - 2
            pl_module.sparsity.prune_groups_(group_set, mask, lock=True)


def resumable_run(
    trainer,
    folder,
    seed=3,
    die_at=None,
    resume=False,
    every=2,
    channels_last=False,
    averaging=False,
):
    torch.manual_seed(seed)
    net = make_toy(dropout=0.5)
    net.fc = nn.Linear(6 * 14 * 14, 10)
    module = Killer(
        net,
        penalties=[
            {"kind": "filter", "layers": "conv1", "strength": 0.01},
            {"kind": "coupled", "layers": "conv1", "strength": 0.01},
        ],
        optimizer=SGD,
        input_shape=[1, 28, 28],
        channels_last=channels_last,
        parameter_groups=[{"parameters": "bn*", "weight_decay": 0.0}],
    )
    module.die_at = die_at
    checkpoint = ModelCheckpoint(dirpath=folder, save_last=True, every_n_train_steps=every)
    run = trainer(
        max_epochs=3,
        limit_train_batches=5,
        limit_val_batches=2,
        enable_checkpointing=True,
        callbacks=[
            checkpoint,
            LockLastTwo(),
            CompactDuringFit(at=[1, 2]),
            *([EMAWeightAveraging(decay=0.9)] if averaging else []),
        ],
    )
    data = MNISTDataModule(batch_size=200, augment=True)
    run.fit(module, data, ckpt_path=folder / "last.ckpt" if resume else None)
    return module


@pytest.mark.parametrize(
    ("die_at", "settings"),
    [
        (6, {}),
        (8, {"channels_last": True}),
        (12, {"every": None}),  # resumes from the end of an epoch, before a compaction
        (13, {"averaging": True}),
    ],
)
def test_a_killed_run_resumes_to_the_same_weights(trainer, tmp_path, die_at, settings):
    whole = resumable_run(trainer, tmp_path / "whole", **settings)
    assert len(whole.sparsity.plans) == 2
    assert whole.backbone.conv1.out_channels == 2
    with pytest.raises(KilledError):
        resumable_run(trainer, tmp_path / "killed", die_at=die_at, **settings)
    torch.manual_seed(99)
    resumed = resumable_run(trainer, tmp_path / "killed", seed=98, resume=True, **settings)
    expected, found = whole.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)
    assert resumed.sparsity.plans == whole.sparsity.plans
    assert resumed.sparsity.locks.state_dict() == whole.sparsity.locks.state_dict()


@pytest.fixture
def lenet_run(trainer, tmp_path):
    """A LeNet compacted twice in training, with its checkpoints and its compact network."""

    class Prune(Callback):
        @torch.no_grad()
        def on_train_epoch_start(self, trainer, pl_module):
            conv1 = pl_module.backbone.conv1
            for parameter in conv1.parameters():
                parameter[-4:] = 0

    module = SSLLightningModule(
        "lenet",
        penalties=[{"kind": "filter", "layers": "conv*", "strength": 1e-4}],
        optimizer=partial(SGD, lr=0.005),
        num_classes=10,
    )
    folder = tmp_path / "run"
    checkpoint = ModelCheckpoint(
        dirpath=folder / "checkpoints", filename="epoch-{epoch}", save_top_k=-1,
        auto_insert_metric_name=False, save_last=True,
    )  # fmt: skip
    run = trainer(
        max_epochs=3,
        enable_checkpointing=True,
        default_root_dir=folder,
        callbacks=[
            Prune(),
            CompactDuringFit(at=[1, 2]),
            SparsityMonitor(),
            FilterPictures(),
            SaveCompact(),
            checkpoint,
        ],
    )
    loader = toy_loader(32, shape=(1, 28, 28))
    run.fit(module, loader, loader)
    return module, run, folder


def test_everything_that_reads_checkpoints_reads_compacted_ones(lenet_run, trainer, capsys):
    from ssl_lightning.cli import main

    module, _, folder = lenet_run
    last = folder / "checkpoints" / "last.ckpt"
    x = torch.randn(3, 1, 28, 28)
    expected = module.backbone.eval()(x)
    assert module.backbone.conv1.out_channels == 12

    loaded = SSLLightningModule.load_from_checkpoint(last, weights_only=True)
    torch.testing.assert_close(loaded.eval()(x), expected)
    trained = load_backbone(last)
    torch.testing.assert_close(trained.model(x), expected)
    assert trained.original().conv1.out_channels == 20
    torch.testing.assert_close(load_compact(folder / "compact")(x), expected)

    again = SSLLightningModule("lenet", num_classes=10)
    loader = toy_loader(32, shape=(1, 28, 28))
    trainer().test(again, loader, ckpt_path=last, verbose=False)
    torch.testing.assert_close(again.backbone.eval()(x), expected)

    assert main(["compact", str(last), "--output", str(folder / "small")]) == 0
    assert "parameters: 431,080 ->" in capsys.readouterr().out
    torch.testing.assert_close(load_compact(folder / "small")(x), expected)
    arguments = ["--repeats=2", "--threads=1", "--data=none"]
    assert main(["benchmark", str(last), *arguments]) == 0
    report = json.loads((folder / "report.json").read_text())
    assert report["benchmark"]["models"]["dense"]["num_parameters"] == 431_080
    assert report["layers"]["conv1"]["filters"] == [12, 20]


def test_a_checkpoint_of_another_shape_rebuilds_a_named_backbone(lenet_run, trainer):
    module, run, folder = lenet_run
    loader = toy_loader(32, shape=(1, 28, 28))
    first = folder / "checkpoints" / "epoch-0.ckpt"
    run.test(module, loader, ckpt_path=first, verbose=False)
    assert module.backbone.conv1.out_channels == 20
    assert module.sparsity.plans == []
    run.test(module, loader, ckpt_path=folder / "checkpoints" / "epoch-1.ckpt", verbose=False)
    assert module.backbone.conv1.out_channels == 16


def test_a_collapsed_branch_goes_and_its_neighbours_are_not_taken_for_it(trainer, tmp_path):
    """After the main branch of a block with a strided shortcut is gone, the shortcut lives on."""

    def make():
        net = create_backbone("resnet20", shortcut="B")
        with torch.no_grad():
            for name in ("layer2.0.conv1", "layer3.1.conv2"):
                net.get_submodule(name).weight.zero_()
        module = SSLLightningModule(
            net,
            penalties=[{"kind": "depth", "layers": "layer*.conv?", "strength": 1e-4}],
            optimizer=SGD,
            input_shape=[3, 32, 32],
        )
        return module, [DepthCollapse(), CompactDuringFit(at=0)]

    module, callbacks = make()
    loader = toy_loader(16, shape=(3, 32, 32))
    run = trainer(max_epochs=1, callbacks=callbacks)
    run.fit(module, loader)
    names = dict(module.backbone.named_parameters())
    assert not [n for n in names if n.startswith(("layer2.0.conv", "layer3.1."))]
    assert [n for n in names if n.startswith("layer2.0.shortcut")]
    collapsed = callbacks[0].collapsed
    assert collapsed == ["layer2.0.conv1", "layer2.0.conv2", "layer3.1.conv1", "layer3.1.conv2"]
    run.save_checkpoint(tmp_path / "a.ckpt")
    again, callbacks = make()
    trainer(max_epochs=2, callbacks=callbacks).fit(again, loader, ckpt_path=tmp_path / "a.ckpt")
    assert callbacks[0].collapsed == collapsed
    for name, parameter in again.backbone.named_parameters():
        assert parameter.any(), name


@pytest.mark.parametrize(
    ("net", "at", "message"),
    [
        (None, 5, "at=5 is never reached: the run has the epochs 0 to 1"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 1, "Pass `input_shape`"),
    ],
)
def test_runs_that_could_not_go_on_are_refused_before_training(trainer, net, at, message):
    module = SSLLightningModule(net or make_toy(), optimizer=SGD)
    run = trainer(max_epochs=2, callbacks=[CompactDuringFit(at=at)])
    with pytest.raises(ValueError, match=message):
        run.fit(module, toy_loader())
    assert run.global_step == 0


def test_strategies_optimizers_and_compiled_modules_are_refused(trainer):
    run = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(MisconfigurationException, match="one device or DDP, got FSDPStrategy"):
        CompactDuringFit(at=1).setup(run, SSLLightningModule(make_toy()), "fit")
    module = SSLLightningModule(make_toy(), optimizer=partial(torch.optim.Adafactor, lr=0.01))
    with pytest.raises(ValueError, match=r"state of Adafactor .* cannot be sliced.*SGD, Adam"):
        trainer(max_epochs=2, callbacks=[CompactDuringFit(at=1)]).fit(module, toy_loader())
    net = make_toy()
    net.conv2 = torch.compile(net.conv2)
    module = SSLLightningModule(net, optimizer=SGD)
    with pytest.raises(MisconfigurationException, match="compile in `prepare_network`"):
        trainer(max_epochs=2, callbacks=[CompactDuringFit(at=1)]).fit(module, toy_loader())
    with pytest.raises(ValueError, match="expected `at` to be an epoch, or a list of epochs"):
        CompactDuringFit(at=[])
    with pytest.raises(ValueError, match="counted from 0, got -1"):
        CompactDuringFit(at=-1)


def test_constants_stay_because_batch_norms_go_on_training(trainer):
    """The shift behind a zero filter could be folded away in eval mode, but not in train mode."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10),
    )  # fmt: skip
    seen = []

    @torch.no_grad()
    def zero(trainer, module):
        for parameter in net[0].parameters():
            parameter[:2] = 0
        net[1].weight[0] = net[1].bias[0] = 0
        net[1].bias[1] = 1
        net[1].running_mean[1] = 0.3
        look(trainer, module)

    def look(trainer, module):
        x, _ = next(iter(toy_loader()))
        seen.append(copy.deepcopy(module.backbone).double().train()(x.double()))

    module = SSLLightningModule(net, optimizer=SGD, input_shape=[1, 8, 8])
    callbacks = [Watch(zero), CompactDuringFit(at=1), Watch(look)]
    trainer(max_epochs=2, callbacks=callbacks).fit(module, toy_loader())
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-12, atol=1e-12)
    assert module.backbone[0].out_channels == 5


def test_plans_that_fold_constants_slice_no_state():
    net, x = make_toy(), torch.zeros(1, 1, 8, 8)
    with torch.no_grad():
        net.conv1.weight[:3] = 0
    plan = make_plan(net, x)
    with pytest.raises(ValueError, match=r"of `conv\d`.*constants=False"):
        slice_tensors(net, plan, {})


def test_nothing_to_remove_changes_nothing(trainer):
    net = make_toy()
    module = SSLLightningModule(net, optimizer=SGD)
    trainer(max_epochs=2, callbacks=[CompactDuringFit(at=[0, 1])]).fit(module, toy_loader())
    assert module.backbone is net
    assert module.sparsity.plans == []


def test_the_command_line_compacts_resumes_tests_and_publishes(tmp_path, monkeypatch, capsys):
    """A run of YAML settings; the zoo entry compares with the backbone that training began with."""
    from ssl_lightning import publishing, zoo
    from ssl_lightning.cli import main
    from test_cli import short_run

    monkeypatch.chdir(tmp_path)
    arguments = short_run(tmp_path)
    place = arguments.index("--trainer.callbacks") + 1
    callbacks = json.loads(arguments[place])
    callbacks.insert(1, {"class_path": "CompactDuringFit", "init_args": {"at": [1]}})
    arguments[place] = json.dumps(callbacks)
    assert main(arguments) == 0
    run, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    trained = load_backbone(checkpoint)
    assert len(trained.plans) == 1
    assert trained.model.conv1.out_channels < 20
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(load_compact(run / "compact")(x), trained.model(x))
    assert main(["test", f"--config={run / 'config.yaml'}", f"--ckpt_path={checkpoint}"]) == 0
    assert "test/error" in capsys.readouterr().out
    report, arguments_ = run / "report.json", ["--repeats=1", "--per_layer=false", "--threads=1"]
    assert main(["benchmark", str(checkpoint), *arguments_]) == 0
    content = json.loads(report.read_text())
    sizes = content["benchmark"]["models"]
    assert sizes["masked"] == sizes["dense"]  # not of the network that is compact already
    assert sizes["compact"]["macs"] < sizes["masked"]["macs"]
    assert content["errors"]["masked"] == pytest.approx(content["errors"]["compact"], abs=0.02)
    masked = trained.masked()
    assert masked.conv1.out_channels == 20
    torch.testing.assert_close(masked(x), trained.model(x))
    file = tmp_path / "masked.pt2"
    exporting = ["export", str(checkpoint), "--format=torch_export", "--masked=true"]
    assert main([*exporting, f"--output={file}"]) == 0
    state = torch.export.load(file).state_dict
    assert len(state["conv1.weight"]) == 20
    publishing.publish(run, "short", tmp_path / "zoo")
    card = zoo.card("short", tmp_path / "zoo")
    assert card.dense.num_parameters == 431_080
    assert card.groups["conv1"]["filters"][1] == 20
    assert all(check.ok for check in publishing.verify("short", tmp_path / "zoo", latency=False))
    assert main([*arguments, "--trainer.max_epochs=3", f"--ckpt_path={checkpoint}"]) == 0
    assert load_backbone(checkpoint).model.conv1.out_channels == trained.model.conv1.out_channels


class Logged(Checkpoint):
    """Keep what was logged in each epoch, by the module too: checkpoints come after it."""

    def __init__(self, *names):
        self.names, self.found = names, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.found.append([float(trainer.callback_metrics[name]) for name in self.names])


def toy_macs(width):
    """Of the toy, by hand: 8 x 8 pixels, and a linear layer on 4 x 4 of them."""
    return 64 * width * 9 + 64 * width * width * 9 + 16 * width * 10


def test_macs_left_and_sparsities_are_of_the_dense_network(trainer, tmp_path, caplog):
    """Before compaction in epoch 1, after it, and in a run that is resumed."""
    penalties = [{"kind": "l1", "layers": "conv2", "strength": 1e-9}]
    module = SSLLightningModule(make_toy(), penalties=penalties, optimizer=SGD)
    logged = Logged("macs/left", "sparsity/conv2/filters", "sparsity/conv2/weights")
    keep = ModelCheckpoint(tmp_path, save_last=True)
    callbacks = [Zero(), CompactDuringFit(at=1), SparsityMonitor(table=False), logged, keep]
    run = trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        run.fit(module, toy_loader())
    left = 100 * toy_macs(3) / toy_macs(6)
    assert module.backbone.conv2.weight.shape[:2] == (3, 3)
    assert logged.found[0] == pytest.approx([100.0, 0.0, 0.0])
    assert logged.found[1] == pytest.approx([left, 50.0, 75.0], rel=1e-4)
    assert f"{left:.1f} % of the dense network's MACs left, in epoch 1" in caplog.text
    assert float(run.progress_bar_metrics["macs/left"]) == pytest.approx(left, rel=1e-4)
    again = SSLLightningModule(make_toy(), penalties=penalties, optimizer=SGD)
    logged = Logged("macs/left")
    callbacks = [logged, CompactDuringFit(at=2)]
    run = trainer(max_epochs=3, callbacks=callbacks, enable_checkpointing=True)
    run.fit(again, toy_loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert logged.found == [[pytest.approx(left, rel=1e-4)]]


def test_the_progress_bar_shows_the_macs_left_of_the_last_epoch(trainer):
    bar = TQDMProgressBar()
    module = SSLLightningModule(make_toy(), optimizer=SGD)
    callbacks = [Zero(), CompactDuringFit(at=1), bar]
    run = trainer(max_epochs=2, callbacks=callbacks, enable_progress_bar=True)
    run.fit(module, toy_loader())
    shown = dict(part.strip().split("=") for part in bar.train_progress_bar.postfix.split(","))
    left = 100 * toy_macs(3) / toy_macs(6)
    assert float(shown["macs/left"]) == pytest.approx(left, rel=1e-2)
    error = float(run.callback_metrics["train/error"])
    assert float(shown["train/error"]) == pytest.approx(error, rel=1e-2)


def test_macs_left_of_a_network_that_cannot_be_captured_are_not_logged(trainer, caplog):
    class Branching(nn.Sequential):
        input_shape = (1, 8, 8)

        def forward(self, x):
            return super().forward(x if x.sum() > 0 else x * 2)

    net = Branching(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(net[1].weight[:, :8])
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        module = SSLLightningModule(net, optimizer=partial(torch.optim.SGD, lr=0.0))
        run = trainer(max_epochs=2)
        run.fit(module, toy_loader())
    assert "macs/left" not in run.callback_metrics
    assert caplog.text.count("`macs/left` is not logged: Cannot capture Branching") == 1


@pytest.mark.parametrize("name", ["lenet", "resnet20", "timm:swin_s3_tiny_224"])
def test_macs_left_are_those_of_the_plan(name):
    """Also where sizes are fixed by code, and again and again as weights become zero."""
    net = create_backbone(name).eval()
    x = torch.zeros(1, *net.input_shape)
    left = MacsLeft(x)
    assert left(net) == count_macs(net, x)
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for count in (1, 2) if name != "timm:swin_s3_tiny_224" else (2,):
        for layer in layers[:-1]:
            with torch.no_grad():
                layer.weight[: count * len(layer.weight) // 4] = 0
                if layer.bias is not None:
                    layer.bias[: count * len(layer.weight) // 4] = 0
        small = compact(net, make_plan(net, x))
        assert left(net) == count_macs(small, x)


def residual_net():
    """A timm ResNet: each of its branches begins behind a batch norm of scale zero."""
    torch.manual_seed(0)
    return create_backbone("timm:resnet10t", num_classes=10, in_chans=1)


@pytest.mark.parametrize("importance", ["uniform", "random"])
def test_branches_that_begin_at_zero_are_no_zeros_of_training(trainer, importance):
    net, x = residual_net(), torch.zeros(1, 1, 28, 28)
    dense = count_macs(net, x)
    module = SSLLightningModule(net, optimizer=SGD, input_shape=[1, 28, 28])
    budget = Budget(macs=0.5, end=0, importance=importance)
    trainer(max_epochs=1, callbacks=[budget]).fit(module, toy_loader(16, shape=(1, 28, 28)))
    assert 0.4 < count_macs(module.backbone, x) / dense <= 0.5
    assert all(norm.weight.any() for norm in module.modules() if isinstance(norm, nn.BatchNorm2d))


def test_branches_that_begin_at_zero_remain_when_nothing_was_trained(trainer):
    net, x = residual_net(), torch.zeros(1, 1, 28, 28)
    dense, first = count_macs(net, x), copy.deepcopy(net.eval())
    module = SSLLightningModule(net, optimizer=partial(torch.optim.SGD, lr=0.0),
                                input_shape=[1, 28, 28])  # fmt: skip
    trainer(max_epochs=1, limit_train_batches=1, callbacks=[CompactDuringFit(at=0)]).fit(
        module, toy_loader(16, shape=(1, 28, 28))
    )
    assert count_macs(module.backbone, x) == dense
    for name, parameter in module.backbone.named_parameters():
        assert torch.equal(parameter, first.get_parameter(name)), name
