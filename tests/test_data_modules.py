"""Contract of every data module in the table, on tiny made-up files and on the bundled images."""

import dataclasses
import inspect
import io
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from ssl_lightning.data import sets
from ssl_lightning.data.datamodule import (
    DATA_MODULES,
    CIFAR10DataModule,
    FashionMNISTDataModule,
    ImageFolderDataModule,
    ImageNetDataModule,
    ImagenetteDataModule,
    MNISTDataModule,
)
from ssl_lightning.data.packed import DataFileError, DataNotFoundError

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SSL_DATA_DIR") or ROOT.parent / "shared" / "data")
NUM_TRAIN, NUM_TEST, NUM_VALIDATION = 60, 20, 10
IN_MEMORY = ["mnist", "fashion_mnist", "cifar10", "imagenette"]
CAN_CUT = ["mnist", "fashion_mnist", "cifar10"]
FROM_FILES = [name for name in DATA_MODULES if name != "synthetic"]


def write_packed(path: Path, number: int, size: int, seed: int, classes: int = 10) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (number, size, size, 3), np.uint8)
    pieces = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        pieces.append(buffer.getvalue())
    np.savez(
        path,
        blob=np.frombuffer(b"".join(pieces), np.uint8),
        offsets=np.cumsum([0, *map(len, pieces)]),
        labels=np.arange(number) % classes,
        classes=np.array([f"class {i}" for i in range(classes)]),
    )


