"""`ssl-lightning evaluate` on bundled and made-up data: records, pictures, resuming, messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from conftest import shared_data
from ssl_lightning import (
    MNISTDataModule,
    SyntheticDataModule,
    compact,
    create_backbone,
    make_plan,
    save_compact,
    zoo,
)
from ssl_lightning.cli import compared, main
from ssl_lightning.cli import corruption as corruption_command
from ssl_lightning.cli.compared import Compared, as_bytes, check_same_images, images_of
from ssl_lightning.evaluation import (
    CORRUPTIONS,
    CalibrationRecord,
    CorruptionRecord,
    TransferRecord,
    corrupted,
)
from ssl_lightning.publishing.measuring import measure_error
from ssl_lightning.report.corruption import explained


class Own(nn.Module):
    """A network of the user's own."""

    input_shape = (1, 28, 28)

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(784, 8), nn.Linear(8, 10)

    def forward(self, x):
        return self.fc2(self.fc1(x.flatten(1)).relu())


DENSE, SPARSE = "lenet_mnist_dense", "lenet_mnist_filter_channel"
PNG = b"\x89PNG"


def succeed(*arguments: str) -> None:
    assert main(["evaluate", *arguments]) == 0


@pytest.fixture
def digits(tmp_path) -> list[str]:
    """Options for networks of MNIST: the images that ship with the package."""
    data = {"class_path": "MNISTDataModule", "init_args": {"source": "bundled"}}
    path = tmp_path / "digits.yaml"
    path.write_text(yaml.safe_dump({"data": data}))
    return ["--data", str(path)]


@pytest.fixture(scope="module")
def stripes(tmp_path_factory) -> str:
    """A config whose data are small coloured images."""
    data = {
        "class_path": "ssl_lightning.data.SyntheticDataModule",
        "init_args": {
            "image_size": 32,
            "channels": 3,
            "num_train": 200,
            "num_test": 12,
            "num_validation": 80,
            "num_classes": 3,
        },
    }
    path = tmp_path_factory.mktemp("data") / "stripes.yaml"
    path.write_text(yaml.safe_dump({"data": data}))
    return str(path)


def test_calibration_is_of_the_first_images_and_the_published_networks(digits, tmp_path, capsys):
    output = tmp_path / "a.json"
    names = [f"zoo:{DENSE}", f"zoo:{SPARSE}"]
    options = ["--dense", names[0], "--split", "test", "--limit", "600", "--batch_size", "100"]
    options += digits
    succeed("calibration", *names, *options, "--output", str(output))
    record = CalibrationRecord.load(output)
    assert output.with_suffix(".png").read_bytes().startswith(PNG)
    assert (record.dense, record.data, record.images) == (DENSE, "MNIST", 600)
    assert sum(record.class_images.values()) == 600
    data = MNISTDataModule()
    data.setup("test")
    x, labels = next(iter(data.test_dataloader()))
    wrong = {}
    for row in record.rows:
        net = zoo.load(row.network)
        with torch.no_grad():
            wrong[row.network] = (net(x[:600]).argmax(1) != labels[:600]).numpy()
        assert row.error.value == pytest.approx(100 * wrong[row.network].mean())
        sevens = wrong[row.network][labels[:600].numpy() == 7]
        assert row.class_errors["7"] == pytest.approx(100 * sevens.mean())
        card = zoo.card(row.network)
        assert (row.macs, row.parameters) == (card.compact.macs, card.compact.num_parameters)
    assert record.rows[0].against is None
    difference = 100 * (wrong[SPARSE].mean() - wrong[DENSE].mean())
    assert record.rows[1].against.error.value == pytest.approx(difference)
    out = capsys.readouterr().out
    assert SPARSE in out
    assert "600 test images of MNIST" in " ".join(out.split())


def test_without_a_dense_network_only_the_first_table_is_printed(digits, tmp_path, capsys):
    output = ["--output", str(tmp_path / "a.json")]
    succeed("calibration", f"zoo:{SPARSE}", "--limit", "100", *digits, *output)
    assert CalibrationRecord.load(tmp_path / "a.json").compared() == {}
    assert "above dense" not in capsys.readouterr().out


def test_a_checkpoint_and_its_compact_folder_are_the_same_network(run, digits, tmp_path):
    """They are compared as they are compacted, and named as they were given."""
    checkpoint, folder = run / "checkpoints" / "last.ckpt", run / "compact"
    output = ["--limit", "200", "--output", str(tmp_path / "a.json")]
    succeed("calibration", str(folder), "--dense", str(checkpoint), *digits, *output)
    dense, small = CalibrationRecord.load(tmp_path / "a.json").rows
    assert (dense.network, small.network) == (str(checkpoint), str(folder))
    assert (dense.macs, dense.parameters) == (small.macs, small.parameters)
    assert small.against.disagreement.value == 0
    assert small.nll.value == pytest.approx(dense.nll.value, abs=1e-5)


