"""Batches made on the device against those of the ordinary loader, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssl_lightning.data import device as device_file
from ssl_lightning.data import sets
from ssl_lightning.data.augment import CropFlip, Cutout, Resize
from ssl_lightning.data.datamodule import CIFAR10DataModule, MNISTDataModule
from test_data_modules import write_packed
from test_data_resume import KilledError, Recorder

CPU = torch.device("cpu")
NUM_TRAIN, NUM_VALIDATION = 70, 10


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cifar10")
    for file, number, seed in zip(sets.CIFAR10.packed, (NUM_TRAIN, 20), (0, 1), strict=True):
        write_packed(folder / file, number, 32, seed)
    return str(folder)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_file, "CHUNK", 17)  # several, the last one smaller


def trainer(rank: int = 0, world_size: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        world_size=world_size, global_rank=rank, strategy=SimpleNamespace(root_device=CPU)
    )


def pair(root: str, rank: int = 0, world_size: int = 1, **options):
    given = {"root": root, "batch_size": 8, "num_validation": NUM_VALIDATION, "eval_batch_size": 7}
    for on_device in (False, True):
        module = CIFAR10DataModule(**(given | options), on_device=on_device)
        module.trainer = trainer(rank, world_size)
        yield module


def assert_same(ordinary, device, number: int) -> None:
    compared = 0
    for (images, labels), (other_images, other_labels) in zip(ordinary, device, strict=True):
        assert other_images.dtype == torch.float32
        assert other_images.is_contiguous()
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
        compared += len(labels)
    assert compared == number


@pytest.mark.parametrize("cutout", [0, 5, 8])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 3), (2, 3)])
def test_training_batches_are_those_of_the_ordinary_loader(
    root: str, cutout: int, normalize: bool, rank: int, world_size: int
) -> None:
    options = {"cutout": cutout, "normalize": normalize, "seed": 3}
    loaders = [module.train_dataloader() for module in pair(root, rank, world_size, **options)]
    for epoch in (0, 1, 5, 1):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        assert_same(*loaders, number=len(loaders[0]) * 8)
    assert len(loaders[0]) == (60 // world_size) // 8


def test_batches_without_augmentation_are_the_same(root: str) -> None:
    assert_same(*(m.train_dataloader() for m in pair(root, augment=False)), number=56)


def test_evaluation_batches_are_the_same(root: str) -> None:
    ordinary, device = pair(root)
    assert_same(ordinary.val_dataloader(), device.val_dataloader(), NUM_VALIDATION)
    assert_same(ordinary.test_dataloader(), device.test_dataloader(), 20)
    assert_same(ordinary.predict_dataloader(), device.predict_dataloader(), 20)


def test_grey_images_are_the_same() -> None:
    options = {"augment": True, "cutout": 6, "batch_size": 700}
    modules = [MNISTDataModule(**options, on_device=on_device) for on_device in (False, True)]
    assert_same(*(module.train_dataloader() for module in modules), number=7000)


def test_a_loader_resumed_in_mid_epoch_goes_on_the_same(root: str) -> None:
    ordinary, device = (module.train_dataloader() for module in pair(root, cutout=8))
    states = []
    for loader in (ordinary, device):
        loader.sampler.set_epoch(2)
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        states.append(loader.state_dict())
    assert states[0] == states[1]
    resumed = [module.train_dataloader() for module in pair(root, cutout=8)]
    for loader, state in zip(resumed, reversed(states), strict=True):  # either from the other's
        loader.sampler.set_epoch(2)
        loader.load_state_dict(state)
    assert_same(*resumed, number=(7 - 3) * 8)


class Wide(Recorder):
    def __init__(self, die_before: int | None = None) -> None:
        super().__init__(die_before)
        self.layer = torch.nn.Linear(3 * 32 * 32, 10)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_fits_see_the_same_batches_also_when_resumed(root: str, tmp_path: Path) -> None:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    def fit(on_device: bool, die_before: int | None = None, resume: Path | None = None) -> Wide:
        data = CIFAR10DataModule(
            root=root, batch_size=8, num_validation=NUM_VALIDATION, on_device=on_device, cutout=8
        )
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            max_epochs=3,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)],
        )
        model = Wide(die_before)
        try:
            trainer.fit(model, data, ckpt_path=resume, weights_only=False if resume else None)
        except KilledError:
            assert die_before is not None
        return model

    whole = fit(on_device=False)
    assert fit(on_device=True).seen == whole.seen
    assert len({entry[3] for entry in whole.seen}) == 3 * 7
    fit(on_device=True, die_before=12)
    resumed = fit(on_device=True, resume=tmp_path / "step=10.ckpt")
    assert resumed.seen == whole.seen[10:]


@pytest.mark.parametrize("size", [(6, 5), (3, 3)])
@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("side", [1, 4, 40])
def test_transforms_agree_for_any_size(size: tuple[int, int], pad: int, side: int) -> None:
    images = np.random.default_rng(0).integers(1, 256, (40, 3, *size), np.uint8)
    index, epoch = np.arange(100, 140), np.arange(40) % 3
    given = torch.from_numpy(images.copy())
    moved = CropFlip(pad, True, seed=9)
    for transform in (moved, Cutout(moved, side, (7, 0, 200), seed=8)):
        draws = torch.from_numpy(transform.draw(size, epoch, index))
        expected = transform(images, epoch, index)
        assert np.array_equal(transform.on_device(given, draws).numpy(), expected)
        assert np.array_equal(given.numpy(), images)  # the input is left alone


def test_the_random_numbers_of_an_epoch_are_drawn_once(root: str, monkeypatch) -> None:
    (_, module), calls = pair(root), []
    original = CropFlip.draw
    monkeypatch.setattr(CropFlip, "draw", lambda *a: calls.append(1) or original(*a))
    loader = module.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        list(loader)
    assert len(calls) == 3


def test_what_cannot_be_done_on_the_device_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match=r"`num_workers: 0` with `on_device`.*got 2"):
        CIFAR10DataModule(root=root, on_device=True, num_workers=2)
    _, module = pair(root)
    with pytest.raises(ValueError, match=r"expected keys of one epoch, got \[0, 1\]"):
        module.dataset("train").__getitems__([3, 63])
    with pytest.raises(ValueError, match="expected images of 4 x 4 pixels on the device"):
        Resize(4).on_device(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_batches_without_a_wait(root: str) -> None:
    ordinary, device = pair(root, cutout=8)
    device.trainer.strategy.root_device = torch.device("cuda")
    loaders = ordinary.train_dataloader(), device.train_dataloader()
    list(loaders[1])  # memory is there from now on
    loaders[1].sampler.set_epoch(1)
    loaders[0].sampler.set_epoch(1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(loaders[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(loaders[0], [(images.cpu(), labels.cpu()) for images, labels in batches], 56)
