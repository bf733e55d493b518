"""Decoded images on disk: made once, checked at each opening, made again if damaged."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ssl_lightning.data.augment import UInt8Array
from ssl_lightning.files import replacing

VERSION = 1
BLOCK = 1 << 24  # bytes read at a time to check a file


def cache_key(files: Sequence[Path], size: int) -> str:
    """Name what is decoded: the files' names, sizes and times of change, and the image size.

    Raises:
        FileNotFoundError: if one is missing.
    """
    text = hashlib.sha256(json.dumps([VERSION, size]).encode())
    for file in files:
        status = file.stat()
        text.update(json.dumps([str(file), status.st_size, status.st_mtime_ns]).encode())
    return text.hexdigest()[:32]


def cached_images(
    files: Sequence[Path], size: int, decode: Callable[[Path], UInt8Array], folder: Path
) -> UInt8Array:
    """Return decoded files, from the cache if they are there and whole, else decoded now.

    The cache is one raw file of pixels, mapped into memory and not read at once, and beside it its
    checksum, written last. So a file of a killed process does not pass for whole.

    Args:
        files: what to decode, in this order.
        size: side of the decoded images in pixels.
        decode: makes ``(3, size, size)`` of one file.
        folder: of the cache, made if missing.

    Returns:
        uint8 ``(N, 3, size, size)``, which cannot be written to.
    """
    path = folder / f"{cache_key(files, size)}.raw"
    mark = path.with_suffix(".json")
    shape = (len(files), 3, size, size)
    if not is_whole(path, mark, int(np.prod(shape))):
        mark.unlink(missing_ok=True)
        write_pixels(path, mark, (decode(file) for file in files))
    return np.memmap(path, np.uint8, "r", shape=shape)


def write_pixels(path: Path, mark: Path, images: Iterable[UInt8Array]) -> None:
    """Write images one after the other, then the size and checksum of what was written."""
    checksum = number = 0
    with replacing(path) as temporary, temporary.open("wb") as file:
        for image in images:
            pixels = np.ascontiguousarray(image).tobytes()
            checksum = zlib.crc32(pixels, checksum)
            number += file.write(pixels)
    with replacing(mark) as temporary:
        temporary.write_text(json.dumps({"num_bytes": number, "crc32": checksum}))


def is_whole(path: Path, mark: Path, num_bytes: int) -> bool:
    """Whether a cache file holds the bytes that were written."""
    try:
        expected = json.loads(mark.read_text())
        if path.stat().st_size != num_bytes or expected["num_bytes"] != num_bytes:
            return False
        checksum = 0
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                checksum = zlib.crc32(block, checksum)
        return bool(checksum == expected["crc32"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
