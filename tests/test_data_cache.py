"""The cache of decoded images, and training images whose size grows with the epochs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from ssl_lightning import SSLLightningModule
from ssl_lightning.data import ImageFolderDataModule, ImagenetteDataModule
from ssl_lightning.data.augment import RandomResizedCrop, Resize
from ssl_lightning.data.packed import DataFileError, decode_image
from ssl_lightning.zoo.runs import open_data
from test_data_modules import write_folder, write_packed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, split in enumerate(("train", "val", "test")):
        write_folder(tmp_path / "data" / split, 3, 4, seed)
    return tmp_path / "data"


def module(root: Path, **changes) -> ImageFolderDataModule:
    settings = {"batch_size": 4, "image_size": 16, "cache_size": 20, "eval_batch_size": 5}
    return ImageFolderDataModule(
        root=str(root), **{"cache_dir": str(root.parent / "cache"), **settings, **changes}
    )


def count_decoded(monkeypatch) -> list[Path]:
    """The files that are decoded from now on."""
    seen: list[Path] = []

    def decode(path, *arguments):
        seen.append(path)
        return decode_image(path, *arguments)

    monkeypatch.setattr("ssl_lightning.data.folder.decode_image", decode)
    return seen


def test_images_are_decoded_once_for_all(root, monkeypatch):
    seen = count_decoded(monkeypatch)
    first = list(module(root).val_dataloader())
    assert len(seen) == 12
    again = list(module(root).val_dataloader())
    assert len(seen) == 12
    assert torch.equal(torch.cat([x for x, _ in first]), torch.cat([x for x, _ in again]))


def test_cached_pixels_are_those_of_the_files(root):
    data = module(root, normalize=False, cache_size=16, image_size=14)
    dataset = data.dataset("test")
    files = sorted((root / "test").glob("*/*.png"))
    expected = np.stack([decode_image(file, 3, 16) for file in files])
    assert np.array_equal(dataset.images, expected)
    pixels = torch.cat([x for x, _ in data.test_dataloader()])
    middle = torch.from_numpy(expected[:, :, 1:15, 1:15]).float() / 255  # 7/8 of the side
    torch.testing.assert_close(pixels, middle)
    labels = torch.cat([y for _, y in data.test_dataloader()])
    assert labels.tolist() == [int(file.parent.name[1:]) for file in files]


@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "no mark", "bad mark", "no pixels"])
def test_a_damaged_cache_is_made_again(root, damage, monkeypatch):
    expected = np.array(module(root).dataset("validation").images)
    (pixels,), (mark,) = ((root.parent / "cache").glob(f"*.{kind}") for kind in ("raw", "json"))
    whole = bytearray(pixels.read_bytes())
    if damage == "flip":
        whole[len(whole) // 2] ^= 1
        pixels.write_bytes(whole)
    elif damage in ("truncate", "grow"):
        pixels.write_bytes(whole[:-1] if damage == "truncate" else whole + b"\0")
    else:
        {"no mark": mark.unlink, "no pixels": pixels.unlink}.get(
            damage, lambda: mark.write_text("[]")
        )()
    seen = count_decoded(monkeypatch)
    assert np.array_equal(module(root).dataset("validation").images, expected)
    assert len(seen) == 12
    assert json.loads(mark.read_text())["num_bytes"] == len(expected.tobytes())


def test_another_size_or_other_files_are_another_cache(root, monkeypatch):
    module(root).dataset("validation")
    seen = count_decoded(monkeypatch)
    module(root, cache_size=24).dataset("validation")
    assert len(seen) == 12
    next(iter((root / "val").glob("*/*.png"))).unlink()
    assert len(module(root).dataset("validation")) == 11
    assert len(seen) == 23


def test_nothing_is_left_of_a_cache_that_fails(root):
    broken = next(iter((root / "train").glob("*/*.png")))
    broken.write_bytes(b"no image")
    with pytest.raises(DataFileError, match=rf"{broken.name}`: expected an image.*Replace or rem"):
        module(root).dataset("train")
    assert list((root.parent / "cache").iterdir()) == []


def test_the_default_place_is_the_users_cache(root, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    module(root, cache_dir=None).dataset("test")
    assert len(list((tmp_path / "home" / "ssl_lightning").iterdir())) == 2


def test_cached_pixels_cannot_be_written_to(root):
    with pytest.raises(ValueError, match="read-only"):
        module(root).dataset("test").images[0] = 0


# Sizes by epoch


def test_the_size_is_a_function_of_the_epoch():
    crop = RandomResizedCrop(32, sizes={1: 12, 3: 20})
    images = np.zeros((2, 3, 40, 40), np.uint8)
    sizes = [crop(images, np.full(2, e), np.arange(2)).shape[2:] for e in range(5)]
    assert sizes == [(32, 32), (12, 12), (12, 12), (20, 20), (20, 20)]


def test_resize_takes_the_middle():
    image = np.zeros((1, 1, 8, 8), np.uint8)
    image[..., 2:6, 2:6] = 200
    none = np.zeros(1, np.int64)
    assert (Resize(4, middle=0.5)(image, none, none) == 200).all()


class Sizes(SSLLightningModule):
    """Remembers the sizes of the images that it sees."""

    def __init__(self) -> None:
        super().__init__("alexnet", {"num_classes": 10})
        self.seen: dict[str, list[int]] = {"train": [], "val": []}
        self.backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                                            torch.nn.Linear(3, 10))  # fmt: skip

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch[0].shape[-1])
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch[0].shape[-1])
        super().validation_step(batch, batch_idx)


def test_training_images_grow_and_validation_images_do_not(tmp_path):
    for file in ImagenetteDataModule.image_set.packed:
        write_packed(tmp_path / file, 20, 160, 0)
    data = ImagenetteDataModule(root=str(tmp_path), batch_size=8, num_validation=4, image_size=40,
                                training_sizes={0: 16, 1: 24, 3: 40})  # fmt: skip
    net = Sizes()
    trainer = Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False,
                      num_sanity_val_steps=0)  # fmt: skip
    trainer.fit(net, data)
    assert net.seen["train"] == [16] * 2 + [24] * 4 + [40] * 2
    assert set(net.seen["val"]) == {40}
    assert data.input_shape == (3, 40, 40)


def test_sizes_are_read_back_from_a_stored_config(tmp_path):
    """`fit` stores the epochs as text in config.yaml, from which `zoo publish` opens the data."""
    for file in ImagenetteDataModule.image_set.packed:
        write_packed(tmp_path / file, 20, 160, 0)
    arguments = {"root": str(tmp_path), "num_validation": 4, "training_sizes": {"0": 16, "1": 24}}
    stored = {"class_path": "ssl_lightning.data.ImagenetteDataModule", "init_args": arguments}
    assert open_data(stored).training_sizes == {0: 16, 1: 24}


@pytest.mark.parametrize(("changes", "message"), [
    ({"training_sizes": {0: 4}}, r"`training_sizes \(pixels\)` to be at least 8, got 4"),
    ({"training_sizes": {-1: 16}}, r"`training_sizes \(epoch\)` to be at least 0, got -1"),
    ({"training_sizes": {"first": 16}}, "`training_sizes` to be by epoch, such as {0: 128"),
    ({"training_sizes": {0: 16}, "cache_size": None}, "needs images that are decoded once"),
    ({"cache_size": 4}, "`cache_size` to be at least 8, got 4"),
])  # fmt: skip
def test_impossible_sizes_are_refused(root, changes, message):
    with pytest.raises(ValueError, match=message):
        module(root, **changes)
