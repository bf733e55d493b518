"""Data modules, evaluations and measurements of other images than those of the known sets."""

from __future__ import annotations

import copy
import dataclasses
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ssl_lightning import ArrayDataModule, LabelledImages, benchmark
from ssl_lightning.cli.compared import Compared, pixel_statistics, split_key
from ssl_lightning.cli.records import continued
from ssl_lightning.data import ImageFolderDataModule, ImagenetteDataModule
from ssl_lightning.data.packed import DataFileError, DataNotFoundError
from ssl_lightning.evaluation.calibration import temperature
from ssl_lightning.evaluation.corruption import wrong_on
from ssl_lightning.evaluation.predictions import Predictions, predict
from ssl_lightning.evaluation.transfer import features, last_linear
from ssl_lightning.evaluation.transfer_record import TransferRecord, TransferRow

ZEROS = torch.zeros(1, 1, 6, 6)


def module(images=(12, 1, 8, 8), shape=(1, 8, 8), names=("a", "b"), targets=None, **fields):
    """Random images of one shape, said to have another."""

    class Own(ArrayDataModule):
        class_names, input_shape = ("a", "b"), shape
        pad, flip = 1, True

        def read(self, train):
            pixels = np.random.default_rng(int(train)).integers(0, 256, images, np.uint8)
            labels = np.arange(len(pixels)) % 2 if targets is None else targets
            return LabelledImages(pixels, labels, names(train) if callable(names) else names)

    return Own(batch_size=4, num_validation=4, **fields)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("images", [(12, 1, 6, 10), (12, 1, 9, 9), (12, 1, 6, 6)])
def test_all_splits_have_images_of_the_shape_that_is_said(images, augment):
    data = module(images, (1, 6, 10), augment=augment)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert next(iter(loader))[0].shape[1:] == (1, 6, 10)


def test_validation_images_are_the_same_with_augmentation():
    plain, moved = (module(augment=augment) for augment in (False, True))
    assert torch.equal(plain.dataset("validation")[0][0], moved.dataset("validation")[0][0])


def test_images_with_targets_per_pixel_are_not_scaled():
    data = module((12, 1, 9, 9), targets=np.zeros((12, 9, 9), np.int64), augment=False)
    with pytest.raises(ValueError, match="would be scaled without their targets"):
        data.train_dataloader()


def test_classes_in_another_order_are_refused():
    data = module(names=lambda train: ("a", "b") if train else ("b", "a"))
    data.train_dataloader()
    with pytest.raises(ValueError, match="where 'b' is 1, got 0"):
        data.test_dataloader()
    module(names=("cats", "dogs")).test_dataloader()  # words of its own
    module(names=None).test_dataloader()
    twice = module(names=("crane", "a", "crane"))
    type(twice).class_names = ("crane", "a", "crane")  # as in ImageNet
    twice.train_dataloader()


def test_pixels_are_normalised_by_one_number_per_channel():
    data = module()
    data.mean = (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="expected `mean` and `std` of 1 channels"):
        data.train_dataloader()


@pytest.mark.parametrize("value", [0.1, "4", True])
def test_numbers_of_images_are_whole(value):
    with pytest.raises(ValueError, match="expected `num_validation` to be a whole number"):
        dataclasses.replace(module(), num_validation=value)


def folder(tmp_path, number=3, splits=("train", "val"), mode="RGB"):
    for split in splits:
        for name in ("cat", "dog"):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for i in range(number):
                Image.new(mode, (20, 16), i).save(place / f"{i}.png")
    return tmp_path


def test_datasets_are_iterated_once(tmp_path):
    for data in (module(), ImageFolderDataModule(root=str(folder(tmp_path)), image_size=8)):
        for split in ("train", "validation"):
            found = data.dataset(split)
            assert len(list(islice(iter(found), 100))) == len(found)


# --- folders of images -----


