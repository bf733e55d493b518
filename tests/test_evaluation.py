"""Calibration, corruptions and transfer against formulas in numpy, written apart from the code."""

from __future__ import annotations

import json
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn

from ssl_lightning import create_backbone, zoo
from ssl_lightning.evaluation import (
    CORRUPTIONS,
    Calibrated,
    CalibrationRecord,
    CorruptionRecord,
    Estimate,
    FineTuning,
    Labelled,
    Made,
    Predictions,
    Stored,
    TransferRecord,
    against_dense,
    calibration_error,
    calibration_row,
    corrupted,
    features,
    fine_tuned,
    last_linear,
    linear_probe,
    logistic_regression,
    predict,
    temperature,
    wrong_on,
)
from ssl_lightning.evaluation import corruption as corruption_module
from ssl_lightning.evaluation.calibration import reliability, scaled
from ssl_lightning.evaluation.corruption import summed
from ssl_lightning.evaluation.corruption_record import Corrupted, CorruptionRow
from ssl_lightning.evaluation.estimates import (
    digits,
    mean_estimate,
    threshold,
    wrong_difference,
    wrong_estimate,
)
from ssl_lightning.evaluation.transfer import fitted_images
from ssl_lightning.evaluation.transfer_record import TransferRow


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def drawn(number: int = 400, classes: int = 5, seed: int = 0, sharpness: float = 3.0):
    """Outputs that are right about as often as chance allows, too sure of themselves."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(number, classes))
    chance = softmax(logits)
    labels = np.array([rng.choice(classes, p=p) for p in chance])
    return Predictions(torch.tensor(sharpness * logits).float(), torch.tensor(labels))


def in_numpy(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    return predictions.logits.double().numpy(), predictions.labels.numpy()


# ---------------------------------------------------------------------------- calibration


def test_the_calibration_error_of_six_images_by_hand():
    """Confidences 0.6, 0.6, 0.9, 0.9, 0.9, 0.55 of two classes; five bins of a fifth each.

    The bin (0.4, 0.6] holds 0.55 (right), and 0.6 twice (one right); (0.8, 1] the three of 0.9, of
    which one is wrong: 3/6 |2/3 - 1.75/3| + 3/6 |2/3 - 0.9|.
    """
    confidences = np.array([0.5999, 0.5999, 0.9, 0.9, 0.9, 0.55])
    right = np.array([True, False, True, True, False, True])
    logits = np.stack([np.log(confidences), np.log(1 - confidences)], 1)
    predictions = Predictions(torch.tensor(logits), torch.tensor(np.where(right, 0, 1)))
    by_hand = 100 * (0.5 * abs(2 / 3 - (0.55 + 2 * 0.5999) / 3) + 0.5 * abs(2 / 3 - 0.9))
    assert calibration_error(predictions, 5) == pytest.approx(by_hand, abs=1e-4)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_calibration_error_is_that_of_a_loop_over_bins(bins):
    predictions = drawn()
    logits, labels = in_numpy(predictions)
    chance = softmax(logits)
    confidence, right = chance.max(1), chance.argmax(1) == labels
    total = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(predictions, bins) == pytest.approx(100 * total, abs=1e-4)
    found = reliability(predictions, bins)
    assert sum(one.images for one in found) == len(labels)
    again = sum(one.images * abs(one.accuracy - one.confidence) for one in found) / len(labels)
    assert 100 * again == pytest.approx(100 * total, abs=1e-4)


def test_the_temperature_is_the_best_of_a_fine_grid():
    predictions = drawn(sharpness=3.0)
    logits, labels = in_numpy(predictions)

    def loss(t: float) -> float:
        return float(-np.log(softmax(logits / t)[np.arange(len(labels)), labels]).mean())

    found = temperature(predictions)
    grid = np.exp(np.linspace(-2, 3, 2001))
    best = min(grid, key=loss)
    assert found == pytest.approx(best, rel=0.005)
    assert 2.2 < found < 4.0, "the outputs were three times too large"
    assert float(predictions.losses().mean()) == pytest.approx(loss(1.0))
    assert float(predictions.divided(found).losses().mean()) <= loss(best) + 1e-9


def test_a_network_that_is_always_right_has_a_finite_temperature():
    found = temperature(Predictions(torch.eye(3), torch.arange(3)))
    assert np.exp(-5) * 0.99 < found < 0.1


def test_no_image_is_scaled_by_a_temperature_that_was_fitted_on_it():
    predictions = drawn(60)
    value, after = scaled(predictions, None)
    assert value == temperature(predictions)
    for half in (0, 1):
        other = Predictions(*(part[1 - half :: 2] for part in predictions))
        ratio = predictions.logits[half::2] / after.logits[half::2]
        torch.testing.assert_close(ratio, torch.full_like(ratio, temperature(other)))
    other = drawn(50, seed=1)
    value, after = scaled(predictions, other)
    assert value == temperature(other)
    torch.testing.assert_close(after.logits * value, predictions.logits)


def test_differences_to_the_dense_network_are_paired():
    dense, sparse = drawn(seed=0), drawn(seed=0)
    noise = torch.randn(sparse.logits.shape, generator=torch.Generator().manual_seed(1))
    sparse = Predictions(sparse.logits + 2 * noise, sparse.labels)
    names = list("abcde")
    found = against_dense(Calibrated.of(sparse), Calibrated.of(dense), names)
    (a, labels), (b, _) = in_numpy(sparse), in_numpy(dense)
    more = (a.argmax(1) != labels).astype(float) - (b.argmax(1) != labels)
    n = len(labels)
    assert found.error.value == pytest.approx(100 * more.mean())
    assert found.error.se == pytest.approx(100 * more.std(ddof=1) / np.sqrt(n))
    assert found.disagreement.value == pytest.approx(100 * (a.argmax(1) != b.argmax(1)).mean())
    for label, name in enumerate(names):
        here = more[labels == label]
        assert found.classes[name].value == pytest.approx(100 * here.mean())
        assert found.classes[name].se == pytest.approx(100 * here.std(ddof=1) / len(here) ** 0.5)
    rows = np.arange(n)
    nll = -np.log(softmax(a)[rows, labels]) + np.log(softmax(b)[rows, labels])
    assert found.nll.value == pytest.approx(nll.mean())
    assert found.nll.se == pytest.approx(nll.std(ddof=1) / np.sqrt(n))
    assert found.ece.value == pytest.approx(calibration_error(sparse) - calibration_error(dense))
    assert 0 < found.ece.se < 10


def test_a_network_does_not_differ_from_itself():
    same = Calibrated.of(drawn())
    found = against_dense(same, same, list("abcde"))
    assert found.error == found.nll == found.ece == found.disagreement == Estimate(0.0, 0.0)


def test_the_standard_error_of_a_calibration_error_is_that_of_new_images():
    """Sets of images drawn anew vary as much as the resamples of one say, within a half."""
    errors = [calibration_error(drawn(400, seed=seed)) for seed in range(30)]
    said = float(Calibrated.of(drawn(400, seed=99)).resampled.std())
    assert 0.5 < said / np.std(errors, ddof=1) < 1.7


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="expected predictions of the same images"):
        against_dense(Calibrated.of(drawn()), Calibrated.of(drawn(seed=1)), list("abcde"))
    with pytest.raises(ValueError, match="expected images, got none"):
        predict(nn.Identity(), [])


def test_estimates_are_means_and_their_standard_errors():
    wrong = np.random.default_rng(0).integers(0, 6, 50)
    found = wrong_estimate(digits(wrong.tolist()), 5)
    assert found.value == pytest.approx(20 * wrong.mean())
    assert found.se == pytest.approx(20 * wrong.std(ddof=1) / np.sqrt(50))
    with pytest.raises(ValueError, match="counts from 0 to 9"):
        digits([10])
    with pytest.raises(ValueError, match="expected values, got none"):
        mean_estimate([])
    with pytest.raises(ValueError, match="expected the same images, got 2 and 1"):
        wrong_difference("10", "1", 1)
    assert NormalDist().cdf(threshold(20)) == pytest.approx(1 - 0.05 / 40)


def test_the_record_of_calibration_is_stored_whole(tmp_path):
    dense, sparse = (Calibrated.of(drawn(seed=0, sharpness=s)) for s in (3.0, 1.0))
    rows = (
        calibration_row("dense", {"MACs": 10, "parameters": 5}, dense, list("abcde")),
        calibration_row("thin", {"MACs": 4, "parameters": 2}, sparse, list("abcde"), dense),
    )
    record = CalibrationRecord("t", "X", "test", 400, {"a": 400}, 15, "others", "dense", rows)
    record.save(tmp_path / "a.json")
    assert CalibrationRecord.load(tmp_path / "a.json") == record
    assert list(record.compared()) == ["thin"]
    data = json.loads((tmp_path / "a.json").read_text())
    with pytest.raises(ValueError, match="expected 1, got 7"):
        CalibrationRecord.from_dict({**data, "schema": 7})
    with pytest.raises(ValueError, match="at least one network"):
        CalibrationRecord.from_dict({**data, "rows": []})


# ---------------------------------------------------------------------------- corruptions

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32)).astype(np.uint8)
SMOOTH = np.broadcast_to(np.arange(32, dtype=np.uint8) * 6 + 30, (3, 3, 32, 32)).copy()
imagecorruptions = pytest.importorskip(
    "imagecorruptions", reason="the extra `robustness` is absent"
)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_a_function_of_seed_and_image(name):
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the library draws from this one
    found = corrupted(SMOOTH, name, 3, seed=1)
    after = np.random.get_state()[1]  # noqa: NPY002
    assert (after == before).all(), "the generator was left alone"
    assert found.shape == SMOOTH.shape
    assert found.dtype == np.uint8
    assert (found != SMOOTH).any()
    assert (corrupted(SMOOTH, name, 3, seed=1) == found).all()
    assert (corrupted(SMOOTH[:2], name, 3, seed=1) == found[:2]).all(), "whatever follows"
    fixed = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    differs = (corrupted(SMOOTH, name, 3, seed=2) != found).any()
    assert differs == (name not in fixed)
    assert (found[0] != found[1]).any() == (name not in fixed), "each image is drawn for"


@pytest.mark.parametrize("name", ["gaussian_noise", "defocus_blur", "brightness", "contrast"])
def test_higher_severities_change_more(name):
    far = [np.abs(corrupted(IMAGES, name, s).astype(int) - IMAGES).mean() for s in range(1, 6)]
    assert far == sorted(far)


def test_contrast_and_noise_are_those_of_the_paper():
    """Its constants, written again: contrast 0.2 and Gaussian noise of 0.18 at severity 3."""
    pixels = SMOOTH.astype(np.float64) / 255
    means = pixels.mean((2, 3), keepdims=True)
    wanted = (255 * np.clip((pixels - means) * 0.2 + means, 0, 1)).astype(np.uint8)
    assert np.abs(corrupted(SMOOTH, "contrast", 3).astype(int) - wanted).max() <= 1
    grey = np.full((30, 3, 32, 32), 128, np.uint8)
    noise = corrupted(grey, "gaussian_noise", 3).astype(float) - 128
    assert noise.std() == pytest.approx(255 * 0.18, rel=0.03)  # hardly any is clipped
    assert abs(noise.mean() + 0.5) < 1


@pytest.mark.parametrize(
    ("images", "name", "severity", "message"),
    [
        (np.zeros((1, 1, 28, 28), np.uint8), "fog", 1, "RGB images of at least 32 x 32 pixels"),
        (np.zeros((1, 3, 16, 64), np.uint8), "fog", 1, "got 3 x 16 x 64"),
        (IMAGES, "fogg", 1, "Did you mean fog"),
        (IMAGES, "fog", 0, "a severity of 1 to 5, got 0"),
    ],
)
def test_what_cannot_be_corrupted_is_said(images, name, severity, message):
    with pytest.raises(ValueError, match=message):
        corrupted(images, name, severity)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(corruption_module, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match=r"ssl-lightning\[robustness\]"):
        Made(IMAGES, torch.zeros(3, dtype=torch.int64))


def test_a_library_that_cannot_be_imported_is_said(monkeypatch):
    def fails(name):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(corruption_module, "import_module", fails)
    with pytest.raises(ValueError, match=r"cannot import imagecorruptions: libGL\.so\.1") as e:
        corrupted(IMAGES, "fog", 1)
    assert "opencv-python-headless" in str(e.value)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder as that of CIFAR-10-C, but with two images of each severity."""
    monkeypatch.setattr(corruption_module, "IN_FILE", 2)
    rng = np.random.default_rng(0)
    for name in CORRUPTIONS:
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 256, (10, 32, 32, 3)).astype(np.uint8))
    np.save(tmp_path / "labels.npy", np.tile([3, 7], 5).astype(np.uint8))
    return tmp_path


