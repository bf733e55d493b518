"""Read images from packed ``.npz`` files and from MNIST's idx files, as uint8 arrays.

A packed file is an ``.npz`` without pickles and with four keys:

* ``blob``: uint8, all encoded pieces (PNG, JPEG, WebP, ...) one after another;
* ``offsets``: int64, one more than the pieces; piece ``i`` is ``blob[offsets[i]:offsets[i + 1]]``;
* ``labels``: one integer per image, an index into ``classes``;
* ``classes``: the names.

A piece is one image where there are as many pieces as labels. Otherwise it is a strip: square
images of the strip's width, stacked from top to bottom.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = [
    "DataFileError",
    "DataNotFoundError",
    "LabelledImages",
    "decode_image",
    "read_idx",
    "read_idx_split",
    "read_packed",
    "stack_images",
]

UInt8Array = npt.NDArray[np.uint8]
KEYS = ("blob", "offsets", "labels", "classes")
READ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    SyntaxError,  # Pillow, of broken PNG chunks
    OverflowError,
    MemoryError,
    NotImplementedError,  # zipfile, of unknown compressions
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
MOST_PIXELS = 2**26
"""Of one encoded piece, a strip of images included; a larger one is a bomb."""


class DataNotFoundError(FileNotFoundError):
    """A data file, or a whole data set, is not where it was looked for."""


class DataFileError(ValueError):
    """A data file is there, but damaged, truncated or of another format."""


class LabelledImages(NamedTuple):
    """All images of one split, decoded, with their labels or other targets.

    Attributes:
        images: uint8 ``(N, C, H, W)``.
        labels: int64 ``(N,)``; other targets have the dtype and form that the loss expects.
        classes: name of each label; empty where the file has no names.

    Example:
        >>> images = np.zeros((2, 1, 8, 8), np.uint8)
        >>> data = LabelledImages(images, np.array([1, 0]), ("cat", "dog"))
        >>> data.classes[data.labels[0]]
        'dog'
    """

    images: UInt8Array
    labels: npt.NDArray[Any]
    classes: tuple[str, ...]


def read_packed(path: str | Path, channels: int = 3, square: int | None = None) -> LabelledImages:
    """Decode every image of a packed ``.npz`` file.

    Args:
        path: the file.
        channels: 1 for grey, 3 for RGB.
        square: scale the short side of each image to this many pixels and crop its centre; needed
            where the images differ in size. None does not scale them.

    Returns:
        Images, labels and class names, in the order of the file.

    Raises:
        DataNotFoundError: if there is no such file.
        DataFileError: if it cannot be read, lacks a key, or its parts do not fit together.

    Example:
        >>> from importlib.resources import files
        >>> test = read_packed(files("ssl_lightning.data.bundled") / "mnist-test.npz", channels=1)
        >>> test.images.shape, test.labels[:3].tolist(), test.classes[7]
        ((10000, 1, 28, 28), [9, 0, 2], '7')
    """
    path = _existing(Path(path))
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is one array, an .npy")
            blob, offsets, labels, classes = (archive[key] for key in KEYS)
    except READ_ERRORS as error:
        raise _damaged(path, f"a packed .npz with the keys {', '.join(KEYS)}", error) from error
    _check_index(path, blob, offsets, labels, classes)
    pieces = _pieces(blob, offsets)
    try:
        if len(offsets) - 1 == len(labels):
            images = stack_images((decode_image(p, channels, square) for p in pieces), len(labels))
        else:
            strips = (_split_strip(decode_image(piece, channels)) for piece in pieces)
            images = stack_images((image for strip in strips for image in strip), len(labels))
    except READ_ERRORS as error:
        wanted = f"{len(labels)} images of one size"
        raise _damaged(path, wanted, error) from error
    return LabelledImages(images, labels.astype(np.int64), tuple(str(name) for name in classes))


def open_image(encoded: bytes | Path, mode: str, most: int | None = None) -> Image.Image:
    """Decode one image file or its bytes in Pillow's mode ``"L"`` or ``"RGB"``.

    Args:
        encoded: path or content of the file.
        mode: of the result.
        most: pixels that it may have; None: as many as Pillow takes.

    Raises:
        ValueError: if it is too large, or needs more than 8 bits, which Pillow would cut off.
    """
    with Image.open(encoded if isinstance(encoded, Path) else io.BytesIO(encoded)) as opened:
        if most is not None and opened.width * opened.height > most:
            raise ValueError(
                f"an image of {opened.width} x {opened.height} pixels came, more than {most:,}"
            )
        if not opened.mode.startswith(("I", "F")):
            return opened.convert(mode)
        pixels = np.asarray(opened)
    if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 255:
        raise ValueError(
            f"an image of the mode {opened.mode} came, with values up to {pixels.max()} where 255 "
            "is the most; convert it to 8 bits"
        )
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def decode_image(encoded: bytes | Path, channels: int, square: int | None = None) -> UInt8Array:
    """Decode one image file or its bytes to uint8 ``(C, H, W)``; see :func:`read_packed`."""
    image = open_image(encoded, "L" if channels == 1 else "RGB", MOST_PIXELS)
    if square is not None and image.size != (square, square):
        image = _center_square(image, square)
    pixels = np.asarray(image).reshape(image.height, image.width, channels)
    return pixels.transpose(2, 0, 1)


def stack_images(images: Iterable[UInt8Array], number: int) -> UInt8Array:
    """Copy ``number`` equally large images into one array, holding no second copy of them.

    Raises:
        ValueError: if the sizes differ or there are more or fewer images.
    """
    stacked = np.empty((0, 0, 0, 0), np.uint8)
    count = 0
    for image in images:
        if count == 0:
            stacked = np.empty((number, *image.shape), np.uint8)
        if count == number or image.shape != stacked.shape[1:]:
            wanted = f"{number} images shaped {stacked.shape[1:]}"
            raise ValueError(f"image {count} has the shape {image.shape} where {wanted} are due")
        stacked[count] = image
        count += 1
    if count != number:
        raise ValueError(f"{count} images came")
    return stacked


def read_idx(path: str | Path) -> UInt8Array:
    """Read an array of bytes in MNIST's idx format, gzipped or not.

    Raises:
        DataNotFoundError: if there is no such file.
        DataFileError: if it is truncated, damaged, or not idx.

    Reference:
        LeCun, Cortes, Burges, The MNIST database of handwritten digits, "File formats".
    """
    path = _existing(Path(path))
    wanted = "an idx file of unsigned bytes"
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except READ_ERRORS as error:
        raise _damaged(path, wanted, error) from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise _damaged(path, wanted, f"it begins with {content[:4]!r}")
    header = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        found = f"{len(content):,} bytes came where its header announces {expected:,}"
        raise _damaged(path, wanted, found)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_idx_split(folder: str | Path, prefix: str) -> LabelledImages:
    """Read one split of an MNIST-like folder of idx files, gzipped (``.gz``) or not.

    Args:
        folder: e.g. ``<root>/MNIST/raw``.
        prefix: ``"train"`` or ``"t10k"``.

    Raises:
        DataNotFoundError: if a file is missing.
        DataFileError: if one is damaged, or images and labels differ in number.
    """
    images_path, labels_path = (
        _plain_or_gz(Path(folder) / f"{prefix}-{part}-ubyte")
        for part in ("images-idx3", "labels-idx1")
    )
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        found = f"shapes {images.shape} and {labels.shape}"
        raise _damaged(images_path, f"images (N, H, W) with labels (N,) in {labels_path}", found)
    return LabelledImages(images[:, None], labels.astype(np.int64), ())


def _existing(path: Path) -> Path:
    if path.is_file():
        return path
    raise DataNotFoundError(
        f"Cannot read `{path}`: no such file. Check the root folder (argument `root`, else the "
        "environment variable SSL_DATA_DIR, else ./data), or fetch the data again."
    )


def _plain_or_gz(path: Path) -> Path:
    zipped = path.with_name(path.name + ".gz")
    return zipped if zipped.is_file() and not path.is_file() else path


def _damaged(path: Path, wanted: str, found: Exception | str) -> DataFileError:
    came = f"{type(found).__name__}: {found}" if isinstance(found, Exception) else found
    came = " ".join(came.split())
    return DataFileError(
        f"Cannot read `{path}`: expected {wanted}, but {came}. The file is damaged, truncated or "
        "of another format; fetch or make it again, or point `root` to another copy."
    )


def _check_index(
    path: Path,
    blob: npt.NDArray[np.generic],
    offsets: npt.NDArray[np.generic],
    labels: npt.NDArray[np.generic],
    classes: npt.NDArray[np.generic],
) -> None:
    flat = {"blob": blob, "offsets": offsets, "labels": labels, "classes": classes}
    if wrong := [f"`{name}` {array.shape}" for name, array in flat.items() if array.ndim != 1]:
        raise _damaged(path, "one dimension in every array", f"{', '.join(wrong)} came")
    kinds = blob.dtype.kind + offsets.dtype.kind + labels.dtype.kind
    if blob.dtype != np.uint8 or kinds[1] not in "iu" or kinds[2] not in "iu":
        dtypes = f"{blob.dtype}, {offsets.dtype} and {labels.dtype} came"
        raise _damaged(path, "uint8 `blob`, integer `offsets` and `labels`", dtypes)
    numbers = offsets.astype(np.int64)
    if (
        len(numbers) < 2
        or numbers[0] != 0
        or numbers[-1] != len(blob)
        or np.any(np.diff(numbers) < 1)
    ):
        found = f"`offsets` do not ascend from 0 to the {len(blob)} bytes of `blob`"
        raise _damaged(path, "pieces that fill the blob", found)
    values = labels.astype(np.int64)
    if len(values) == 0 or values.min() < 0 or values.max() >= len(classes):
        found = f"{len(values)} labels came that do not all lie in 0..{len(classes) - 1}"
        raise _damaged(path, f"labels of {len(classes)} classes", found)
    names = [str(name) for name in classes]
    if all(name.isdecimal() for name in names) and names != sorted(names, key=int):
        raise _damaged(path, "numbered classes in ascending order", f"{names[:3]}... came")


def _pieces(blob: npt.NDArray[np.generic], offsets: npt.NDArray[np.generic]) -> Iterator[bytes]:
    bounds = offsets.tolist()
    return (blob[start:stop].tobytes() for start, stop in pairwise(bounds))


def _split_strip(strip: UInt8Array) -> UInt8Array:
    channels, height, width = strip.shape
    if height % width:
        raise ValueError(f"a strip of {height} x {width} pixels came, no square images")
    return strip.reshape(channels, height // width, width, width).transpose(1, 0, 2, 3)


def _center_square(image: Image.Image, square: int) -> Image.Image:
    scale = square / min(image.size)
    width, height = (max(square, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - square) // 2, (height - square) // 2
    return resized.crop((left, top, left + square, top + square))
