"""Make the MNIST sample that the package ships: `python tools/bundle_mnist.py ../shared/data`.

Reads the four idx files under `<folder>/MNIST/raw`, writes the whole test split and 12,000 training
images whose class counts are proportional to those of the full training set (largest remainder,
fixed seed), and writes `mnist-train.npz` and `mnist-test.npz` in the packed layout that
`ssl_lightning.data.packed` reads: 500 images to a lossless WebP strip. Running it twice with the
same numpy and Pillow writes the same bytes.
"""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TARGET = Path(__file__).resolve().parent.parent / "src" / "ssl_lightning" / "data" / "bundled"
NUM_TRAIN = 12_000
SEED = 0
IMAGES_PER_STRIP = 500


def read_split(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `(N, 28, 28)` and labels `(N,)` of one split, as uint8."""
    images = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return pixels, np.frombuffer(labels, np.uint8, offset=8)


def class_quotas(labels: np.ndarray, total: int) -> np.ndarray:
    """Images of each class to select: proportional shares, rounded by largest remainder."""
    shares = np.bincount(labels, minlength=10) * total / len(labels)
    quotas = np.floor(shares).astype(int)
    largest = np.argsort(quotas - shares, kind="stable")[: total - quotas.sum()]
    quotas[largest] += 1
    return quotas


def balanced_subset(labels: np.ndarray, total: int, seed: int) -> np.ndarray:
    """Ascending indices of `total` images, drawn without replacement within each class."""
    rng = np.random.default_rng(seed)
    quotas = class_quotas(labels, total)
    drawn = [
        rng.permutation(np.flatnonzero(labels == digit))[:quota]
        for digit, quota in enumerate(quotas)
    ]
    return np.sort(np.concatenate(drawn))


def encode_strip(images: np.ndarray) -> bytes:
    """Stack images `(n, 28, 28)` into one strip and encode it losslessly."""
    buffer = io.BytesIO()
    strip = Image.fromarray(images.reshape(-1, images.shape[2])).convert("RGB")
    strip.save(buffer, "WEBP", lossless=True, quality=100, method=4, exact=True)
    return buffer.getvalue()


def write_packed(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write one split as a packed file and report its size."""
    starts = range(0, len(images), IMAGES_PER_STRIP)
    strips = [encode_strip(images[start : start + IMAGES_PER_STRIP]) for start in starts]
    np.savez(
        path,
        blob=np.frombuffer(b"".join(strips), np.uint8),
        offsets=np.cumsum([0, *map(len, strips)]).astype(np.int64),
        labels=labels.astype(np.uint8),
        classes=np.array([str(digit) for digit in range(10)]),
    )
    print(f"{path.name}: {len(images):,} images, {path.stat().st_size:,} bytes")


def main(source: Path) -> None:
    """Write both splits into the package."""
    raw = source / "MNIST" / "raw"
    images, labels = read_split(raw, "train")
    selected = balanced_subset(labels, NUM_TRAIN, SEED)
    write_packed(TARGET / "mnist-train.npz", images[selected], labels[selected])
    write_packed(TARGET / "mnist-test.npz", *read_split(raw, "t10k"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/bundle_mnist.py FOLDER  (it holds MNIST/raw/*.gz)")
    main(Path(sys.argv[1]))