def test_the_files_of_cifar10c_are_read_by_severity(files):
    source = Stored(files)
    stored = np.load(files / "fog.npy")
    for severity in range(1, 6):
        images, labels = source("fog", severity)
        assert labels.tolist() == [3, 7]
        for i in (0, 1):
            wanted = stored[2 * (severity - 1) + i]
            assert (images[i].transpose(1, 2, 0) == wanted).all()
    assert len(Stored(files, 1)("fog", 5)[1]) == 1
    assert (Stored(files, 1)("fog", 5)[0][0] == stored[8].transpose(2, 0, 1)).all()
    assert source.seed is None


def test_files_that_are_not_those_of_cifar10c_are_named(files):
    (files / "fog.npy").unlink()
    (files / "snow.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: snow\.npy, fog\.npy"):
        Stored(files)
    np.save(files / "snow.npy", np.zeros((4, 32, 32, 3), np.uint8))
    (files / "fog.npy").write_bytes(b"not an array")
    source = Stored(files)
    with pytest.raises(ValueError, match=r"expected uint8 of the shape \(10, 32, 32, 3\)"):
        source("snow", 1)
    with pytest.raises(ValueError, match=r"fog\.npy is damaged"):
        source("fog", 1)


def test_images_are_normalised_before_the_network_sees_them():
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.mean((2, 3))

    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    labels = torch.tensor([0, 1, 2])
    wrong = wrong_on(Watch(), IMAGES, labels, mean, std, batch_size=2)
    wanted = (IMAGES / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert [len(x) for x in seen] == [2, 1]
    torch.testing.assert_close(torch.cat(seen), torch.tensor(wanted).float())
    answers = wanted.mean((2, 3)).argmax(1)
    assert wrong.tolist() == (answers != labels.numpy()).tolist()


def corruption_record(rng: np.random.Generator, number: int = 40) -> tuple[CorruptionRecord, dict]:
    wrong = {
        name: rng.random((len(CORRUPTIONS), 5, number)) < level
        for name, level in {"dense": 0.4, "thin": 0.5}.items()
    }
    rows = tuple(
        CorruptionRow(
            name,
            1,
            1,
            Estimate(clean, 1.0),
            {
                c: summed(list(torch.tensor(w)))
                for c, w in zip(CORRUPTIONS, wrong[name], strict=True)
            },
        )
        for name, clean in {"dense": 8.0, "thin": 10.0}.items()
    )
    made = CorruptionRecord("t", "X", "test", number, (3, 32, 32), "here", 0, "dense", rows)
    return made, wrong


def test_the_mean_corruption_error_is_the_formula_of_the_paper():
    record, wrong = corruption_record(np.random.default_rng(0))
    dense, thin = record.rows
    errors = {name: 100 * w.mean(2) for name, w in wrong.items()}  # (C, S)
    wanted = 100 * np.mean(errors["thin"].sum(1) / errors["dense"].sum(1))
    assert record.corruption_error(thin) == pytest.approx(wanted)
    assert record.corruption_error(dense) == pytest.approx(100)
    relative = (errors["thin"] - 10).sum(1) / (errors["dense"] - 8).sum(1)
    assert record.corruption_error(thin, relative=True) == pytest.approx(100 * np.mean(relative))
    assert thin.corruptions["fog"].errors == pytest.approx(
        errors["thin"][CORRUPTIONS.index("fog")].tolist()
    )


def test_standard_errors_of_corruptions_treat_images_as_the_unit():
    record, wrong = corruption_record(np.random.default_rng(1))
    dense, thin = record.rows
    of_image = {name: 100 * w.mean((0, 1)) for name, w in wrong.items()}
    n = len(of_image["thin"])
    found = record.mean_error(thin)
    assert found.value == pytest.approx(of_image["thin"].mean())
    assert found.se == pytest.approx(of_image["thin"].std(ddof=1) / np.sqrt(n))
    difference = of_image["thin"] - of_image["dense"]
    assert record.loss(thin).value == pytest.approx(difference.mean())
    assert record.loss(thin).se == pytest.approx(difference.std(ddof=1) / np.sqrt(n))
    fog = 100 * (wrong["thin"][9].mean(0) - wrong["dense"][9].mean(0))
    assert CORRUPTIONS[9] == "fog"
    assert record.loss(thin, "fog").value == pytest.approx(fog.mean())
    assert record.loss(thin, "fog").se == pytest.approx(fog.std(ddof=1) / np.sqrt(n))
    assert record.loss(dense) is None


def test_without_a_dense_network_nothing_is_relative():
    row = CorruptionRow("net", 1, 1, Estimate(0.0, 0.0), {"fog": Corrupted((0.0,) * 5, "00")})
    alone = CorruptionRecord("t", "X", "test", 2, (3, 32, 32), "here", 0, None, (row,))
    assert alone.corruption_error(row) is None
    assert alone.loss(row) is None
    perfect = CorruptionRecord("t", "X", "test", 2, (3, 32, 32), "here", 0, "net", (row,))
    assert perfect.corruption_error(row) is None, "nothing to divide by"


# ---------------------------------------------------------------------------- transfer


def clusters(number: int = 90, seed: int = 0) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, number)
    x = rng.normal(size=(number, 6)) + 1.5 * np.eye(3, 6)[labels]
    return Labelled(torch.tensor(x).float(), torch.tensor(labels))


