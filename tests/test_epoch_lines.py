"""What training says in a log: a line for each epoch, on a clock that the test turns."""

from __future__ import annotations

import io
import re

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, TensorDataset

from ssl_lightning import SSLLightningModule
from ssl_lightning.cli import main
from ssl_lightning.cli.epoch_lines import EpochLines


class Terminal(io.StringIO):
    def isatty(self):
        return True


def ticking(seconds):
    """A clock that is asked three times for the first epoch, and twice for each other."""
    now = [0.0]

    def clock():
        now[0] += seconds
        return now[0]

    return clock


@pytest.fixture
def loaders():
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(8, 1, 28, 28), torch.arange(8))
    return DataLoader(data, 4), DataLoader(data, 4)


FORM = re.compile(
    r"after (\d) of (\d) epochs, train/loss \d+\.?\d*, val/error \d+\.?\d* %, (\d+\.\d) s"
    r"(?:, about (.*) left)?"
)


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_log_gets_a_line_for_each_epoch(trainer, loaders):
    log = io.StringIO()
    lines = EpochLines(log, ticking(10))
    trainer(max_epochs=3, callbacks=[lines]).fit(SSLLightningModule("lenet"), *loaders)
    found = [FORM.fullmatch(line).groups() for line in log.getvalue().splitlines()]
    assert found == [
        ("1", "3", "10.0", "40 s"),  # 20 s in all so far
        ("2", "3", "10.0", "20 s"),
        ("3", "3", "10.0", None),
    ]


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize(("seconds", "number"), [(0.5, 0), (1.2, 3)])
def test_lines_of_the_first_seconds_wait(trainer, loaders, seconds, number):
    """Three epochs of a second are silent; of longer ones, all lines are written in the end."""
    log = io.StringIO()
    lines = EpochLines(log, ticking(seconds))
    trainer(max_epochs=3, callbacks=[lines]).fit(SSLLightningModule("lenet"), *loaders)
    assert len(log.getvalue().splitlines()) == number


class Noting(Callback):
    """Notes the loss of every step."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("every", [1, 50])
def test_the_loss_is_the_epoch_s_mean_however_seldom_it_is_logged(trainer, loaders, every):
    log, noting = io.StringIO(), Noting()
    fit = trainer(
        max_epochs=2, log_every_n_steps=every, callbacks=[EpochLines(log, ticking(10)), noting]
    )
    fit.fit(SSLLightningModule("lenet"), *loaders)
    found = [float(loss) for loss in re.findall(r"train/loss (\S+),", log.getvalue())]
    first, second = noting.losses[:2], noting.losses[2:]
    assert found == pytest.approx([sum(first) / 2, sum(second) / 2], rel=1e-3)


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("bar", [True, False])
def test_a_terminal_gets_lines_only_if_there_is_no_bar(trainer, loaders, bar, capsys):
    screen = Terminal()
    lines = EpochLines(screen, ticking(10))
    fit = trainer(max_epochs=1, callbacks=[lines], enable_progress_bar=bar)
    fit.fit(SSLLightningModule("lenet"), *loaders)
    assert bool(screen.getvalue()) != bar


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_long_test_says_how_far_it_is(trainer, loaders):
    log = io.StringIO()
    fit = trainer(callbacks=[EpochLines(log, ticking(10))])
    fit.test(SSLLightningModule("lenet"), loaders[0], verbose=False)
    assert "test: 50 %, 10 s so far, about 10 s left" in log.getvalue()


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_fit_writes_no_control_characters_into_a_log(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clock = ticking(10)
    monkeypatch.setattr(EpochLines.__init__, "__defaults__", (None, clock))
    short = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=2", "--trainer.logger=false"]
    assert main(["fit", "--data=MNISTDataModule", "--trainer.limit_val_batches=1", *short]) == 0
    out = capsys.readouterr().out
    assert [line.partition(",")[0] for line in out.splitlines() if line.startswith("after")] == [
        "after 1 of 2 epochs",
        "after 2 of 2 epochs",
    ]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)
