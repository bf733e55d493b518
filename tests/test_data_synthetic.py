"""Made-up data: against the formula of the docstring, and whether networks learn from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssl_lightning.data import SyntheticDataModule

SMALL = {"image_size": 12, "num_validation": 8, "batch_size": 8, "num_train": 40, "num_test": 16}
TASKS = ["multiclass", "multilabel", "regression", "segmentation"]


def weights_of(target: np.ndarray, task: str, k: int, y: int, x: int) -> float:
    if task == "multiclass":
        return float(target == k)
    if task == "segmentation":
        return float(k > 0 and target[y, x] == k)
    return float(target[k])


@pytest.mark.parametrize("task", TASKS)
def test_images_follow_the_formula_of_the_docstring(task: str) -> None:
    data = SyntheticDataModule(task=task, num_classes=3, channels=2, noise=0, **SMALL)
    images, targets, _ = data.read(train=False)
    assert images.shape == (16, 2, 12, 12)
    amplitude = 64 / (3 if task in ("multilabel", "regression") else 1)
    for n, y, x in [(0, 0, 0), (0, 3, 7), (5, 11, 2), (15, 6, 6), (9, 5, 4)]:
        total = 128.0
        for k in range(3):
            angle = math.pi * k / 3
            pattern = math.cos(math.pi / 2 * (x * math.cos(angle) + y * math.sin(angle)))
            total += amplitude * weights_of(targets[n], task, k, y, x) * pattern
        assert images[n, :, y, x].tolist() == [pytest.approx(total, abs=0.5 + 1e-5)] * 2


@pytest.mark.parametrize("task", TASKS)
def test_targets_have_the_announced_form(task: str) -> None:
    data = SyntheticDataModule(task=task, num_classes=3, image_size=12, num_train=640)
    _, targets, _ = data.read(train=True)
    form = {"multiclass": (640,), "segmentation": (640, 12, 12)}.get(task, (640, 3))
    assert targets.shape == form
    assert targets.dtype == (np.int64 if task in ("multiclass", "segmentation") else np.float32)
    values = set(np.unique(targets).tolist())
    if task == "regression":
        assert -1 <= targets.min() < -0.95
        assert 0.95 < targets.max() < 1
        assert np.abs(targets.mean(0)).max() < 0.1
    else:
        assert values == ({0.0, 1.0} if task == "multilabel" else {0, 1, 2})
    if task == "segmentation":
        for target in targets:
            rows, columns = (target > 0).any(1), (target > 0).any(0)
            assert 3 <= rows.sum() <= 9  # a quarter to three quarters
            assert 3 <= columns.sum() <= 9
            assert len(np.unique(target[np.ix_(rows, columns)])) == 1  # a filled rectangle


def test_noise_is_bounded_and_differs_by_pixel_and_channel() -> None:
    clean, noisy = (
        SyntheticDataModule(noise=noise, channels=2, **SMALL).read(True).images.astype(int)
        for noise in (0, 20)
    )
    change = noisy - clean
    assert 19 <= change.max() <= 21
    assert -21 <= change.min() <= -19
    assert abs(np.corrcoef(change[:, 0].ravel(), change[:, 1].ravel())[0, 1]) < 0.05


def test_data_are_a_function_of_the_seed() -> None:
    first, again, other = (SyntheticDataModule(seed=s, **SMALL).read(True) for s in (0, 0, 1))
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)
    data = SyntheticDataModule(**SMALL)
    assert not np.array_equal(data.read(True).images[:16], data.read(False).images)


def dice(logits: torch.Tensor, targets: torch.Tensor) -> float:
    found, wanted = logits.argmax(1) > 0, targets > 0
    right = (logits.argmax(1) == targets) & wanted
    return float(2 * right.sum() / (found.sum() + wanted.sum()))


def r_squared(found: torch.Tensor, targets: torch.Tensor) -> float:
    return float(1 - (found - targets).square().sum() / (targets - targets.mean()).square().sum())


def accuracy(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return float((logits.argmax(1) == targets).float().mean())


def label_accuracy(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return float(((logits > 0) == (targets > 0)).float().mean())


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 4))


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 4, 5, padding=2))


LEARNT = {  # task: network, loss, metric, what an untrained one is under and a trained one over
    "multiclass": (linear, F.cross_entropy, accuracy, 0.5, 0.95),
    "multilabel": (linear, F.binary_cross_entropy_with_logits, label_accuracy, 0.7, 0.9),
    "regression": (linear, F.mse_loss, r_squared, 0.2, 0.7),
    "segmentation": (convolutions, F.cross_entropy, dice, 0.3, 0.7),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_small_network_learns_each_task(task: str) -> None:
    make, loss, metric, untrained, trained = LEARNT[task]
    torch.manual_seed(0)
    net, data = make(), SyntheticDataModule(task=task, image_size=16)
    images, targets = (torch.cat(part) for part in zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        assert metric(net(images), targets) < untrained
    optimizer = torch.optim.Adam(net.parameters(), 0.002)
    loader = data.train_dataloader()
    for epoch in range(10):
        loader.sampler.set_epoch(epoch)
        for batch, wanted in loader:
            optimizer.zero_grad()
            loss(net(batch), wanted).backward()
            optimizer.step()
    with torch.no_grad():
        assert metric(net(images), targets) > trained


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown task .* 'segment'\. Did you mean segmentation"):
        SyntheticDataModule(task="segment")
    with pytest.raises(ValueError, match=r"`noise` to be 0 \.\. 63, got 64"):
        SyntheticDataModule(noise=64)
    with pytest.raises(ValueError, match=r"at least 129, as 128 of them are held out .*, got 128"):
        SyntheticDataModule(num_train=128)
    data = SyntheticDataModule(task="segmentation", augment=True)
    with pytest.raises(ValueError, match=r"expected `augment: false` with targets of the shape"):
        data.setup("fit")