@pytest.mark.parametrize("decay", [0.01, 0.1, 1.0])
def test_the_gradient_of_logistic_regression_vanishes(decay):
    """The objective is convex, so this is enough."""
    data = clusters()
    found = logistic_regression(data, 3, decay)
    x, y = data.inputs.double().numpy(), data.labels.numpy()
    w, b = found.weight.double().numpy(), found.bias.double().numpy()
    rest = softmax(x @ w.T + b) - np.eye(3)[y]
    assert np.abs(rest.T @ x / len(x) + decay * w).max() < 2e-5
    assert np.abs(rest.mean(0)).max() < 2e-5
    assert found.wrong(data).tolist() == ((x @ w.T + b).argmax(1) != y).tolist()


def test_where_the_search_begins_does_not_matter():
    data = clusters()
    far = logistic_regression(data, 3, 1e-3)
    torch.testing.assert_close(
        logistic_regression(data, 3, 0.1, far).weight,
        logistic_regression(data, 3, 0.1).weight,
        atol=2e-4,
        rtol=1e-3,
    )


def test_the_probe_chooses_on_each_fifth_image_and_fits_on_all():
    train, other = clusters(95), clusters(60, seed=1)
    decays = (0.001, 0.1, 10.0)
    found = linear_probe(train, other, 3, decays)
    mean, std = train.inputs.mean(0), train.inputs.std(0)
    z, held_out = (train.inputs - mean) / std, (other.inputs - mean) / std
    fifth = np.arange(95) % 5 == 0
    wrong = {}
    for decay in decays:
        fit = logistic_regression(Labelled(z[~fifth], train.labels[~fifth]), 3, decay)
        wrong[decay] = int(fit.wrong(Labelled(z[fifth], train.labels[fifth])).sum())
    best = max(d for d in decays if wrong[d] == min(wrong.values()))
    assert found.weight_decay == best
    last = logistic_regression(Labelled(z, train.labels), 3, best)
    assert found.wrong.equal(last.wrong(Labelled(held_out, other.labels)))
    assert found.wrong.float().mean() < 0.35  # 0.67 by chance


