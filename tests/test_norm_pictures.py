"""NormPictures: its columns are the norms of all groups, also of those that compaction removed."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

from ssl_lightning import (
    Budget,
    CompactDuringFit,
    LowRank,
    NormPictures,
    SSLLightningModule,
    ThresholdPruning,
)
from ssl_lightning.report.norms import norm_chart
from toy import make_toy, toy_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
COUPLED = {"kind": "coupled", "strength": 1e-3}
WRITERS = [
    f"{layer}.{part}"
    for layer, parts in {
        "conv1": ["weight", "bias"],
        "bn1": ["weight", "bias"],
        "conv2": ["weight"],
        "bn2": ["weight", "bias"],
    }.items()
    for part in parts
]
FILTERS = {"kind": "filter", "layers": "conv1", "strength": 1e-3, "members": "weight"}


def toy_module(*penalties):
    return SSLLightningModule(make_toy(), penalties=list(penalties), optimizer=SGD)


class Noted(Callback):
    """Notes the norms of the filters of conv1, or of all that writes a channel, per epoch."""

    def __init__(self, written=("conv1.weight",)):
        self.written, self.found = written, []

    def on_train_epoch_end(self, trainer, pl_module):
        parts = [pl_module.backbone.get_parameter(name).detach().double() for name in self.written]
        self.found.append(sum(part.flatten(1).square().sum(1) for part in map(rows, parts)).sqrt())


def rows(part):
    return part.reshape(len(part), -1)


def test_columns_are_the_norms_of_all_groups(trainer, tmp_path):
    module, noted, pictures = toy_module(FILTERS), Noted(), NormPictures()
    first = module.backbone.conv1.weight.detach().double().flatten(1).norm(dim=1)
    trainer(max_epochs=3, callbacks=[noted, pictures]).fit(module, toy_loader())
    assert pictures.epochs == [-1, 0, 1, 2]
    expected = [first, *noted.found]
    assert np.allclose(pictures.norms["conv1:filter"], torch.stack(expected), rtol=1e-5)
    with Image.open(tmp_path / "norms.png") as picture:
        assert min(picture.size) > 200


def test_groups_retain_their_rows_when_the_network_is_compacted(trainer):
    module, noted, pictures = toy_module(COUPLED), Noted(WRITERS), NormPictures()
    masked, never = toy_module(COUPLED), Noted(WRITERS)
    prune = partial(ThresholdPruning, start=1, fraction=0.5)
    compacted = [prune(), CompactDuringFit(at=1), noted, pictures]
    trainer(max_epochs=3, callbacks=compacted).fit(module, toy_loader())
    trainer(max_epochs=2, callbacks=[prune(), never]).fit(masked, toy_loader())
    alive = never.found[-1] > 0
    assert len(noted.found[-1]) == int(alive.sum()) == 3
    (columns,) = pictures.norms.values()
    for column, norms in zip(columns[2:], noted.found[1:], strict=True):
        found = torch.tensor(column, dtype=torch.float64)
        assert (found > 0).tolist() == alive.tolist()
        torch.testing.assert_close(found[alive], norms, rtol=1e-5, atol=1e-7)


def test_without_penalties_it_shows_coupled_channels_of_a_budget(trainer):
    module, pictures = toy_module(), NormPictures(every_n_epochs=2)
    trainer(max_epochs=3, callbacks=[Budget(macs=0.5, end=1), pictures]).fit(module, toy_loader())
    assert pictures.epochs == [-1, 1, 2]
    (name,) = pictures.norms  # conv1 and conv2 are added up
    before, *_, after = pictures.norms[name]
    assert len(before) == len(after) == 6
    assert min(before) > 0
    assert sum(norm > 0 for norm in after) == module.backbone.conv1.out_channels < 6


def test_a_resumed_run_draws_the_whole(trainer, tmp_path):
    def run(epochs, module, callback, ckpt_path=None):
        steps = [ThresholdPruning(start=1, fraction=0.5), CompactDuringFit(at=1), callback]
        fitted = trainer(max_epochs=epochs, callbacks=steps)
        fitted.fit(module, toy_loader(), ckpt_path=ckpt_path)
        return fitted

    whole, first, second = NormPictures(), NormPictures(), NormPictures()
    run(3, toy_module(FILTERS), whole)
    run(2, toy_module(FILTERS), first).save_checkpoint(tmp_path / "two.ckpt")
    run(3, toy_module(FILTERS), second, tmp_path / "two.ckpt")
    assert second.epochs == whole.epochs
    assert np.allclose(second.norms["conv1:filter"], whole.norms["conv1:filter"])


def test_low_rank_factors_end_the_picture_with_a_warning(trainer):
    pictures = NormPictures()
    steps = [LowRank(ranks={"conv2": [3, 3]}, at=1), pictures]
    with pytest.warns(UserWarning, match="NormPictures: low rank factors have replaced layers"):
        trainer(max_epochs=3, callbacks=steps).fit(toy_module(FILTERS), toy_loader())
    assert pictures.epochs == [-1, 0]


def test_rows_are_ordered_by_how_long_groups_last_and_zeros_have_their_colour(
    tmp_path, monkeypatch
):
    shown = []
    from matplotlib.axes import Axes

    draw = Axes.imshow
    monkeypatch.setattr(
        Axes, "imshow", lambda self, data, *a, **k: shown.append(data) or draw(self, data, *a, **k)
    )
    norms = np.array([[4.0, 0.0, 0.0], [1.0, 1.0, 2.0], [1.0, 2.0, 0.0], [1.0, 1.0, 1.0]])
    norm_chart({"conv1:filter": norms}, [-1, 0, 1], tmp_path / "norms.png")
    (data,) = shown
    assert data.filled(-1).tolist() == [
        [0.25, 0.25, 0.5],
        [0.25, 0.25, 0.25],
        [0.25, 0.5, -1],
        [1.0, -1, -1],
    ]
    sand = np.array([0xF3, 0xE3, 0xC8])
    pixels = np.asarray(Image.open(tmp_path / "norms.png").convert("RGB")).astype(int)
    assert (np.abs(pixels - sand).max(-1) < 3).mean() > 0.05


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="expected every_n_epochs >= 1, got 0"):
        NormPictures(every_n_epochs=0)
    with pytest.raises(ValueError, match="expected at least one set of groups, got none"):
        norm_chart({}, [], tmp_path / "norms.png")
    assert not list(tmp_path.iterdir())
    assert copy.deepcopy(NormPictures()).epochs == []
