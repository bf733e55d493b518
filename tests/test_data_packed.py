"""Readers against independent parsing, the bundled files, and damaged files one by one."""

import gzip
import io
import os
import struct
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_lightning.data.packed import (
    DataFileError,
    DataNotFoundError,
    read_idx,
    read_idx_split,
    read_packed,
)

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SSL_DATA_DIR") or ROOT.parent / "shared" / "data")
BUNDLED = Path(str(files("ssl_lightning.data.bundled")))
TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def needs(name: str) -> pytest.MarkDecorator:
    reason = f"{name} is not in the data folder (SSL_DATA_DIR, else ../shared/data)"
    return pytest.mark.skipif(not (SHARED / name).exists(), reason=reason)


def raw_mnist(prefix: str) -> tuple[np.ndarray, np.ndarray]:
    folder = SHARED / "MNIST" / "raw"
    with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz") as file:
        _, number, height, width = struct.unpack(">4i", file.read(16))
        images = np.array(list(file.read()), np.uint8).reshape(number, height, width)
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz") as file:
        struct.unpack(">2i", file.read(8))
        return images, np.array(list(file.read()))


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_packed(path: Path, pieces: list[bytes], labels: object, /, **changes: object) -> Path:
    content = {
        "blob": np.frombuffer(b"".join(pieces), np.uint8),
        "offsets": np.cumsum([0, *map(len, pieces)]),
        "labels": np.asarray(labels, np.uint8),
        "classes": np.array(["a", "b"]),
    } | changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path


def test_bundle_is_at_most_4_mb() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.iterdir() if path.is_file()) <= 4e6


def test_bundled_test_split_is_complete() -> None:
    data = read_packed(BUNDLED / "mnist-test.npz", channels=1)
    assert data.images.shape == (10_000, 1, 28, 28)
    assert data.images.dtype == np.uint8
    assert np.bincount(data.labels).tolist() == TEST_COUNTS
    assert data.classes == tuple("0123456789")


def test_bundled_train_split_has_the_class_balance_of_the_full_one() -> None:
    data = read_packed(BUNDLED / "mnist-train.npz", channels=1)
    counts = np.bincount(data.labels)
    assert counts.sum() == len(data.images) == 12_000
    assert np.abs(counts - np.array(TRAIN_COUNTS) / 5).max() < 1  # largest remainder
    assert abs(data.images.mean() / 255 - 0.13066) < 0.002


@needs("MNIST/raw/t10k-images-idx3-ubyte.gz")
def test_bundled_images_are_those_of_the_idx_files() -> None:
    images, labels = raw_mnist("t10k")
    test = read_packed(BUNDLED / "mnist-test.npz", channels=1)
    np.testing.assert_array_equal(test.images[:, 0], images)
    np.testing.assert_array_equal(test.labels, labels)
    read = read_idx_split(SHARED / "MNIST" / "raw", "t10k")
    np.testing.assert_array_equal(read.images[:, 0], images)
    np.testing.assert_array_equal(read.labels, labels)


@needs("MNIST/raw/train-images-idx3-ubyte.gz")
def test_bundled_train_images_are_distinct_images_of_the_train_split() -> None:
    full = read_idx_split(SHARED / "MNIST" / "raw", "train")
    position = {image.tobytes(): i for i, image in enumerate(full.images)}
    train = read_packed(BUNDLED / "mnist-train.npz", channels=1)
    found = [position[image.tobytes()] for image in train.images]
    assert len(set(found)) == 12_000
    np.testing.assert_array_equal(full.labels[found], train.labels)


@needs("MNIST/raw/train-images-idx3-ubyte.gz")
def test_bundle_script_keeps_the_quotas_and_is_deterministic() -> None:
    code = (
        "import bundle_mnist as b, numpy as np; from pathlib import Path;"
        "import sys; x, y = b.read_split(Path(sys.argv[1]), 'train');"
        "i = b.balanced_subset(y, 12_000, 0); j = b.balanced_subset(y, 12_000, 0);"
        "assert (i == j).all() and (np.diff(i) > 0).all(); sys.stdout.buffer.write(x[i].tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(SHARED / "MNIST" / "raw")],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tools")},
    )
    bundled = read_packed(BUNDLED / "mnist-train.npz", channels=1).images
    same = done.stdout == bundled.tobytes()  # pytest would compare megabytes in its message
    assert same, f"{len(done.stdout)} bytes came: {done.stdout[:200]!r}"


