"""Tasks are a config: any loss, any metrics, from the command line and in Python."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MultilabelAccuracy

from conftest import ROOT
from ssl_lightning import SSLLightningModule, load_compact
from ssl_lightning.cli import main
from ssl_lightning.module.tasks import ErrorPercent
from toy import make_toy, toy_loader

CONFIGS = {"multilabel": "val/accuracy", "regression": "val/r2", "segmentation": "val/iou"}
"""Task -> a figure that is 0.5 or less by chance."""


def rows(folder):
    path = max(folder.rglob("metrics.csv"))
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("task", CONFIGS)
def test_each_task_is_learnt_sparse_from_its_config(task, tmp_path, capsys):
    config = ROOT / "configs" / f"task_{task}.yaml"
    settings = [
        f"--trainer.default_root_dir={tmp_path}",
        f"--trainer.logger.init_args.save_dir={tmp_path}",
        "--trainer.enable_progress_bar=false",
    ]
    checkpoint = f"--trainer.callbacks.init_args.dirpath={tmp_path / 'checkpoints'}"
    main(["fit", "--config", str(config), *settings, checkpoint])
    logged = [row for row in rows(tmp_path) if row.get(CONFIGS[task])]
    assert float(logged[-1][CONFIGS[task]]) > 0.6
    shares = [float(row["macs/left"]) for row in rows(tmp_path) if row.get("macs/left")]
    assert shares[-1] < 60
    small = load_compact(tmp_path / "compact")
    assert sum(p.numel() for p in small.parameters()) > 0
    capsys.readouterr()

    last = f"--ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}"
    main(["test", "--config", str(config), *settings, checkpoint, last])
    assert CONFIGS[task].replace("val/", "test/") in capsys.readouterr().out


def test_the_default_is_classification_and_its_error(trainer):
    metrics = {"top2": MulticlassAccuracy(10, top_k=2, average="micro")}
    module = SSLLightningModule(make_toy(), metrics=metrics)
    run = trainer(max_epochs=1)
    run.fit(module, toy_loader(32), toy_loader(32))
    logged = run.callback_metrics
    assert logged["val/top2"] >= 1 - logged["val/error"] / 100
    assert {"train/error", "train/top2", "val/loss"} <= set(logged)


def test_own_loss_and_metrics_replace_the_default(trainer):
    class Margin(nn.Module):
        def forward(self, output, target):
            return (1 - output.gather(1, target[:, None])).relu().mean()

    module = SSLLightningModule(make_toy(), loss=Margin(), metrics={"seen": Seen()})
    run = trainer(max_epochs=1)
    run.fit(module, toy_loader(32), toy_loader(32))
    assert float(run.callback_metrics["val/seen"]) == 32
    assert "val/error" not in run.callback_metrics
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(module.eval().predict_step(x, 0), module.backbone(x))


class Seen(MeanMetric):
    """How many examples were seen."""

    def update(self, output, target):
        super().update(torch.tensor(float(len(target))))

    def compute(self):
        return self.mean_value * 1.0


def test_error_is_that_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=generator)
    target = torch.randint(0, 4, (50,), generator=generator)
    error = ErrorPercent(4, average="micro")
    error.update(logits[:20], target[:20])
    error.update(logits[20:], target[20:])
    wrong = sum(int(row.argmax() != t) for row, t in zip(logits, target, strict=True))
    assert float(error.compute()) == pytest.approx(100 * wrong / 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "torch.nn.MSELoss"}, r"loss: expected an object, got the name .*load_from_ch"),
        ({"loss": len}, r"loss: expected a torch.nn.Module"),
        ({"metrics": {"f1": len}}, r"metrics: expected a torchmetrics.Metric for 'f1'"),
        ({"metrics": {"f1": "a.B"}}, r"metrics: expected an object, got the name 'a.B'"),
        ({"metrics": {"error": MultilabelAccuracy(3)}}, r"the name 'error' is taken"),
        ({"metrics": {"a/b": MultilabelAccuracy(3)}}, r"holds a slash"),
    ],
)
def test_wrong_losses_and_metrics_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SSLLightningModule(make_toy(), **arguments)


def test_a_batch_that_loss_or_metrics_do_not_fit_is_described(trainer):
    module = SSLLightningModule(make_toy(), loss=nn.BCEWithLogitsLoss())
    with pytest.raises(ValueError, match=r"output torch.float32 of shape \(.*target torch.int64"):
        trainer(max_epochs=1).fit(module, toy_loader(32), toy_loader(8))
    floats = DataLoader([(torch.rand(2, 1, 8, 8), torch.rand(2, 3))], batch_size=None)
    with pytest.raises(ValueError, match=r"For another task, give `loss` and `metrics`"):
        trainer(max_epochs=1).fit(SSLLightningModule(make_toy()), floats, floats)


def test_a_checkpoint_of_another_task_is_loaded_with_what_it_was_trained_with(
    trainer, tmp_path, capsys
):
    module = SSLLightningModule("lenet", loss=nn.MultiMarginLoss())
    run = trainer(max_epochs=1)
    run.fit(module, *[toy_loader(32, shape=(1, 28, 28))] * 2)
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    with pytest.raises(ValueError, match=r"Give what the network was trained with"):
        SSLLightningModule.load_from_checkpoint(path)
    again = SSLLightningModule.load_from_checkpoint(path, loss=nn.MultiMarginLoss())
    assert torch.equal(again.backbone.conv1.weight, module.backbone.conv1.weight)
    data = ["--data=MNISTDataModule", "--data.init_args.source=bundled"]
    capsys.readouterr()
    assert main(["test", f"--ckpt_path={path}", *data]) != 0
    assert "with a loss or metrics of its own" in capsys.readouterr().err