@pytest.mark.parametrize("cache_size", [None, 16])
def test_a_damaged_image_is_named(tmp_path, cache_size):
    place = folder(tmp_path / "data")
    broken = place / "train" / "cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:50])
    data = ImageFolderDataModule(
        root=str(place), image_size=8, cache_size=cache_size, cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(DataFileError, match=r"Cannot read `.*train/cat/1.png`: expected an image"):
        list(data.dataset("train"))


@pytest.mark.parametrize("cache_size", [None, 16])
def test_images_of_more_than_eight_bits_are_refused(tmp_path, cache_size):
    place = folder(tmp_path / "data", mode="I;16")  # but their values are small
    data = ImageFolderDataModule(
        root=str(place), image_size=8, cache_size=cache_size, cache_dir=str(tmp_path / "cache"),
        augment=False, normalize=False,
    )  # fmt: skip
    assert data.dataset("train")[2][0].max() == pytest.approx(2 / 255)
    Image.new("I;16", (20, 16), 256).save(place / "train" / "cat" / "3.png")
    data = dataclasses.replace(data)
    with pytest.raises(DataFileError, match=r"3\.png.*up to 256 where 255 is the most; convert it"):
        list(data.dataset("train"))


def test_a_folder_without_val_says_how_to_do_without(tmp_path):
    data = ImageFolderDataModule(root=str(folder(tmp_path, splits=["train"])), image_size=8)
    with pytest.raises(DataNotFoundError, match="hold images out of `train` with num_validation"):
        data.setup("fit")


def test_folders_say_how_pixels_are_normalised(tmp_path):
    data = ImageFolderDataModule(root=str(folder(tmp_path)), image_size=8)
    mean, std = pixel_statistics("evaluate", data)
    plain = dataclasses.replace(data, normalize=False)
    raw, scaled = (each.dataset("validation")[0][0] for each in (plain, data))
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    assert torch.allclose((raw - shift) / scale, scaled, atol=1e-6)


def test_folders_of_several_seeds_hold_the_same_images(tmp_path):
    place = str(folder(tmp_path))
    one, two = (
        ImageFolderDataModule(root=place, num_validation=2, seed=seed, split_seed=7, cache_dir=name)
        for seed, name in ((0, None), (1, "x"))
    )
    assert split_key(one, "validation") == split_key(two, "validation")
    assert split_key(one, "test") == split_key(two, "test")
    other = dataclasses.replace(one, split_seed=8)
    assert split_key(one, "validation") != split_key(other, "validation")


def test_imagenette_numbers_its_classes_though_one_is_missing(tmp_path):
    names = ("n01440764", "n02102040", "n03888257")
    for split, there in (("train", names), ("val", names[1:])):
        for name in there:
            place = tmp_path / "imagenette2-160" / split / name
            place.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (160, 160), i).save(place / f"{i}.JPEG")
    data = ImagenetteDataModule(root=str(tmp_path), num_validation=1)
    assert next(iter(data.test_dataloader()))[1].tolist() == [1, 1, 9, 9]
    (tmp_path / "imagenette2-160" / "val" / "n000").mkdir()
    with pytest.raises(DataFileError, match="got also n000"):
        ImagenetteDataModule(root=str(tmp_path), num_validation=1).test_dataloader()


# --- evaluations -----


def with_norm():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(32, 3)
    ).train()