def test_the_probe_is_the_same_for_features_in_other_units():
    train, other = clusters(), clusters(seed=1)
    scale, shift = torch.tensor([1e-3, 1.0, 50.0, 1.0, 1.0, 1.0]), torch.arange(6.0)
    plain = linear_probe(train, other, 3)
    moved = (Labelled(d.inputs * scale + shift, d.labels) for d in (train, other))
    same = linear_probe(*moved, 3)
    assert same.weight_decay == plain.weight_decay
    assert (same.wrong != plain.wrong).float().mean() < 0.03  # rounding
    constant = (
        Labelled(torch.cat([d.inputs, torch.ones(90, 1)], 1), d.labels) for d in (train, other)
    )
    assert linear_probe(*constant, 3).wrong.equal(plain.wrong)


def test_too_few_images_for_a_probe_are_refused():
    with pytest.raises(ValueError, match="at least 6 training images for 3 classes, got 5"):
        linear_probe(clusters(5), clusters(), 3)


NETWORKS = {
    "lenet": (lambda: create_backbone("lenet"), 500),
    "resnet20": (lambda: create_backbone("resnet20"), 64),
    "mlp": (lambda: create_backbone("mlp"), 300),
    "zoo:lenet_mnist_shape": (lambda: zoo.load("lenet_mnist_shape"), None),
    "timm:mobilenetv3_small_050": (lambda: create_backbone("timm:mobilenetv3_small_050"), 1024),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_what_the_last_layer_makes_the_outputs_of(name):
    torch.manual_seed(0)
    make, width = NETWORKS[name]
    net = make().eval()
    shape = getattr(net, "input_shape", None) or (3, 64, 64)
    images = torch.randn(5, *shape)
    layer = last_linear(net, images[:1])
    found = features(net, layer, [images[:3], images[3:]])
    assert width is None or found.shape == (5, width)
    with torch.no_grad():
        torch.testing.assert_close(net.get_submodule(layer)(found), net(images))


@pytest.mark.parametrize(
    "net",
    [nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten()), nn.Sequential(nn.Linear(2, 2))],
    ids=["no linear layer", "not of features"],
)
def test_networks_without_features_are_refused(net):
    with pytest.raises(ValueError, match="expected Sequential to end in a linear layer"):
        last_linear(net, torch.zeros(1, 1, 2, 2))


