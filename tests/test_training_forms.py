"""Finders of rates and batch sizes, schedulers with a metric, batches, launchers, help."""

from __future__ import annotations

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR
from torch.utils.data import DataLoader, TensorDataset

from ssl_lightning import MNISTDataModule, SSLLightningModule
from ssl_lightning.module.batches import split_batch

PENALTIES = [{"kind": "filter", "layers": "conv*", "strength": 1e-2}]
SCHEDULERS = {
    "none": None,
    "cosine": partial(CosineAnnealingLR, T_max=2),
    "warm-up": partial(LinearLR, start_factor=0.1, total_iters=2),
}
SHORT = {"max_epochs": 2, "limit_train_batches": 12, "limit_val_batches": 1}


def train(trainer, callbacks, lr=0.5, scheduler=None, batch_size=16):
    pl.seed_everything(1, verbose=False)
    module = SSLLightningModule(
        "lenet",
        penalties=PENALTIES,
        optimizer=partial(torch.optim.SGD, lr=lr, momentum=0.9),
        lr_scheduler=scheduler,
    )
    fit = trainer(callbacks=callbacks, **SHORT)
    fit.fit(module, MNISTDataModule(batch_size=batch_size, num_validation=1000))
    return module, fit


def assert_same_run(a, b):
    (first, one), (second, two) = a, b
    for name, value in first.backbone.state_dict().items():
        assert torch.equal(value, second.backbone.state_dict()[name]), name
    for name in ("train/error", "val/error"):
        assert one.callback_metrics[name] == two.callback_metrics[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_run_after_a_learning_rate_search_is_the_run_at_that_rate(trainer, scheduler):
    finder = LearningRateFinder(num_training_steps=30, min_lr=1e-4)
    searched = train(trainer, [finder], scheduler=scheduler)
    rate = finder.optimal_lr.suggestion()
    assert rate != 0.5
    assert_same_run(searched, train(trainer, [], lr=rate, scheduler=scheduler))


@pytest.mark.filterwarnings("ignore")
def test_a_run_after_a_batch_size_search_is_the_run_at_that_size(trainer):
    finder = BatchSizeFinder(max_trials=2, init_val=8, steps_per_trial=2)
    searched = train(trainer, [finder], lr=0.02)
    assert searched[1].datamodule.batch_size == 16
    assert_same_run(searched, train(trainer, [], lr=0.02, batch_size=16))


def test_a_scheduler_looks_at_its_metric(trainer):
    never_better = {"patience": 0, "threshold": 100.0, "threshold_mode": "abs"}
    plateau = partial(ReduceLROnPlateau, monitor="val/loss", **never_better)
    module, _ = train(trainer, [], lr=0.01, scheduler=plateau)
    assert module.lr == pytest.approx(0.001)
    with pytest.raises(MisconfigurationException, match="monitor"):
        train(trainer, [], scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_launchers_that_bring_back_weights_only_are_refused(strategy):
    from ssl_lightning.module.parts import refuse_spawning

    fit = pl.Trainer(strategy=strategy, accelerator="cpu", devices=2, logger=False)
    with pytest.raises(MisconfigurationException, match="strategy: ddp"):
        refuse_spawning(fit.strategy)


def small() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.BatchNorm1d(2))
    net.input_shape = (1, 8, 8)
    return net


X, Y = torch.randn(32, 1, 8, 8), torch.arange(32) % 2


class Rows(torch.utils.data.Dataset):
    def __init__(self, form):
        self.form = form

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return self.form(X[index], Y[index])


FORMS = {
    "three parts": lambda x, y: (x, y, 0),
    "image and label": lambda x, y: {"image": x, "label": y},
    "of transformers": lambda x, y: {"pixel_values": x, "labels": y, "id": 3},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_batches_of_other_forms_train_alike(trainer, form):
    weights = []
    for given in (lambda x, y: (x, y), form):
        torch.manual_seed(0)
        module = SSLLightningModule(small())
        loader = DataLoader(Rows(given), 8)
        trainer(max_epochs=1).fit(module, loader, loader)
        weights.append(module.backbone[1].weight.detach().clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize("batch", [X, (X,), {"image": X}, {"x": X, "image": X, "y": Y}, "x", ()])
def test_a_batch_without_targets_is_refused(batch):
    with pytest.raises(ValueError, match="expected batches"):
        split_batch(batch)


class Regression(SSLLightningModule):
    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/mse", nn.functional.mse_loss(self(batch[0]), batch[1]))


def test_an_error_that_nothing_was_counted_for_is_not_logged(trainer):
    loader = DataLoader(TensorDataset(X, torch.randn(32, 2)), 8)
    fit = trainer(max_epochs=1)
    fit.fit(Regression(small()), loader, loader)
    assert "val/mse" in fit.callback_metrics
    assert not {"train/error", "val/error"} & set(fit.callback_metrics)


@pytest.mark.parametrize("target", [torch.rand(32, 2), torch.rand(32), Y[:, None]])
def test_targets_that_are_no_labels_are_refused(trainer, target):
    loader = DataLoader(TensorDataset(X, target), 8)
    with pytest.raises(ValueError, match=r"expected integer targets of shape \(N,\), got"):
        trainer(max_epochs=1).fit(SSLLightningModule(small()), loader, loader)


def test_a_network_that_was_loaded_is_trained_in_train_mode(trainer):
    net = small().eval()
    loader = DataLoader(TensorDataset(X, Y), 8)
    trainer(max_epochs=1).fit(SSLLightningModule(net), loader, loader)
    assert net.training
    assert int(net[2].num_batches_tracked) == 4


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")
def test_parts_in_eval_mode_stay_so(trainer):
    net = small()
    net[2].eval()
    loader = DataLoader(TensorDataset(X, Y), 8)
    trainer(max_epochs=1).fit(SSLLightningModule(net), loader, loader)
    assert int(net[2].num_batches_tracked) == 0


def test_checkpoints_tell_the_input_shape_of_the_data(trainer, tmp_path):
    from ssl_lightning import load_backbone

    module = SSLLightningModule("timm:lcnet_035", {"num_classes": 10, "in_chans": 1})
    assert module.input_shape == (1, 224, 224)
    fit = trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    fit.fit(module, MNISTDataModule(batch_size=8, num_validation=1000))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    assert load_backbone(tmp_path / "a.ckpt").model.input_shape == (1, 28, 28)
