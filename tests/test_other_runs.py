"""Callbacks in second runs, in runs of a number of steps, in resumed and in unusual ones."""

from __future__ import annotations

import copy
import csv

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ssl_lightning import (
    Budget,
    CompactDuringFit,
    DepthCollapse,
    Distill,
    Inputs,
    Regularizer,
    SSLLightningModule,
    StructuredSparsity,
    ThresholdPruning,
    save_compact,
)
from ssl_lightning.callbacks import NormPictures, PruneLike
from ssl_lightning.callbacks.depth import Skip
from ssl_lightning.compaction import plan_and_compact
from ssl_lightning.groups import resolve_groups
from ssl_lightning.prune.taylor import Expansion

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the log"),
]


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.i, self.o = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 3)
        self.b1, self.b2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.i(x))
        return self.o((x + self.b2(torch.relu(self.b1(x)))).mean((2, 3)))


def loader(*shape, number=64, batch_size=8, shuffle=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(number, *(shape or (4,)), generator=generator)
    y = torch.randint(0, 3, (number,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size, shuffle=shuffle)


def mlp(kind="neuron_out", layers=("a", "b"), strength=1e-6, network=None):
    penalties = [{"kind": kind, "layers": list(layers), "strength": strength}]
    return SSLLightningModule(network or Mlp(), penalties=penalties, input_shape=[4], num_classes=3)


def residual():
    penalties = [{"kind": "depth", "layers": "b*", "strength": 1e-6}]
    return SSLLightningModule(Residual(), penalties=penalties, input_shape=[1, 8, 8], num_classes=3)


class ZeroBranch(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            nn.init.zeros_(pl_module.backbone.b1.weight)


# --- the network gets other weights ---------------------------------------------------------------


def test_a_checkpoint_of_before_a_branch_was_collapsed_is_tested_as_it_is(trainer, tmp_path):
    pl.seed_everything(0)
    module, data = residual(), loader(1, 8, 8, shuffle=False)
    kept = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    run = trainer(max_epochs=3, callbacks=[ZeroBranch(), DepthCollapse(start=1), kept],
                  enable_checkpointing=True)  # fmt: skip
    run.fit(module, data)
    assert isinstance(module.backbone.b1.forward, Skip)
    path = tmp_path / "epoch=0.ckpt"
    (found,) = run.test(module, data, ckpt_path=path, verbose=False)
    fresh = SSLLightningModule.load_from_checkpoint(path, backbone=Residual())
    assert not isinstance(module.backbone.b1.forward, Skip)
    (expected,) = trainer().test(fresh, data, verbose=False)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_second_run_collapses_its_own_branches_only(trainer):
    callback, data = DepthCollapse(start=1), loader(1, 8, 8)
    trainer(max_epochs=2, callbacks=[ZeroBranch(), callback]).fit(residual(), data)
    assert callback.collapsed
    other = residual()
    trainer(max_epochs=2, callbacks=[callback]).fit(other, data)
    assert callback.collapsed == []
    assert not any(isinstance(m.__dict__.get("forward"), Skip) for m in other.modules())


def test_pictures_of_norms_show_one_run(trainer, tmp_path):
    callback = NormPictures(folder=str(tmp_path))
    for _ in range(2):
        trainer(max_epochs=2, callbacks=[callback]).fit(mlp(), loader())
    assert callback.epochs == [-1, 0, 1]


# --- shares of a network that is compacted --------------------------------------------------------


class Widths(pl.Callback):
    def __init__(self):
        self.found = []

    def on_train_epoch_end(self, trainer, pl_module):
        layers = pl_module.backbone.a, pl_module.backbone.b
        self.found.append(tuple(int(layer.weight.any(1).sum()) for layer in layers))


@pytest.mark.parametrize("at", [None, [2, 4]])
def test_a_fraction_is_of_the_groups_before_compaction(trainer, at):
    pl.seed_everything(0)
    widths = Widths()
    callbacks = [ThresholdPruning(start=1, every_n_epochs=1, fraction=0.5)]
    callbacks += [] if at is None else [CompactDuringFit(at)]
    module = mlp()
    trainer(max_epochs=6, callbacks=[*callbacks, widths]).fit(module, loader())
    assert widths.found == [(16, 12)] + 5 * [(8, 6)]
    assert module.backbone.a.out_features == (16 if at is None else 8)


# --- runs of a number of steps --------------------------------------------------------------------


def test_a_run_of_steps_reaches_its_budget_after_a_third(trainer):
    module, budget = mlp(), Budget(macs=0.5)
    run = trainer(max_epochs=-1, max_steps=80, callbacks=[budget])
    run.fit(module, loader())
    assert budget.end == 3
    assert budget.landed
    assert run.lr_scheduler_configs


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        (ThresholdPruning(start=50), "start=50"),
        (CompactDuringFit(at=60), "at=60"),
        (Budget(macs=0.5, end=40), "end=40"),
    ],
)
def test_epochs_that_a_run_of_steps_does_not_reach(trainer, callback, name):
    message = f"{name} is never reached: the run has the epochs 0 to 1[.].*max_steps"
    with pytest.raises(ValueError, match=message):
        trainer(max_epochs=100, max_steps=16, callbacks=[callback]).fit(mlp(), loader())


def test_a_run_of_unknown_length_asks_for_the_end(trainer):
    run = trainer(max_epochs=-1, max_time={"minutes": 1}, callbacks=[Budget(macs=0.5)])
    with pytest.raises(ValueError, match=r"Budget: expected `end`.*is not known, got none"):
        run.fit(mlp(), loader())


# --- resumed runs ---------------------------------------------------------------------------------


def test_a_control_resumes_after_a_compaction(trainer, tmp_path):
    small = Mlp()
    with torch.no_grad():
        for layer in (small.a, small.b):
            layer.weight[4:] = 0
            layer.bias[4:] = 0
    plan, compacted = plan_and_compact(small, torch.zeros(1, 4))
    save_compact(tmp_path / "small", compacted, plan)

    def made():
        kept = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        like = PruneLike(str(tmp_path / "small"), start=1)
        callbacks = [like, CompactDuringFit(at=2), kept]
        return mlp(), trainer(max_epochs=4, callbacks=callbacks, enable_checkpointing=True)

    whole, run = made()
    run.fit(whole, loader())
    resumed, run = made()
    run.fit(resumed, loader(), ckpt_path=tmp_path / "epoch=2.ckpt")
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Noisy(Dataset):
    """Adds noise that it draws when an example is read."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return torch.full((4,), index / 64.0) + 0.1 * torch.randn(4), index % 3


class Endless(IterableDataset):
    """Has no length."""

    def __iter__(self):
        for index in range(64):
            yield torch.full((4,), index / 64.0), index % 3


LOADERS = {
    "shuffled": loader,
    "noisy": lambda: DataLoader(Noisy(), 8, shuffle=True),
    "without a length": lambda: DataLoader(Endless(), 8),
}


class Batches(pl.Callback):
    def __init__(self):
        self.sums = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.sums[trainer.current_epoch, batch_idx] = float(batch[0].sum())


STEPS = {"every_n_train_steps": 1, "save_on_train_epoch_end": False}
CHECKPOINTS = {
    "step=5": STEPS,
    "step=8": STEPS,
    "step=15": STEPS,
    "epoch=0": {"save_on_train_epoch_end": True},
    "epoch=1": {"save_on_train_epoch_end": False},
}


RESUMED = [
    *((name, validated) for name in CHECKPOINTS if name != "epoch=1" for validated in (0, 1)),
    ("epoch=1", 1),  # at the end of validation
]


@pytest.mark.parametrize(("name", "validated"), RESUMED)
@pytest.mark.parametrize("kind", LOADERS)
def test_a_resumed_run_continues_bit_equal(trainer, tmp_path, kind, name, validated):
    others = (loader(shuffle=False),) if validated else ()

    def fitted(seed, **settings):
        pl.seed_everything(seed)
        module, seen = mlp(strength=1e-3), Batches()
        pattern = "{" + name.partition("=")[0] + "}"
        kept = ModelCheckpoint(tmp_path / str(seed), pattern, save_top_k=-1, **CHECKPOINTS[name])
        run = trainer(max_epochs=3, callbacks=[seen, kept], enable_checkpointing=True)
        run.fit(module, LOADERS[kind](), *others, **settings)
        return module, seen.sums

    whole, batches = fitted(0)
    resumed, seen = fitted(1, ckpt_path=tmp_path / f"0/{name}.ckpt")
    done = int(name.partition("=")[2])
    assert min(seen) == (divmod(done, 8) if "step" in name else (done + 1, 0))
    assert seen == {place: batches[place] for place in seen}
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_search_for_a_learning_rate_follows_the_seed(trainer):
    """It trains before the run has a seed; what None is hashed to differs between processes."""
    pl.seed_everything(1)
    module, seeds = mlp(), []

    module.on_before_zero_grad = lambda optimizer: seeds.append(torch.initial_seed())
    finder = LearningRateFinder(num_training_steps=10, early_stop_threshold=None)
    trainer(max_epochs=1, callbacks=[finder]).fit(module, loader())
    mask = 0x7FFF_FFFF_FFFF_FFFF
    assert seeds[:3] == [hash((1, 0, batch, 0)) & mask for batch in range(3)]


# --- what is logged -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "accumulate", "number", "expected"),
    [(5, 1, 64, [4, 9, 14, 19, 24, 29]), (5, 2, 96, [4, 9, 14, 19]), (10, 1, 48, [9, 19])],
)
def test_penalties_are_logged_where_loggers_write(
    trainer, tmp_path, every, accumulate, number, expected
):
    logger = CSVLogger(tmp_path, name="", version="")
    run = trainer(
        max_epochs=4, logger=logger, log_every_n_steps=every, accumulate_grad_batches=accumulate
    )
    run.fit(mlp(), loader(number=number))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    for key in ("train/loss", "penalty/neuron_out", "strength/neuron_out"):
        assert [int(row["step"]) for row in rows if row.get(key)][: len(expected)] == expected


# --- what cannot act ------------------------------------------------------------------------------


class Manual(StructuredSparsity, pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.net = Mlp()
        self.sparsify("net", [], input_shape=[4])

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_teacher_in_manual_optimization_is_refused(trainer):
    with pytest.raises(MisconfigurationException, match="Distill: expected automatic optimization"):
        trainer(max_epochs=1, callbacks=[Distill(Mlp())]).fit(Manual(), loader())


def test_steps_that_a_scaler_skips_are_none_of_the_expansion():
    net = Mlp()
    sets = resolve_groups(net, [{"kind": "neuron_out", "layers": "a"}], torch.zeros(1, 4))
    found = Expansion(sets)
    net(torch.ones(2, 4)).sum().backward()
    found.add(dict(net.named_parameters()))
    before = copy.deepcopy(found.state_dict())
    net.a.weight.grad[3] = torch.inf
    found.add(dict(net.named_parameters()))
    assert found.state_dict() == before
    assert before["steps"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_warned_of(dtype):
    net = Mlp().to(dtype)
    regularizer = Regularizer(net, [{"kind": "neuron_out", "layers": "a", "strength": 1e-3}])
    with pytest.warns(UserWarning, match="`a.weight` is .*float16, which rounds away shrinking"):
        regularizer.attach(torch.optim.SGD(net.parameters(), 0.1))


def test_tied_weights_are_penalised_by_either_name(trainer):
    net = Mlp()
    net.a, net.b, net.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
    net.b.weight = net.a.weight
    callbacks = [ThresholdPruning(start=1, fraction=0.5)]
    module = mlp(layers=["b"], network=net)
    trainer(max_epochs=3, callbacks=callbacks).fit(module, loader())
    assert int(net.b.weight.any(1).sum()) == 2


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, scale):
        return self.b(torch.relu(self.a(x)) * scale)


class TwoInputs(StructuredSparsity, pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Scaled()
        penalties = [{"kind": "neuron_out", "layers": "a", "strength": 1e-3}]
        example = Inputs(torch.zeros(1, 4), torch.ones(1, 1))
        self.sparsify("net", penalties, example_input=example)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x, torch.ones(len(x), 1)), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_a_network_of_two_inputs_that_is_cut_is_warned_of(trainer):
    run = trainer(max_epochs=2, callbacks=[ThresholdPruning(start=1, threshold=100.0)])
    with pytest.warns(UserWarning, match="the network is cut"):
        run.fit(TwoInputs(), loader())