def test_images_are_made_to_fit_the_network():
    grey, colour = torch.rand(2, 1, 28, 28), torch.rand(2, 3, 28, 28)
    wide = fitted_images(grey, (3, 28, 28))
    assert all(wide[:, c].equal(grey[:, 0]) for c in range(3))
    one = fitted_images(colour, (1, 28, 28))
    weights = np.array([0.299, 0.587, 0.114])
    wanted = np.einsum("c,nchw->nhw", weights, colour.numpy())
    np.testing.assert_allclose(one[:, 0].numpy(), wanted, rtol=1e-5)
    assert fitted_images(torch.full((1, 3, 28, 28), 0.4), (3, 96, 96)).allclose(torch.tensor(0.4))
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        fitted_images(torch.zeros(1, 2, 8, 8), (3, 8, 8))


def test_fine_tuning_learns_repeats_and_leaves_the_network_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 7)).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train, other = clusters(200), clusters(100, seed=1)
    settings = FineTuning(epochs=10, lr=0.05, flip=False)
    drawn_before = torch.get_rng_state()
    tuned = fine_tuned(net, "3", train, 3, settings, seed=4)
    assert torch.get_rng_state().equal(drawn_before)
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert not net.training
    assert not tuned.training
    again = fine_tuned(net, "3", train, 3, settings, seed=4)
    torch.testing.assert_close(tuned(other.inputs), again(other.inputs), rtol=0, atol=0)
    another = fine_tuned(net, "3", train, 3, settings, seed=5)
    assert not tuned(other.inputs).equal(another(other.inputs))
    wrong = predict(tuned, [(other.inputs, other.labels)]).wrong()
    assert wrong.float().mean() < 0.3
    assert not tuned[0].weight.equal(net[0].weight), "all layers are trained"


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": -1.0}, {"batch_size": 0}])
def test_impossible_settings_of_fine_tuning_are_refused(wrong):
    with pytest.raises(ValueError, match=f"expected {next(iter(wrong))} of at least"):
        FineTuning(**wrong)