@needs("cifar10-test.npz")
def test_cifar10_strips() -> None:
    archive = np.load(SHARED / "cifar10-test.npz")
    blob, offsets = archive["blob"].tobytes(), archive["offsets"]
    strip = np.asarray(Image.open(io.BytesIO(blob[offsets[3] : offsets[4]])).convert("RGB"))
    data = read_packed(SHARED / "cifar10-test.npz")
    assert data.images.shape == (10_000, 3, 32, 32)
    assert np.bincount(data.labels).tolist() == [1000] * 10
    for row in range(3):
        expected = strip[32 * row : 32 * (row + 1)]
        np.testing.assert_array_equal(data.images[300 + row].transpose(1, 2, 0), expected)


@needs("imagenet-samples.npz")
def test_images_of_different_sizes_are_made_square() -> None:
    data = read_packed(SHARED / "imagenet-samples.npz", square=32)
    assert data.images.shape == (1000, 3, 32, 32)
    with pytest.raises(DataFileError, match=r"expected 1000 images of one size, but ValueError"):
        read_packed(SHARED / "imagenet-samples.npz")


@pytest.mark.parametrize("channels", [1, 3])
def test_single_images(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 5, 7, 3), np.uint8)
    if channels == 1:
        images[:] = images[..., :1]
    path = write_packed(tmp_path / "x.npz", [encode(image) for image in images], [0, 1, 1])
    data = read_packed(path, channels)
    np.testing.assert_array_equal(data.images.transpose(0, 2, 3, 1), images[..., :channels])
    assert data.labels.tolist() == [0, 1, 1]
    assert data.classes == ("a", "b")


def test_two_classes_may_have_one_name(tmp_path: Path) -> None:
    """ImageNet has two kinds of `crane`, a bird and a machine."""
    pieces = [encode(np.full((4, 4), i, np.uint8)) for i in range(3)]
    classes = np.array(["crane", "crane"])
    data = read_packed(write_packed(tmp_path / "x.npz", pieces, [0, 1, 1], classes=classes), 1)
    assert data.classes == ("crane", "crane")
    assert data.labels.tolist() == [0, 1, 1]


def test_strips_may_differ_in_length(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4), np.uint8)
    pieces = [encode(images[:3].reshape(-1, 4)), encode(images[3:].reshape(-1, 4))]
    data = read_packed(write_packed(tmp_path / "x.npz", pieces, [0, 1, 0, 1, 0]), channels=1)
    np.testing.assert_array_equal(data.images[:, 0], images)


