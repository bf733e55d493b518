"""Augmentation against per-sample loops, and the statistics of the hash behind it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ssl_lightning.data.augment import (
    COLUMN,
    FLIP,
    LEFT,
    ORDER,
    ROW,
    TOP,
    CropFlip,
    Cutout,
    RandomResizedCrop,
    Resize,
    crop_and_flip,
    hash_uint64,
    permutation,
    uniform,
)

MASK = 2**64 - 1


def splitmix(state: int) -> int:
    """Finaliser of splitmix64 on Python's own integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def reference_hash(seed: int, epoch: int, index: int, stream: int) -> int:
    state = 0
    for value in (seed, stream, epoch, index):
        state = splitmix((state + 0x9E3779B97F4A7C15 * (value + 1)) & MASK)
    return state


def test_splitmix_matches_the_published_sequence() -> None:
    # first outputs of splitmix64 seeded with 1234567, as listed by its reference implementations
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    golden = 0x9E3779B97F4A7C15
    assert [splitmix((1234567 + golden * i) & MASK) for i in (1, 2, 3)] == published


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**63 + 5])
def test_hash_matches_python_integers(seed: int) -> None:
    index = np.array([0, 1, 49_999, 1_281_166])
    for epoch in (0, 1, 300):
        expected = [reference_hash(seed, epoch, int(i), TOP) for i in index]
        assert hash_uint64(seed, epoch, index, TOP).tolist() == expected


def test_hash_takes_one_epoch_per_index() -> None:
    epochs, index = np.array([0, 5, 2]), np.array([7, 7, 1])
    expected = [reference_hash(3, int(e), int(i), LEFT) for e, i in zip(epochs, index, strict=True)]
    assert hash_uint64(3, epochs, index, LEFT).tolist() == expected


def chi_square(values: np.ndarray, bins: int) -> float:
    """Chi-square statistic per degree of freedom against the uniform distribution."""
    counts = np.bincount(values, minlength=bins)
    expected = len(values) / bins
    return float(((counts - expected) ** 2 / expected).sum() / (bins - 1))


@pytest.mark.parametrize("stream", [TOP, LEFT, FLIP, ORDER, ROW, COLUMN])
@pytest.mark.parametrize("bins", [2, 9, 64])
def test_numbers_are_uniform_over_samples_and_over_epochs(stream: int, bins: int) -> None:
    over_samples = uniform(0, 0, np.arange(90_000), stream)
    over_epochs = uniform(0, np.arange(90_000), np.zeros(90_000, int), stream)
    for draws in (over_samples, over_epochs):
        assert draws.min() >= 0
        assert draws.max() < 1
        limit = 1 + 5 * np.sqrt(2 / (bins - 1))
        assert chi_square((draws * bins).astype(int), bins) < limit


def test_streams_epochs_seeds_and_neighbours_are_uncorrelated() -> None:
    index = np.arange(20_000)
    draws = [
        uniform(0, 0, index, TOP),
        uniform(0, 0, index, LEFT),
        uniform(0, 1, index, TOP),
        uniform(1, 0, index, TOP),
        uniform(0, 0, index + 1, TOP),
    ]
    correlation = np.corrcoef(draws) - np.eye(5)
    assert np.abs(correlation).max() < 0.03


def test_permutation() -> None:
    order = permutation(0, 0, 10_000)
    assert sorted(order) == list(range(10_000))
    assert (order == permutation(0, 0, 10_000)).all()
    for other in (permutation(0, 1, 10_000), permutation(1, 0, 10_000), np.arange(10_000)):
        assert (order == other).mean() < 0.01


def loop_crop_flip(images, top, left, flip, pad):
    result = np.zeros_like(images)
    for b, c, y, x in np.ndindex(images.shape):
        width = images.shape[3]
        column = width - 1 - x if flip[b] else x
        row, column = y + top[b] - pad, column + left[b] - pad
        if 0 <= row < images.shape[2] and 0 <= column < width:
            result[b, c, y, x] = images[b, c, row, column]
    return result


@pytest.mark.parametrize(
    ("channels", "size", "pad"), [(1, (6, 5), 2), (3, (4, 7), 4), (2, (3, 3), 0)]
)
def test_crop_and_flip_matches_a_loop(channels: int, size: tuple[int, int], pad: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (30, channels, *size), np.uint8)
    before = images.copy()
    top, left = rng.integers(0, 2 * pad + 1, (2, 30))
    flip = rng.random(30) < 0.5
    result = crop_and_flip(images, top, left, flip, pad)
    np.testing.assert_array_equal(result, loop_crop_flip(images, top, left, flip, pad))
    np.testing.assert_array_equal(images, before)


