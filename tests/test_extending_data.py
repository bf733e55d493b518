"""A data set of the user's own: one file with public names, in Python and on the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from ssl_lightning import SSLLightningModule
from ssl_lightning.cli import main

OWN_FILE = '''
"""Squares and discs of random sizes: a data set of the user's own."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from ssl_lightning import ArrayDataModule, ImageDataModule, LabelledImages


@dataclass(kw_only=True, eq=False)
class Shapes(ArrayDataModule):
    """Squares and discs.

    Args:
        number: images in each of the training and the test set.
    """

    number: int = 96
    num_validation: int = 16

    class_names, input_shape = ("square", "disc"), (1, 28, 28)
    mean, std, pad, flip = (0.2,), (0.3,), 2, True

    def read(self, train):
        random = np.random.default_rng([self.seed, train])
        labels, radius = np.arange(self.number) % 2, random.integers(5, 12, self.number)
        y, x = np.abs(np.mgrid[:28, :28] - 13.5)
        far = np.where(labels[:, None, None], np.hypot(x, y), np.maximum(x, y))
        images = 255 * (far < radius[:, None, None]).astype(np.uint8)
        return LabelledImages(images[:, None], labels, self.class_names)


class Noisy(Dataset):
    """Any map-style dataset; what it draws from torch's generator is repeatable all the same."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.randn(1, 28, 28) + index % 2, index % 2


class NoisyData(ImageDataModule):
    num_classes, input_shape = 2, (1, 28, 28)

    def make_dataset(self, split):
        return self.subset(Noisy(), split)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_shapes.py").write_text(OWN_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    import own_shapes

    yield own_shapes
    del sys.modules["own_shapes"]


def batches(data, epoch: int = 0, skip: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    if skip:
        loader.load_state_dict(
            {"epoch": epoch, "batches": skip, "global_batch_size": data.batch_size}
        )
    return list(loader)


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_order_and_augmentation_are_repeatable_and_resumable(own) -> None:
    for kind, settings in ((own.Shapes, {}), (own.NoisyData, {"num_validation": 8})):
        options = settings | {"batch_size": 8}
        whole = batches(kind(**options), epoch=1)
        assert len(whole) in (10, 4)
        assert same(batches(kind(**options), epoch=1, skip=2), whole[2:])
        assert same(batches(kind(**options, num_workers=1), epoch=1), whole)
        assert not same(batches(kind(**options), epoch=0), whole)
        assert not same(batches(kind(**options, seed=1), epoch=1), whole)


def test_validation_is_held_out_and_images_are_normalised(own) -> None:
    data = own.Shapes(augment=False, batch_size=1)
    ((validation, _),) = data.val_dataloader()
    train = torch.cat([images for images, _ in data.train_dataloader()])
    assert (len(train), len(validation)) == (80, 16)
    values = torch.tensor([(0 - 0.2) / 0.3, (1 - 0.2) / 0.3])
    torch.testing.assert_close(train.unique(), values)
    assert not torch.equal(own.Shapes(batch_size=80).dataset("train")[0][0], train[0])


def test_a_module_trains_on_it(own) -> None:
    data = own.Shapes(batch_size=16)
    module = SSLLightningModule("lenet", {"num_classes": data.num_classes})
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_checkpointing=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, data)
    assert trainer.global_step == 5


def test_the_command_line_takes_it_by_class_path(own, tmp_path: Path, capfd) -> None:
    config = {
        "model": {"backbone": "lenet", "backbone_args": {"num_classes": 2}},
        "data": {
            "class_path": "own_shapes.Shapes",
            "init_args": {"number": 64, "batch_size": 16, "augment": True},
        },
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "default_root_dir": str(tmp_path / "run"),
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "config.yaml")]) == 0
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]
    assert stored["class_path"] == "own_shapes.Shapes"
    assert stored["init_args"]["number"] == 64
    assert stored["init_args"]["num_validation"] == 16
    with pytest.raises(SystemExit):
        main(["fit", "--data.help=own_shapes.Shapes"])
    shown = capfd.readouterr().out
    assert "images in each of the training and the test set" in shown
    assert "--data.cutout" in shown