def test_a_network_of_ones_own_needs_its_class(digits, tmp_path, monkeypatch, capsys):
    folder = str(tmp_path / "small")
    net = Own()
    plan = make_plan(net, torch.zeros(1, 1, 28, 28))
    save_compact(folder, compact(net, plan), plan)
    assert main(["evaluate", "calibration", folder, *digits]) == 1
    assert "--model" in capsys.readouterr().err
    both = [folder, f"zoo:{SPARSE}"]
    own = ["--model", f"{Own.__module__}.Own", "--limit", "100"]
    succeed("calibration", *both, *digits, *own, "--output", str(tmp_path / "a.json"))
    record = CalibrationRecord.load(tmp_path / "a.json")
    assert [row.network for row in record.rows] == [folder, SPARSE]


def mnist(name: str, **arguments: int) -> Compared:
    net = create_backbone("lenet")
    return Compared(name, net, torch.zeros(1, 1, 28, 28), MNISTDataModule(**arguments))


def test_validation_images_that_one_network_was_trained_on_are_refused():
    same = [mnist("a", num_validation=2000), mnist("b", num_validation=2000, batch_size=7)]
    check_same_images("evaluate", same, "validation")
    other = [mnist("a", num_validation=2000), mnist("b", num_validation=2000, seed=1)]
    with pytest.raises(ValueError, match=r"split seed 1\). Some of one's validation images") as e:
        check_same_images("evaluate", other, "validation")
    assert "--split test" in str(e.value)
    check_same_images("evaluate", other, "test")
    kept = [mnist("a", num_validation=2000), mnist("b", num_validation=2000, seed=1, split_seed=0)]
    check_same_images("evaluate", kept, "validation")
    elsewhere = Compared("c", other[0].model, torch.zeros(1, 1, 28, 28), SyntheticDataModule())
    with pytest.raises(ValueError, match="Give networks of one data set, or --data CONFIG"):
        check_same_images("evaluate", [other[0], elsewhere], "test")


def test_images_are_the_first_of_the_split_in_batches():
    data = MNISTDataModule(num_validation=2000)
    found = list(images_of("x", data, "validation", 1203, 500))
    assert [len(y) for _, y in found] == [500, 500, 203]
    whole = torch.cat([x for x, _ in data.val_dataloader()])
    assert torch.cat([x for x, _ in found]).equal(whole[:1203])
    assert sum(len(y) for _, y in images_of("x", data, "validation", None, 900)) == 2000
    mean, std = compared.pixel_statistics("x", data)
    plain = next(iter(MNISTDataModule(num_validation=2000, normalize=False).val_dataloader()))[0]
    assert as_bytes(whole[:1000], mean, std).equal((plain * 255).round().to(torch.uint8))


def corruption_run(config: str, output: Path, *more: str) -> CorruptionRecord:
    """Measure two networks with fresh weights, which depend on the seed only."""
    torch.manual_seed(0)
    networks = ["resnet20", "--dense", "resnet14", "--data", config]
    succeed("corruption", *networks, "--limit", "10", "--output", str(output), *more)
    return CorruptionRecord.load(output)


@pytest.fixture(scope="module")
def whole(stripes, tmp_path_factory) -> CorruptionRecord:
    """What one run measures."""
    output = tmp_path_factory.mktemp("run") / "a.json"
    record = corruption_run(stripes, output)
    assert output.with_suffix(".png").read_bytes().startswith(PNG)
    return record


def test_corruption_measures_each_corruption_at_each_severity(stripes, whole):
    record = whole
    assert [row.network for row in record.rows] == ["resnet14", "resnet20"]
    assert all(tuple(row.corruptions) == CORRUPTIONS for row in record.rows)
    assert (record.images, record.seed, record.dense) == (10, 0, "resnet14")
    torch.manual_seed(0)
    net = create_backbone("resnet14").eval()  # made before the other one
    arguments = yaml.safe_load(Path(stripes).read_text())["data"]["init_args"]
    data = SyntheticDataModule(**arguments, normalize=False)
    data.setup("test")
    x, labels = next(iter(data.test_dataloader()))
    x, labels = x[:10], labels[:10]
    images = (255 * x).round().to(torch.uint8).numpy()
    for name, severity in (("fog", 2), ("contrast", 5)):
        changed = torch.tensor(corrupted(images, name, severity)).float() / 255
        batches = [((changed - 0.5) / 0.25, labels)]
        wanted = measure_error(net, batches)
        assert record.rows[0].corruptions[name].errors[severity - 1] == pytest.approx(wanted)
    assert record.rows[0].clean.value == pytest.approx(
        measure_error(net, [((x - 0.5) / 0.25, labels)])
    )
    words = explained(record)
    assert "These are not the published corrupted images (CIFAR-10-C" in words
    assert "mCE" in words