def test_crop_flip_draws_what_the_hash_says() -> None:
    images = np.random.default_rng(0).integers(1, 256, (40, 1, 8, 8), np.uint8)
    index, epoch = np.arange(100, 140), np.full(40, 3)
    draws = {
        s: np.array([reference_hash(9, 3, int(i), s) / 2**64 for i in index])
        for s in (TOP, LEFT, FLIP)
    }
    expected = loop_crop_flip(
        images, (draws[TOP] * 9).astype(int), (draws[LEFT] * 9).astype(int), draws[FLIP] < 0.5, 4
    )
    np.testing.assert_array_equal(CropFlip(4, True, seed=9)(images, epoch, index), expected)


def test_crop_flip_offsets_and_flips_are_evenly_spread() -> None:
    number = 20_000
    images = np.zeros((number, 1, 9, 9), np.uint8)
    images[:, 0, 4, 4] = 1  # where this pixel ends up tells the offset
    moved = CropFlip(4, True)(images, np.zeros(number, int), np.arange(number))
    _, _, row, column = np.nonzero(moved)
    assert chi_square(row * 9 + column, 81) < 1.8
    images[:, 0, 4, 5] = 2
    moved = CropFlip(0, True)(images, np.ones(number, int), np.arange(number))
    assert abs((moved[:, 0, 4, 3] == 2).mean() - 0.5) < 0.02


def loop_cutout(images, middle_row, middle_column, side, colour):
    result = images.copy()
    for b, c, y, x in np.ndindex(images.shape):
        rows = range(middle_row[b] - side // 2, middle_row[b] - side // 2 + side)
        columns = range(middle_column[b] - side // 2, middle_column[b] - side // 2 + side)
        if y in rows and x in columns:
            result[b, c, y, x] = colour[c]
    return result


@pytest.mark.parametrize("side", [1, 2, 3, 6, 40])
def test_cutout_matches_a_loop(side: int) -> None:
    images = np.random.default_rng(0).integers(1, 256, (40, 3, 6, 8), np.uint8)
    before, index, epoch = images.copy(), np.arange(100, 140), np.full(40, 3)
    row, column = (
        [int(reference_hash(9, 3, int(i), stream) / 2**64 * length) for i in index]
        for stream, length in ((ROW, 6), (COLUMN, 8))
    )
    moved = CropFlip(2, True, seed=9)
    result = Cutout(moved, side, (7, 0, 200), seed=9)(images, epoch, index)
    expected = loop_cutout(moved(images, epoch, index), row, column, side, (7, 0, 200))
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(images, before)
    assert result.dtype == np.uint8


def test_cutout_is_anywhere_with_equal_chance() -> None:
    number = 20_000
    images = np.zeros((number, 1, 9, 9), np.uint8)
    marked = Cutout(Resize(9), 1, (1,))(images, np.zeros(number, int), np.arange(number))
    _, _, row, column = np.nonzero(marked)
    assert len(row) == number
    assert chi_square(row * 9 + column, 81) < 1.8


@pytest.mark.parametrize(
    "transform",
    [
        CropFlip(2, True, 1),
        RandomResizedCrop(6, 1),
        Resize(6),
        Cutout(CropFlip(2, True, 1), 3, (1, 2, 3), 1),
    ],
)
def test_result_does_not_depend_on_the_batch(transform) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), np.uint8)
    epoch, index = np.arange(12) % 3, np.arange(12) * 5
    whole = transform(images, epoch, index)
    order = np.random.default_rng(1).permutation(12)
    np.testing.assert_array_equal(
        transform(images[order], epoch[order], index[order]), whole[order]
    )
    for i in range(12):
        one = slice(i, i + 1)
        np.testing.assert_array_equal(transform(images[one], epoch[one], index[one]), whole[one])


def test_random_resized_crop_matches_a_loop() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 24, 24), np.uint8)
    epoch, index = np.zeros(20, int), np.arange(20)
    transform = RandomResizedCrop(12, seed=4)
    boxes = zip(*transform.boxes(24, 24, epoch, index), strict=True)
    result = transform(images, epoch, index)
    for i, (top, left, rows, columns) in enumerate(boxes):
        crop = torch.tensor(images[i, :, top : top + rows, left : left + columns][None])
        expected = F.interpolate(crop.double(), (12, 12), mode="bilinear", antialias=True)[0]
        if reference_hash(4, 0, i, FLIP) / 2**64 < 0.5:
            expected = expected.flip(-1)
        assert (torch.tensor(result[i]).double() - expected).abs().max() <= 1


def test_random_resized_crop_boxes_lie_inside_and_cover_the_range() -> None:
    index = np.arange(20_000)
    top, left, rows, columns = RandomResizedCrop(8).boxes(160, 160, np.zeros_like(index), index)
    for start, length in ((top, rows), (left, columns)):
        assert start.min() == 0
        assert length.min() >= 1
        assert (start + length).max() == 160
    share = rows * columns / 160**2
    assert 0.33 < share.min() < 0.37
    assert share.max() > 0.97
    assert 0.74 < (columns / rows).min() < 0.77
    assert 1.30 < (columns / rows).max() < 1.35