def write_folder(split: Path, classes: int, per_class: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for label in range(classes):
        folder = split / f"n{label:05d}"
        folder.mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png", compress_level=1)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of made-up files for each data module."""
    roots = {name: tmp_path_factory.mktemp(name) for name in DATA_MODULES}
    for name in IN_MEMORY:
        image_set = DATA_MODULES[name].image_set
        for file, number, seed in zip(image_set.packed, (NUM_TRAIN, NUM_TEST), (0, 1), strict=True):
            write_packed(roots[name] / file, number, image_set.shape[1], seed)
    for seed, split in enumerate(("train", "val", "test")):
        write_folder(roots["image_folder"] / split, 3, 20, seed)
    for seed, split in enumerate(("train", "val")):
        write_folder(roots["imagenet"] / split, 1000, 1, seed)
    return roots


def make(name: str, roots: dict[str, Path], **changes: object):
    options: dict[str, object] = {
        "source": "local",
        "root": str(roots[name]),
        "batch_size": 8,
        "num_validation": NUM_VALIDATION,
        "eval_batch_size": 7,
        "num_workers": 0,
    }
    if name == "synthetic":
        del options["source"]
        options |= {"num_train": NUM_TRAIN, "num_test": NUM_TEST}
    if name in ("imagenette", "image_folder", "imagenet", "synthetic"):
        options["image_size"] = 16
    return DATA_MODULES[name](**(options | changes))


def collect(loader) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def identity(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


ARGUMENTS = (
    "root batch_size num_validation seed split_seed augment normalize eval_batch_size num_workers"
)


@pytest.mark.parametrize("name", DATA_MODULES)
def test_the_command_line_shows_every_argument_with_a_description(name: str) -> None:
    parser = ArgumentParser()
    shown = parser.add_class_arguments(DATA_MODULES[name], "data")
    fields = {f"data.{f.name}" for f in dataclasses.fields(DATA_MODULES[name]) if f.init}
    assert set(shown) == fields >= {f"data.{name}" for name in ARGUMENTS.split()}
    assert inspect.signature(DATA_MODULES[name]).parameters.keys() == {
        field.removeprefix("data.") for field in fields
    }
    assert [action.dest for action in parser._actions if not action.help] == []


@pytest.mark.parametrize("name", DATA_MODULES)
def test_batches_have_the_announced_form(name: str, roots: dict[str, Path]) -> None:
    module = make(name, roots)
    module.setup()
    assert len(module.class_names) in (module.num_classes, 3)
    loaders = [
        (module.train_dataloader(), 8),
        (module.val_dataloader(), 7),
        (module.test_dataloader(), 7),
        (module.predict_dataloader(), 7),
    ]
    for loader, batch_size in loaders:
        images, labels = next(iter(loader))
        assert images.shape == (batch_size, *module.input_shape)
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        assert labels.shape == (batch_size,)
        assert labels.dtype == torch.int64
        assert labels.min() >= 0
        assert labels.max() < module.num_classes


@pytest.mark.parametrize("name", DATA_MODULES)
def test_train_and_validation_are_disjoint_and_complete(name: str, roots: dict[str, Path]) -> None:
    module = make(name, roots, augment=False, batch_size=1)
    train, _ = collect(module.train_dataloader())
    validation, _ = collect(module.val_dataloader())
    test, _ = collect(module.test_dataloader())
    number = 1000 if name == "imagenet" else NUM_TRAIN
    assert len(validation) == len(identity(validation)) == NUM_VALIDATION
    assert len(train) == len(identity(train)) == number - NUM_VALIDATION
    assert not identity(train) & identity(validation)
    assert not identity(test) & (identity(train) | identity(validation))


@pytest.mark.parametrize("name", [name for name in DATA_MODULES if name != "synthetic"])
def test_a_split_with_a_seed_of_its_own(name: str, roots: dict[str, Path]) -> None:
    """Synthetic images themselves depend on the seed."""

    def images(**seeds: int) -> tuple[set[bytes], torch.Tensor]:
        module = make(name, roots, augment=False, batch_size=1, **seeds)
        held_out, _ = collect(module.val_dataloader())
        return identity(held_out), collect(module.train_dataloader())[0]

    first, order = images(seed=0)
    other, _ = images(seed=1)
    again, shuffled = images(seed=1, split_seed=0)
    assert again == first != other
    assert identity(shuffled) == identity(order)
    assert not torch.equal(shuffled, order)


@pytest.mark.parametrize("name", DATA_MODULES)
def test_split_is_a_function_of_the_seed_only(name: str, roots: dict[str, Path]) -> None:
    reference = identity(collect(make(name, roots).val_dataloader())[0])
    other_options = make(name, roots, augment=False, batch_size=3)
    torch.manual_seed(123)
    assert identity(collect(other_options.val_dataloader())[0]) == reference
    other_seed = make(name, roots, seed=1)
    assert identity(collect(other_seed.val_dataloader())[0]) != reference


@pytest.mark.parametrize("name", DATA_MODULES)
@pytest.mark.parametrize("augment", [False, True])
def test_training_repeats_itself_and_epochs_differ(
    name: str, augment: bool, roots: dict[str, Path]
) -> None:
    module = make(name, roots, augment=augment)
    first, again = module.train_dataloader(), make(name, roots, augment=augment).train_dataloader()
    torch.manual_seed(0)
    images, labels = collect(first)
    before = torch.get_rng_state()
    images_again, labels_again = collect(again)
    assert torch.equal(torch.get_rng_state(), before)  # the training's own generator is left alone
    assert torch.equal(images, images_again)
    assert torch.equal(labels, labels_again)
    first.sampler.set_epoch(1)
    later, _ = collect(first)
    assert not torch.equal(later, images)
    if augment:
        assert len(identity(later) & identity(images)) <= len(images) // 4


@pytest.mark.parametrize("name", DATA_MODULES)
def test_world_of_two_sees_the_batches_of_one(name: str, roots: dict[str, Path]) -> None:
    whole = list(make(name, roots, batch_size=8).train_dataloader())
    shares = []
    for rank in (0, 1):
        module = make(name, roots, batch_size=4)
        module.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        shares.append(list(module.train_dataloader()))
    assert len(whole) == len(shares[0]) == len(shares[1])
    for (images, labels), *parts in zip(whole, *shares, strict=True):
        for rank, (images_part, labels_part) in enumerate(parts):
            assert torch.equal(images[rank::2], images_part)
            assert torch.equal(labels[rank::2], labels_part)


@pytest.mark.parametrize("name", DATA_MODULES)
def test_augmentation_belongs_to_the_image_not_to_its_place(
    name: str, roots: dict[str, Path]
) -> None:
    few, many = (
        make(name, roots, augment=True, num_validation=number).dataset("train")
        for number in (5, 30)
    )
    places = np.searchsorted(few.positions, many.positions)
    assert (places != np.arange(len(many))).any()
    for place in range(20):
        key = len(many) + place  # epoch 1
        image, label = many[key]
        same_image, same_label = few[len(few) + int(places[place])]
        assert torch.equal(image, same_image)
        assert label == same_label


@pytest.mark.parametrize("name", CAN_CUT)
def test_cutout_paints_a_square_of_mean_colour_in_training_images_only(
    name: str, roots: dict[str, Path]
) -> None:
    plain, cut = (make(name, roots, augment=True, cutout=side) for side in (0, 6))
    for split in ("val_dataloader", "test_dataloader"):
        assert torch.equal(collect(getattr(plain, split)())[0], collect(getattr(cut, split)())[0])
    before, labels = collect(plain.train_dataloader())
    images, same_labels = collect(cut.train_dataloader())
    assert torch.equal(labels, same_labels)
    changed = (images != before).any(1)
    for mask in changed:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()  # at the border only a part
        assert 3 <= min(rows, columns) <= max(rows, columns) <= 6
    painted = images.movedim(1, -1)[changed]
    half_a_step = 0.5 / 255 / min(cut.image_set.std)
    assert painted.abs().max() <= half_a_step + 1e-6


@pytest.mark.parametrize("name", CAN_CUT)
def test_bad_cutout(name: str, roots: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="expected `cutout` to be at least 0, got -1"):
        make(name, roots, cutout=-1, augment=True)
    with pytest.raises(ValueError, match=r"expected `augment: true` with `cutout`.*cutout=6"):
        make(name, roots, cutout=6, augment=False)


@pytest.mark.parametrize("name", ["mnist", "image_folder"])
def test_workers_give_the_same_batches(name: str, roots: dict[str, Path]) -> None:
    alone = make(name, roots, augment=True).train_dataloader()
    helped = make(name, roots, augment=True, num_workers=2).train_dataloader()
    for epoch in (0, 1):  # the workers of the first epoch persist
        for loader in (alone, helped):
            loader.sampler.set_epoch(epoch)
        for one, two in zip(alone, helped, strict=True):
            assert torch.equal(one[0], two[0])
            assert torch.equal(one[1], two[1])


@pytest.mark.parametrize("name", IN_MEMORY)
def test_a_file_is_decoded_once_and_fit_leaves_the_test_file_alone(
    name: str, roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = sets.read_packed
    monkeypatch.setattr(
        sets, "read_packed", lambda path, *rest: calls.append(path.name) or original(path, *rest)
    )
    module = make(name, roots)
    for stage in ("fit", "validate", "fit"):
        module.setup(stage)
        module.train_dataloader(), module.val_dataloader()
    assert calls == [module.image_set.packed[0]]
    for stage in ("test", "predict", None):
        module.setup(stage)
    assert calls == list(module.image_set.packed)


def test_fit_does_not_look_at_the_test_folder(roots: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(roots["imagenet"] / "train")
    module = ImageNetDataModule(root=str(tmp_path), num_validation=10, num_workers=0)
    module.setup("fit")
    with pytest.raises(DataNotFoundError, match="found none"):
        module.setup("test")


@pytest.mark.parametrize("name", DATA_MODULES)
def test_all_samples_in_one_batch_if_there_are_too_few(name: str, roots: dict[str, Path]) -> None:
    (images, _), *rest = make(name, roots, batch_size=5000, augment=False).train_dataloader()
    assert len(images) == (1000 if name == "imagenet" else NUM_TRAIN) - NUM_VALIDATION
    assert not rest


def test_incomplete_last_batch_is_left_out(roots: dict[str, Path]) -> None:
    loader = make("mnist", roots, batch_size=8).train_dataloader()
    assert len(loader) == len(list(loader)) == 50 // 8


@pytest.mark.parametrize("name", IN_MEMORY)
def test_normalisation(name: str, roots: dict[str, Path]) -> None:
    changes = {"image_size": 160} if name == "imagenette" else {}
    plain, _ = collect(make(name, roots, normalize=False, **changes).test_dataloader())
    normal, _ = collect(make(name, roots, **changes).test_dataloader())
    with np.load(roots[name] / DATA_MODULES[name].image_set.packed[1]) as archive:
        blob, offsets = archive["blob"].tobytes(), archive["offsets"]
    image_set = DATA_MODULES[name].image_set
    for i in (0, 13):
        image = Image.open(io.BytesIO(blob[offsets[i] : offsets[i + 1]]))
        pixels = np.asarray(image.convert("L" if image_set.shape[0] == 1 else "RGB")) / 255
        pixels = pixels.reshape(*image_set.shape[1:], -1).transpose(2, 0, 1)
        expected = np.stack(
            [(p - m) / s for p, m, s in zip(pixels, image_set.mean, image_set.std, strict=True)]
        )
        np.testing.assert_allclose(plain[i].numpy(), pixels, atol=1e-6)
        np.testing.assert_allclose(normal[i].numpy(), expected, atol=1e-5)


def test_bundled_mnist_is_the_default() -> None:
    module = MNISTDataModule()
    module.prepare_data()
    module.setup()
    assert len(module.dataset("train")) == 7000
    assert len(module.dataset("validation")) == 5000
    images, labels = collect(module.test_dataloader())
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02
    image, label = module.dataset("test")[3]
    assert torch.equal(image, images[3])
    assert label == labels[3]


@pytest.mark.skipif(
    not (SHARED / "cifar10-train.npz").exists(),
    reason="cifar10-train.npz is not in the data folder (SSL_DATA_DIR, else ../shared/data)",
)
def test_real_cifar10() -> None:
    module = CIFAR10DataModule(root=str(SHARED), augment=False)
    images, _ = collect(module.train_dataloader())
    assert len(module.dataset("train")) == 45_000
    assert images.mean((0, 2, 3)).abs().max() < 0.01
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.01


BAD_OPTIONS = [
    ({"batch_size": 0}, "expected `batch_size` to be at least 1, got 0"),
    ({"eval_batch_size": -1}, "expected `eval_batch_size` to be at least 1, got -1"),
    ({"num_workers": -1}, "expected `num_workers` to be at least 0, got -1"),
    ({"seed": -1}, "expected `seed` to be at least 0, got -1"),
    ({"num_validation": -1}, "expected `num_validation` to be .*, got -1"),
    ({"split_seed": -1}, "expected `split_seed` to be .*, got -1"),
    ({"source": "cloud"}, "expected `source` to be .*local.*, got 'cloud'"),
]


@pytest.mark.parametrize("name", FROM_FILES)
@pytest.mark.parametrize(("changes", "message"), BAD_OPTIONS)
def test_bad_options(name: str, changes: dict, message: str, roots: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=f"^{DATA_MODULES[name].__name__}: {message}"):
        make(name, roots, **changes)


@pytest.mark.parametrize("name", ["imagenette", "image_folder", "imagenet"])
def test_bad_image_size(name: str, roots: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="expected `image_size` to be at least 8, got 4"):
        make(name, roots, image_size=4)


def test_num_validation_must_leave_training_images(roots: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"`num_validation` to be 1 \.\. 11999, got 12000"):
        MNISTDataModule(num_validation=12_000)
    with pytest.raises(ValueError, match=r"`num_validation` to be 1 \.\. 49999, got 0"):
        CIFAR10DataModule(num_validation=0)
    with pytest.raises(ValueError, match=r"`num_validation` to be 0 \.\. 59, got 60"):
        make("cifar10", roots, num_validation=60).setup("fit")


@pytest.mark.parametrize("name", sorted(set(FROM_FILES) - {"mnist"}))
def test_only_mnist_is_bundled(name: str, roots: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="got 'bundled'"):
        make(name, roots, source="bundled")


@pytest.mark.parametrize("name", FROM_FILES)
def test_missing_data_names_what_was_looked_for(
    name: str, roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_DATA_DIR", str(tmp_path / "elsewhere"))
    module = make(name, roots, root=None)
    with pytest.raises(DataNotFoundError, match=r"looked for .*found n.*SSL_DATA_DIR") as caught:
        module.setup("fit")
    assert str(tmp_path / "elsewhere") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_DATA_DIR", raising=False)
    assert CIFAR10DataModule().folder == Path("data")
    monkeypatch.setenv("SSL_DATA_DIR", "set")
    assert CIFAR10DataModule().folder == Path("set")
    assert CIFAR10DataModule(root="given").folder == Path("given")


def no_network(*args: object, **kwargs: object) -> None:
    raise URLError("no route to host")


@pytest.mark.parametrize("name", IN_MEMORY)
def test_download_without_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("mnist", "cifar", "imagenette"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.download_and_extract_archive", no_network
        )
    module = DATA_MODULES[name](source="download", root=str(tmp_path / "new"))
    with pytest.raises(DataNotFoundError, match="no route to host") as caught:
        module.prepare_data()
    message = str(caught.value)
    assert message.startswith(f"Cannot download {module.image_set.title} to `{tmp_path / 'new'}`")
    assert "use source='local'" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", IN_MEMORY)
def test_local_never_downloads(
    name: str, roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets.ImageSet, "download", no_network)
    make(name, roots).prepare_data()


def test_download_reads_what_torchvision_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(url: str, download_root: str, filename: str, md5: str) -> None:
        kind, split = filename.split("-")[1], filename.split("-")[0]
        number = 30 if split == "train" else 5
        shape = (number, 28, 28) if kind == "images" else (number,)
        head = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
        body = (np.arange(np.prod(shape)) % 10).astype(np.uint8).tobytes()
        (Path(download_root) / filename.removesuffix(".gz")).write_bytes(head + body)

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fake)
    module = FashionMNISTDataModule(
        source="download", root=str(tmp_path), batch_size=5, num_validation=10
    )
    module.prepare_data()
    module.setup()
    assert [len(module.dataset(s)) for s in ("train", "validation", "test")] == [20, 10, 5]


def write_cifar10_batches(folder: Path) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3072), np.uint8)
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, data in zip(names, pixels, strict=True):
        content = {"data": data, "labels": [0, 1, 2, 9]}
        (folder / name).write_bytes(pickle.dumps(content))
    meta = {"label_names": list(sets.CIFAR10.class_names)}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    return pixels.reshape(-1, 3, 32, 32)


def test_cifar10_in_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar10_batches(tmp_path / "cifar-10-batches-py")
    with pytest.raises(DataFileError, match="torchvision's checksums, but Dataset not found"):
        sets.CIFAR10.read(tmp_path, train=True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    train, test = (sets.CIFAR10.read(tmp_path, train=train) for train in (True, False))
    np.testing.assert_array_equal(train.images, pixels[:20])
    np.testing.assert_array_equal(test.images, pixels[20:])
    assert test.labels.tolist() == [0, 1, 2, 9]


def test_imagenette_in_torchvisions_layout(tmp_path: Path) -> None:
    for split, number in (("train", 4), ("val", 2)):
        for label, name in enumerate(sets.WNIDS):
            folder = tmp_path / "imagenette2-160" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                image = Image.new("L" if i else "RGB", (200 + i, 160), 20 * label)
                image.save(folder / f"{i}.JPEG")
    module = ImagenetteDataModule(root=str(tmp_path), num_validation=10, image_size=160)
    images, labels = collect(module.test_dataloader())
    assert images.shape == (20, 3, 160, 160)
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert len(module.dataset("train")) == 30
    broken = tmp_path / "imagenette2-160" / "train" / sets.WNIDS[3] / "1.JPEG"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(DataFileError, match="expected JPEG images, but"):
        ImagenetteDataModule(root=str(tmp_path)).setup("fit")
    (tmp_path / "empty" / "imagenette2-160").mkdir(parents=True)
    with pytest.raises(DataNotFoundError, match="found no image"):
        ImagenetteDataModule(root=str(tmp_path / "empty")).setup("fit")


def test_packed_file_of_another_set(tmp_path: Path) -> None:
    write_packed(tmp_path / "cifar10-train.npz", 20, 30, seed=0)
    with pytest.raises(DataFileError, match=r"as CIFAR10: expected images \(3, 32, 32\)"):
        CIFAR10DataModule(root=str(tmp_path)).setup("fit")
    write_packed(tmp_path / "cifar10-train.npz", 20, 32, seed=0, classes=11)
    with pytest.raises(DataFileError, match="of 11 classes came"):
        CIFAR10DataModule(root=str(tmp_path)).setup("fit")


def test_idx_files_without_images(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(
        bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (0, 28, 28))
    )
    (folder / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 0]))
    with pytest.raises(DataFileError, match="but 0 images"):
        MNISTDataModule(source="local", root=str(tmp_path)).setup("fit")


def test_image_folder_uses_its_three_folders(roots: dict[str, Path]) -> None:
    module = make("image_folder", roots, num_validation=0)
    module.setup()
    assert [len(module.dataset(s)) for s in ("train", "validation", "test")] == [60, 60, 60]
    assert module.num_classes == 3
    folders = [module.dataset(s).data.root for s in ("train", "validation", "test")]
    assert [Path(folder).name for folder in folders] == ["train", "val", "test"]


def test_image_folder_without_test_folder(roots: dict[str, Path], tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(roots["image_folder"] / split)
    module = ImageFolderDataModule(root=str(tmp_path))
    module.setup("fit")
    with pytest.raises(DataNotFoundError, match="is what models are selected on"):
        module.setup("test")
    held_out = ImageFolderDataModule(root=str(tmp_path), num_validation=10)
    assert Path(held_out.dataset("test").data.root).name == "val"


def test_image_folders_must_agree(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 3, 1, 0)
    write_folder(tmp_path / "val", 2, 1, 0)
    with pytest.raises(DataFileError, match=r"expected the 3 classes .* not in both: n00002"):
        ImageFolderDataModule(root=str(tmp_path)).setup("fit")
    with pytest.raises(DataFileError, match="as ImageNet: expected 1000 class folders, got 3"):
        ImageNetDataModule(root=str(tmp_path)).setup("fit")
    (tmp_path / "train" / "n00001" / "0.png").unlink()
    with pytest.raises(DataNotFoundError, match="at least one image per class folder"):
        ImageFolderDataModule(root=str(tmp_path)).setup("fit")


def test_package_lists_and_gives_all_names() -> None:
    import ssl_lightning.data as data

    assert dir(data) == sorted(data.__all__)
    for name in data.__all__:
        assert getattr(data, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'MNIST'"):
        _ = data.MNIST