def test_corruption_goes_on_where_it_was_stopped(stripes, whole, tmp_path, monkeypatch, capsys):
    real: Callable[..., CorruptionRecord] = corruption_command.with_corruption
    calls: list[str] = []

    def stops(record, networks, source, corruption, batch_size):
        if corruption == "glass_blur" and len(calls) < 5:
            raise KeyboardInterrupt
        calls.append(corruption)
        return real(record, networks, source, corruption, batch_size)

    monkeypatch.setattr(corruption_command, "with_corruption", stops)
    with pytest.raises(KeyboardInterrupt):
        corruption_run(stripes, tmp_path / "a.json")
    stored = CorruptionRecord.load(tmp_path / "a.json")
    assert [len(row.corruptions) for row in stored.rows] == [4, 4]
    monkeypatch.setattr(corruption_command, "with_corruption", real)
    capsys.readouterr()
    assert corruption_run(stripes, tmp_path / "a.json") == whole
    assert "gaussian_noise:" not in capsys.readouterr().out, "that was measured before"
    assert main(["evaluate", "corruption", "resnet20", "--data", stripes, "--limit", "9",
                 "--output", str(tmp_path / "a.json")]) == 1  # fmt: skip
    assert "measurement with another images, dense" in capsys.readouterr().err


def test_mnist_cannot_be_corrupted(capsys):
    assert main(["evaluate", "corruption", f"zoo:{DENSE}"]) == 1
    assert "RGB images of at least 32 x 32 pixels" in capsys.readouterr().err
    assert main(["evaluate", "corruption", f"zoo:{DENSE}", "--files", "."]) == 1
    assert "--files: expected networks of CIFAR-10" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["probe", "finetune"])
def test_transfer_gives_all_networks_the_same_images(method, stripes, tmp_path, capsys):
    output = tmp_path / "a.json"
    networks = [f"zoo:{SPARSE}", "--dense", f"zoo:{DENSE}"]
    options = ["--method", method, "--num_train", "90", "--seeds", "[0, 3]", "--epochs", "2"]
    run = ["transfer", *networks, "--to", stripes, *options, "--output", str(output)]
    succeed(*run)
    record = TransferRecord.load(output)
    assert output.with_suffix(".png").read_bytes().startswith(PNG)
    assert [row.network for row in record.rows] == [DENSE, SPARSE]
    assert (record.data, record.split, record.images, record.trained) == (
        "Synthetic",
        "validation",
        80,
        90,
    )
    assert record.seeds == (0, 3)
    for row in record.rows:
        assert len(row.wrong) == 80
        assert len(row.weight_decays) == (2 if method == "probe" else 0)
        assert row.mean() == pytest.approx(row.error().value)
    if method == "probe":
        assert max(row.mean() for row in record.rows) < 40  # 67 by chance
    first = capsys.readouterr().out
    assert DENSE in first
    # the second network was not measured yet: the same command goes on with it
    data = json.loads(output.read_text())
    output.write_text(json.dumps({**data, "rows": data["rows"][:1]}))
    succeed(*run)
    assert TransferRecord.load(output) == record
    assert f": {DENSE}" not in capsys.readouterr().out