PIECES = [encode(np.full((4, 4), level, np.uint8)) for level in (1, 2)]
DAMAGES = {
    "missing_key": ({"labels": None}, "but KeyError"),
    "pickled": ({"classes": np.array([{}, None])}, "but ValueError: Object arrays cannot be"),
    "blob_of_floats": ({"blob": np.zeros(9)}, "but float64, int64 and uint8 came"),
    "offsets_short": ({"offsets": np.array([0, 3])}, "do not ascend from 0 to the"),
    "offsets_falling": ({"offsets": np.array([0, 90, 80, 200])}, "do not ascend"),
    "unknown_label": ({"labels": np.array([0, 2])}, r"do not all lie in 0\.\.1"),
    "negative_label": ({"labels": np.array([0, -1])}, r"do not all lie in 0\.\.1"),
    "no_labels": ({"labels": np.array([], int)}, "0 labels came"),
    "too_many_labels": ({"labels": np.array([0, 1, 1])}, "2 images came"),
    "too_few_labels": ({"labels": np.array([0])}, "image 1 has the shape"),
    "no_images": ({"blob": np.zeros(9, np.uint8), "offsets": np.array([0, 4, 9])}, "Unidentified"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_packed_file(tmp_path: Path, name: str) -> None:
    changes, message = DAMAGES[name]
    path = write_packed(tmp_path / "broken.npz", PIECES, [0, 1], **changes)
    with pytest.raises(DataFileError, match=message) as caught:
        read_packed(path, channels=1)
    assert "broken.npz`: expected" in str(caught.value)
    assert "fetch or make it again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_of_two_sizes(tmp_path: Path) -> None:
    pieces = [PIECES[0], encode(np.zeros((5, 4), np.uint8))]
    path = write_packed(tmp_path / "x.npz", pieces, [0, 1])
    with pytest.raises(DataFileError, match=r"image 1 has the shape \(1, 5, 4\)"):
        read_packed(path, channels=1)


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
def test_truncated_packed_file(tmp_path: Path, keep: float) -> None:
    content = (BUNDLED / "mnist-test.npz").read_bytes()
    size = int(keep * len(content)) if isinstance(keep, float) else keep
    path = tmp_path / "short.npz"
    path.write_bytes(content[:size])
    with pytest.raises(DataFileError, match=r"short\.npz`: expected a packed \.npz with the keys"):
        read_packed(path, channels=1)


def test_flipped_byte_in_a_packed_file(tmp_path: Path) -> None:
    content = bytearray((BUNDLED / "mnist-test.npz").read_bytes())
    content[500_000] ^= 255
    path = tmp_path / "flipped.npz"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match="BadZipFile: Bad CRC-32"):
        read_packed(path, channels=1)


def test_a_text_file_is_not_a_packed_file(tmp_path: Path) -> None:
    path = tmp_path / "page.npz"
    path.write_text("<html>404</html>")
    with pytest.raises(DataFileError, match=r"page\.npz`: expected a packed \.npz"):
        read_packed(path)


@pytest.mark.parametrize("reader", [read_packed, read_idx])
def test_missing_file(tmp_path: Path, reader: object) -> None:
    with pytest.raises(DataNotFoundError, match=r"nothing\.npz`: no such file.*SSL_DATA_DIR"):
        reader(tmp_path / "nothing.npz")  # type: ignore[operator]


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, prefix: str, images: bytes, labels: bytes, zipped: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("images-idx3", images), ("labels-idx1", labels)):
        path = folder / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_split(tmp_path: Path, zipped: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28))
    write_mnist(tmp_path, "t10k", idx(images), idx(np.arange(6)), zipped)
    data = read_idx_split(tmp_path, "t10k")
    np.testing.assert_array_equal(data.images[:, 0], images)
    assert data.labels.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it begins with b''"),
        (b"PNG?....", "it begins with b'PNG"),
        (idx(np.zeros((2, 3)))[:-1], "17 bytes came where its header announces 18"),
        (idx(np.zeros((2, 3))) + b"x", "19 bytes came where its header announces 18"),
        (idx(np.zeros((2, 3)))[:9], "9 bytes came where"),
        (gzip.compress(idx(np.zeros((2, 3))))[:-9], "but EOFError"),
        (b"\x1f\x8bnonsense", "but BadGzipFile"),
    ],
    ids=["empty", "other", "truncated", "longer", "header_only", "gz_truncated", "gz_damaged"],
)
def test_damaged_idx_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=message) as caught:
        read_idx(path)
    assert "bad-ubyte`: expected an idx file of unsigned bytes" in str(caught.value)


def test_idx_labels_of_another_number(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", idx(np.zeros((3, 2, 2))), idx(np.zeros(4)), zipped=False)
    with pytest.raises(DataFileError, match=r"shapes \(3, 2, 2\) and \(4,\)"):
        read_idx_split(tmp_path, "train")


def test_idx_split_names_the_missing_file(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", idx(np.zeros((3, 2, 2))), idx(np.zeros(3)), zipped=False)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataNotFoundError, match="train-labels-idx1-ubyte`: no such file"):
        read_idx_split(tmp_path, "train")


def test_reading_a_file_imports_neither_lightning_nor_torch() -> None:
    code = (
        "import sys; from ssl_lightning.data import read_packed;"
        "assert not {'lightning', 'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