EVALUATIONS = {
    "predict": lambda net: predict(net, [(ZEROS, torch.zeros(1, dtype=torch.int64))]),
    "last_linear": lambda net: last_linear(net, ZEROS),
    "features": lambda net: features(net, "4", [ZEROS]),
    "wrong_on": lambda net: wrong_on(
        net, np.zeros((2, 1, 6, 6), np.uint8), torch.tensor([0, 1]), (0.0,), (1.0,)
    ),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_network_remains_in_training(name):
    net = with_norm()
    net[1].eval()  # frozen, say
    before = copy.deepcopy(net.state_dict())
    EVALUATIONS[name](net)
    assert [m.training for m in net] == [True, False, True, True, True]
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_outputs_that_are_not_finite_are_no_answers():
    with pytest.raises(ValueError, match="expected finite outputs of Identity, got others for 1"):
        predict(nn.Identity(), [(torch.tensor([[1.0, float("nan")]]), torch.tensor([0]))])
    masked = torch.tensor([[1.0, float("-inf")]])  # a class that cannot be
    assert predict(nn.Identity(), [(masked, torch.tensor([0]))]).wrong().tolist() == [False]


def test_outputs_that_are_all_the_same_have_the_temperature_one():
    assert temperature(Predictions(torch.full((4, 3), 0.7), torch.tensor([0, 1, 2, 0]))) == 1.0


def test_a_network_of_several_outputs_ends_in_no_linear_layer():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(36, 3)

        def forward(self, x):
            return {"logits": self.fc(x.flatten(1))}

    with pytest.raises(ValueError, match="to end in a linear layer"):
        last_linear(Named(), ZEROS)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("margin", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("scale", [0.01, 0.05, 0.2, 1.0, 30.0])
def test_a_temperature_has_the_smallest_loss(classes, margin, scale):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (300,), generator=generator)
    logits = torch.randn(300, classes, generator=generator)
    logits[range(300), labels] += margin
    found = Predictions(logits * scale, labels)
    logarithms = np.linspace(-5, 5, 2001)
    losses = [float(found.divided(float(np.exp(x))).losses().mean()) for x in logarithms]
    best = temperature(found)
    assert float(found.divided(best).losses().mean()) <= min(losses) + 1e-6
    assert abs(np.log(best) - logarithms[int(np.argmin(losses))]) <= 0.05


def record(rows, title="t"):
    return TransferRecord(title, "probe", "X", "test", 9, 4, (0,), {}, None, rows)


def test_rows_of_another_network_are_not_continued(tmp_path):
    path = tmp_path / "r.json"
    keys = []
    for value in (0.0, 1.0):
        net = nn.Linear(2, 2)
        nn.init.constant_(net.weight, value)
        nn.init.zeros_(net.bias)
        keys.append(Compared("net", net, torch.zeros(1, 2), SimpleNamespace(std=1)).key("test"))
    others = [
        Compared("net", net, torch.zeros(1, 2), SimpleNamespace(std=2)).key("test"),
        Compared("net", net, torch.zeros(1, 3), SimpleNamespace(std=1)).key("test"),
        Compared("net", net, torch.zeros(1, 2), SimpleNamespace(std=1)).key("validation"),
    ]
    assert len({*keys, *others}) == 5
    row = TransferRow("net", 1, 1, 8, (50.0,), (), "0011", keys[0])
    record((row,)).save(path)
    assert continued(record((), "new"), str(path), {"net": keys[0]}) == record((row,), "new")
    with pytest.raises(ValueError, match="holds figures of another net, or of other data"):
        continued(record(()), str(path), {"net": keys[1]})
    record((dataclasses.replace(row, key=None),)).save(path)  # of before keys were noted
    assert continued(record(()), str(path), {"net": keys[1]}).rows[0].errors == (50.0,)


# --- benchmarks -----


class InPlace(nn.Module):
    """Normalises its input where it is."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x.sub_(0.5).mul_(4.0))


def test_a_benchmark_leaves_its_inputs_alone():
    x = torch.rand(2, 4)
    before = x.clone()
    models = {"first": InPlace(), "second": InPlace()}
    settings = {"repeats": 3, "min_run_time": 0.0, "threads": 1, "warmup": 0}
    engines = ["onnxruntime"]
    pytest.importorskip("onnxruntime")
    result = benchmark(models, x, engines=engines, **settings)
    assert torch.equal(x, before)
    assert not result.runs[0].left_out


def test_numbers_and_types_of_a_benchmark_are_given_in_several_forms():
    settings = {"repeats": 2, "min_run_time": 0.0, "warmup": 0, "per_layer": False}
    net, x = nn.Linear(4, 3), torch.rand(2, 4)
    result = benchmark(
        {"net": net},
        x,
        dtype=torch.float64,
        threads=np.int64(1),
        batch_size=np.int64(2),
        **settings,
    )
    assert [(run.dtype, run.batch_size, run.threads) for run in result.runs] == [("float64", 2, 1)]
    wrongs = {"batch_size": (2.0, "4"), "repeats": (2.5, [2, 3]), "warmup": (None,)}
    for wrong in ({name: value} for name, values in wrongs.items() for value in values):
        with pytest.raises(ValueError, match=f"expected a whole number as `{next(iter(wrong))}`"):
            benchmark({"net": net}, x, **{**settings, **wrong})