def test_a_probe_is_that_of_features_computed_by_hand(stripes, tmp_path):
    from ssl_lightning.evaluation import Labelled, linear_probe

    output = tmp_path / "a.json"
    options = ["--num_train", "60", "--seeds", "[5]", "--output", str(output)]
    succeed("transfer", f"zoo:{DENSE}", "--to", stripes, *options)
    (row,) = TransferRecord.load(output).rows
    data = SyntheticDataModule(
        image_size=28, channels=3, num_train=200, num_test=12, num_validation=80, num_classes=3,
        normalize=False,
    )  # fmt: skip
    data.setup("fit")
    train = [data.dataset("train")[i] for i in range(120)]
    x, y = torch.stack([image for image, _ in train]), torch.stack([label for _, label in train])
    draw = torch.randperm(120, generator=torch.Generator().manual_seed(5))[:60]
    held_out, labels = next(iter(data.val_dataloader()))
    net = zoo.load(DENSE)

    def hidden(images: torch.Tensor) -> torch.Tensor:
        grey = torch.einsum("c,nchw->nhw", torch.tensor([0.299, 0.587, 0.114]), images)[:, None]
        seen: list[torch.Tensor] = []
        hook = net.fc2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            net((grey - 0.1307) / 0.3081)
        hook.remove()
        return seen[0]

    probe = linear_probe(Labelled(hidden(x[draw]), y[draw]), Labelled(hidden(held_out), labels), 3)
    assert row.features == net.fc2.in_features
    assert row.weight_decays == (probe.weight_decay,)
    # float32 sums of other batches may turn an image or two
    found = np.array([int(digit) for digit in row.wrong])
    assert (found != probe.wrong.numpy()).sum() <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: ssl-lightning evaluate"),
        (["calib"], "Did you mean calibration"),
        (["calibration", "zoo:lenet"], "Unknown zoo entry 'lenet'"),
        (["calibration", f"zoo:{DENSE}", "--split", "train"], "Unknown split"),
        (["calibration", f"zoo:{DENSE}", "--limit", "0"], "expected limit >= 1, got 0"),
        (["calibration", f"zoo:{DENSE}", f"zoo:{DENSE}"], "each network once"),
        (["calibration", f"zoo:{DENSE}", "--model", "mine.Net"], "Leave --model out"),
        (["calibration", f"zoo:{DENSE}", "--output", "a.txt"], "a file that ends in .json"),
        (["calibration", "resnet20"], "expected data to measure errors on"),
        (["transfer", f"zoo:{DENSE}", "--to", "cifar"], "Did you mean cifar10"),
        (["transfer", f"zoo:{DENSE}"], "to"),
        (["transfer", f"zoo:{DENSE}", "--to", "mnist", "--method", "x"], "Unknown method"),
        (["transfer", f"zoo:{DENSE}", "--to", "mnist", "--seeds", "[1, 1]"], "different numbers"),
        (
            ["transfer", f"zoo:{DENSE}", "--to", "mnist", "--num_train", "3"],
            "expected 20 to 7000 training images of MNIST",
        ),
        (["transfer", f"zoo:{DENSE}", "--to", "multi.yaml"], "no file multi.yaml"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_mistakes_are_said(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["evaluate", *arguments])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status != 0
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert message in text
    assert not list(tmp_path.iterdir())


def test_fashion_mnist_is_looked_for(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_DATA_DIR", str(tmp_path))
    assert main(["evaluate", "transfer", f"zoo:{DENSE}", "--to", "FashionMNISTDataModule"]) == 1
    assert "Cannot load FashionMNIST: looked for" in capsys.readouterr().err


@pytest.mark.skipif(shared_data() is None, reason="CIFAR-10 is not here: set SSL_DATA_DIR")
def test_networks_of_cifar10_have_their_published_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_DATA_DIR", str(shared_data()))
    names = ["resnet20_cifar10_dense", "resnet20_cifar10_depth14"]
    output = tmp_path / "a.json"
    succeed("calibration", *(f"zoo:{name}" for name in names), "--output", str(output))
    record = CalibrationRecord.load(output)
    assert record.images == 5000
    for row in record.rows:
        assert row.error.value == pytest.approx(zoo.card(row.network).validation_error, abs=0.05)


@pytest.mark.skipif(shared_data() is None, reason="CIFAR-10 is not here: set SSL_DATA_DIR")
def test_stored_files_are_measured_on_in_place_of_made_images(tmp_path, monkeypatch, capsys):
    """Files that hold the clean images, so that each corruption has the clean error."""
    from ssl_lightning import CIFAR10DataModule
    from ssl_lightning.evaluation import corruption as module

    monkeypatch.setenv("SSL_DATA_DIR", str(shared_data()))
    monkeypatch.setattr(module, "IN_FILE", 40)
    data = CIFAR10DataModule(normalize=False)
    x, labels = next(images_of("x", data, "test", 40, 40))
    pixels = (255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for name in CORRUPTIONS:
        np.save(tmp_path / f"{name}.npy", np.tile(pixels, (5, 1, 1, 1)))
    np.save(tmp_path / "labels.npy", np.tile(labels.numpy(), 5))
    output = ["--limit", "40", "--output", str(tmp_path / "a.json")]
    succeed("corruption", "zoo:resnet20_cifar10_depth14", "--files", str(tmp_path), *output)
    record = CorruptionRecord.load(tmp_path / "a.json")
    (row,) = record.rows
    assert (record.images, record.seed, record.dense) == (40, None, None)
    assert all(set(found.errors) == {row.clean.value} for found in row.corruptions.values())
    words = " ".join(capsys.readouterr().out.split())
    assert "the published files of CIFAR-10-C" in words
    assert "These are not" not in words