def test_the_record_of_transfer_compares_seed_by_seed_and_image_by_image():
    rng = np.random.default_rng(0)
    wrong = {name: rng.random((3, 50)) < p for name, p in {"dense": 0.3, "thin": 0.4}.items()}
    rows = tuple(
        TransferRow(
            name, 1, 1, 8, tuple(100 * w.mean(1)), (), digits(w.sum(0).astype(int).tolist())
        )
        for name, w in wrong.items()
    )
    record = TransferRecord("t", "probe", "X", "test", 9, 50, (0, 1, 2), {}, "dense", rows)
    dense, thin = record.rows
    assert thin.mean() == pytest.approx(100 * wrong["thin"].mean())
    assert thin.error().value == pytest.approx(thin.mean())
    assert thin.spread() == pytest.approx(np.std(100 * wrong["thin"].mean(1), ddof=1))
    difference = 100 * (wrong["thin"].mean(0) - wrong["dense"].mean(0))
    assert record.loss(thin).value == pytest.approx(difference.mean())
    assert record.loss(thin).se == pytest.approx(difference.std(ddof=1) / np.sqrt(50))
    by_seed = 100 * (wrong["thin"].mean(1) - wrong["dense"].mean(1))
    assert record.seed_losses(thin) == pytest.approx(by_seed.tolist())
    assert record.loss(dense) is None
