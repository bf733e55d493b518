"""Errors and savings of thinned layers, against loops over single weights; record and picture."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from torch import nn

from conftest import ROOT
from nets_with_zeros import randomise_
from ssl_lightning import (
    Sensitivity,
    count_macs,
    create_backbone,
    register_backbone,
    sensitivity,
    zoo,
)
from ssl_lightning.cli import main
from ssl_lightning.data import MNISTDataModule
from ssl_lightning.prune import SensitivityRow
from ssl_lightning.prune.layerwise import Result, Trial
from ssl_lightning.publishing.measuring import measure_error
from ssl_lightning.report import print_sensitivity, sensitivity_chart
from toy import Fn, ToyNet, make_toy

SHARES = [0.1, 0.4, 0.75, 0.9]
IMAGE = torch.zeros(1, 2, 5, 5)


class Chain(nn.Module):
    """Two convolutions and a linear layer in a row, and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3)
        self.fc = nn.Linear(5 * 9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.norm(self.conv1(x)).relu()).relu()
        return self.fc(x.flatten(1))


def chain() -> Chain:
    torch.manual_seed(3)
    return randomise_(Chain()).eval()


def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(60, 2, 5, 5, generator=generator)
    with torch.no_grad():
        target = chain()(x).argmax(1)
    target[::7] = (target[::7] + 1) % 4  # the whole network is wrong too
    return x, target


def error_by_loops(net: nn.Module) -> float:
    x, target = labelled()
    wrong = 0
    with torch.no_grad():
        for image, wanted in zip(x, target, strict=True):
            scores = net(image[None])[0].tolist()
            wrong += scores.index(max(scores)) != int(wanted)
    return 100 * wrong / len(x)


PARTS = {
    "conv1": ["conv1.weight", "conv1.bias", "norm.weight", "norm.bias"],
    "conv2": ["conv2.weight", "conv2.bias"],
}
"""Layer -> tensors whose slices along the first dimension are its channels."""


def thinned_by_loops(layer: str, zeroed: int) -> tuple[Chain, list[int]]:
    """Zero the channels of smallest norm, number by number."""
    net = chain()
    state = {name: tensor.double().numpy() for name, tensor in net.state_dict().items()}
    norms = []
    for channel in range(len(state[PARTS[layer][0]])):
        squares = [v**2 for name in PARTS[layer] for v in np.ravel(state[name][channel])]
        norms.append(math.sqrt(sum(squares)))
    chosen = sorted(range(len(norms)), key=lambda c: norms[c])[:zeroed]
    with torch.no_grad():
        for channel in chosen:
            for name in PARTS[layer]:
                net.get_parameter(name)[channel] = 0
    return net, chosen


def costs_by_hand(conv1: int, conv2: int) -> tuple[int, int]:
    """Multiply-adds and parameters of a chain with so many channels."""
    macs = 25 * conv1 * 2 * 9 + 9 * conv2 * conv1 * 9 + 9 * conv2 * 4
    parameters = conv1 * (18 + 1 + 2) + conv2 * (9 * conv1 + 1) + 9 * conv2 * 4 + 4
    return macs, parameters


def test_every_cell_is_what_loops_find():
    net = chain()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = sensitivity(net, IMAGE, error_by_loops, shares=SHARES)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    macs, parameters = costs_by_hand(6, 5)
    assert (found.macs, found.num_parameters) == (macs, parameters)
    assert found.macs == count_macs(net, IMAGE)
    assert found.error == error_by_loops(net) > 0
    assert [(row.group_set, row.share) for row in found.rows] == [
        (f"{layer}:coupled", share) for layer in PARTS for share in SHARES
    ]
    assert found.retained == {"fc": "the network's output"}
    errors = set()
    for row in found.rows:
        layer, sizes = row.layers[0], {"conv1": 6, "conv2": 5}
        zeroed = min(round(row.share * sizes[layer]), sizes[layer] - 1)
        assert (row.num_groups, row.zeroed) == (sizes[layer], zeroed)
        reference, _ = thinned_by_loops(layer, zeroed)
        assert row.error == pytest.approx(error_by_loops(reference))
        sizes[layer] -= zeroed
        left = costs_by_hand(*sizes.values())
        assert row.macs_saved == pytest.approx(100 * (1 - left[0] / macs))
        assert row.parameters_saved == pytest.approx(100 * (1 - left[1] / parameters))
        errors.add(row.error)
    assert len(errors) > 4, "the cells differ"


def test_what_is_evaluated_is_thinned_and_in_eval_mode():
    """Each share's network has exactly the zeros that loops make; the last channel is retained."""
    net, seen = chain().train(), []
    sensitivity(net, IMAGE, lambda small: seen.append(small) or 0.0, shares=[0.4, 0.9])
    assert net.training
    expected = [
        (layer, zeroed)
        for layer, counts in (("conv1", (2, 5)), ("conv2", (2, 4)))
        for zeroed in counts
    ]
    assert len(seen) == 1 + len(expected)
    assert all(not module.training for small in seen for module in small.modules())
    for small, (layer, zeroed) in zip(seen[1:], expected, strict=True):
        reference, chosen = thinned_by_loops(layer, zeroed)
        assert len(chosen) == zeroed
        for name, tensor in reference.state_dict().items():
            assert torch.equal(small.state_dict()[name], tensor), name


def test_an_evaluation_may_change_what_it_is_given():
    """Batch norms calibrated anew, or training, in one cell do not reach the next."""

    def spoils(net: nn.Module) -> float:
        error = error_by_loops(net)
        with torch.no_grad():
            for tensor in net.state_dict().values():
                tensor.zero_()
        net.train()
        return error

    plain = sensitivity(chain(), IMAGE, error_by_loops, shares=SHARES)
    assert sensitivity(chain(), IMAGE, spoils, shares=SHARES) == plain


def test_the_same_number_of_groups_is_evaluated_once():
    seen, steps = [], []
    found = sensitivity(
        chain(),
        IMAGE,
        lambda small: seen.append(1) or torch.tensor(1.0, requires_grad=True),
        shares=[0.75, 0.05, 0.8, 0.9, 0.85, 0.75],
        progress=lambda done, total: steps.append((done, total)),
    )
    assert found.shares() == (0.05, 0.75, 0.8, 0.85, 0.9)
    zeroed = [[row.zeroed for row in rows.values()] for rows in found.by_set().values()]
    assert zeroed == [[0, 4, 5, 5, 5], [0, 4, 4, 4, 4]]
    assert len(seen) == 1 + 2 + 1
    assert steps[0] == (1, 11)
    assert steps[-1] == (11, 11)
    nothing = [row for row in found.rows if not row.zeroed]
    assert all((row.macs_saved, row.error) == (0, found.error) for row in nothing)


def test_other_groups():
    net, x = make_toy(), torch.zeros(1, 1, 8, 8)
    depth = sensitivity(net, x, lambda _: 1.0, groups=[{"kind": "depth", "layers": "conv2"}])
    (row,) = depth.rows
    assert (row.group_set, row.share, row.zeroed, row.num_groups) == ("conv2:depth", 1.0, 1, 1)
    assert row.macs_saved == pytest.approx(100 * 6 * 6 * 9 * 64 / count_macs(net, x))
    both = sensitivity(
        net,
        x,
        lambda _: 1.0,
        groups=[{"kind": "neuron_in"}, {"kind": "filter", "layers": "conv*"}],
        shares=[0.5],
    )
    names = [row.group_set for row in both.rows]
    assert names == ["conv1:filter", "conv2:filter", "fc:neuron_in"], "in the network's order"
    torch.manual_seed(1)
    first = sensitivity(chain(), IMAGE, error_by_loops, importance="random", shares=[0.4])
    torch.manual_seed(1)
    again = sensitivity(chain(), IMAGE, error_by_loops, importance="random", shares=[0.4])
    assert first == again
    assert first.rows != sensitivity(chain(), IMAGE, error_by_loops, shares=[0.4]).rows


def test_families_name_all_their_layers_in_the_networks_order(monkeypatch):
    monkeypatch.setattr(Trial, "run", lambda *_: Result(1.0, 10, 10))
    net = create_backbone("resnet20")
    found = sensitivity(net, torch.zeros(1, 3, 32, 32), lambda _: 1.0, shares=[0.5])
    sets = found.by_set()
    places = [name for name, _ in net.named_modules()]
    order = [places.index(name.partition(":")[0]) for name in sets]
    assert order == sorted(order)
    trunk = sets["conv1:coupled"][0.5].layers
    assert {"conv1", "layer1.0.conv2", "layer1.2.conv2"} <= set(trunk)
    assert not any("norm" in layer or "bn" in layer for layer in trunk)


REFUSED = {
    "share 1": ({"shares": [0.5, 1.0]}, r"shares above 0 and below 1.*got 1\.0\. One group"),
    "share 0": ({"shares": [0]}, "below 1.*got 0"),
    "share of text": ({"shares": ["half"]}, "got 'half'"),
    "shares as text": ({"shares": "0.5"}, "got '0.5'"),
    "share nan": ({"shares": [math.nan]}, "got nan"),
    "no shares": ({"shares": []}, r"got \[\]. Give at least one"),
    "importance": ({"importance": "l3"}, "Unknown importance 'l3'. Known: .*l1, l2"),
    "kind": ({"kind": "coupledd"}, "Did you mean coupled"),
    "layers": ({"groups": [{"kind": "coupled", "layers": "x*"}]}, r"'x\*' matches no layer"),
    "no groups given": ({"groups": []}, "sensitivity: expected `groups`"),
    "no heads": ({"kind": "head"}, "expected head groups.*got none in Chain"),
    "nan error": ({"evaluate": lambda _: math.nan}, "finite number, got nan"),
    "no error": ({"evaluate": lambda _: None}, "finite number, got None"),
    "several errors": ({"evaluate": lambda _: torch.ones(2)}, r"got tensor\(\[1., 1.\]\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_named(case):
    given, message = REFUSED[case]
    settings = {"evaluate": lambda _: 1.0, "shares": [0.5], **given}
    with pytest.raises(ValueError, match=message):
        sensitivity(chain(), IMAGE, **settings)


def test_a_network_without_groups_says_why():
    net = Fn(lambda self, x: self.fc(x), fc=nn.Linear(3, 2))
    with pytest.raises(ValueError, match="not pruned: fc: the network's output"):
        sensitivity(net, torch.zeros(1, 3), lambda _: 1.0)


# --- record, table, picture -----------------------------------------------------------------------


def some_record(sets: int = 3, shares: tuple[float, ...] = (0.25, 0.5)) -> Sensitivity:
    rows = tuple(
        SensitivityRow(
            f"stage{n}.conv:coupled",
            (f"stage{n}.conv", "other") if n else (f"stage{n}.conv",),
            8,
            share,
            round(8 * share) if n != 1 else 0,
            7.0 + n + share,
            10 * share + n,
            20 * share,
        )
        for n in range(sets)
        for share in shares
    )
    return Sensitivity("net", "percent of 9 images", "l2", 7.0, 1000, 100, {"fc": "x"}, rows)


def test_round_trip(tmp_path):
    record = sensitivity(chain(), IMAGE, error_by_loops, shares=SHARES)
    record.save(tmp_path / "s.json")
    assert Sensitivity.load(tmp_path / "s.json") == record
    record.save_csv(tmp_path / "s.csv")
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(record.rows)
    for written, row in zip(rows, record.rows, strict=True):
        assert written["group_set"] == row.group_set
        assert written["layers"].split() == list(row.layers)
        assert float(written["error"]) == row.error
        assert float(written["rise"]) == pytest.approx(row.error - record.error)
        numbers = ("num_groups", "zeroed", "share", "macs_saved", "parameters_saved")
        assert [float(written[name]) for name in numbers] == [getattr(row, n) for n in numbers]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": None}, "sensitivity: .*missing: title"),
        ({"extra": 1}, "unknown: extra"),
        ({"error": "low"}, "sensitivity.error: expected int or float"),
        ({"rows": [{"share": 1}]}, r"sensitivity.rows\[0\]: .*missing: error"),
    ],
)
def test_damaged_records_are_named(change, message, tmp_path):
    some_record().save(tmp_path / "s.json")
    data = json.loads((tmp_path / "s.json").read_text())
    changed = {key: value for key, value in {**data, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        Sensitivity.from_dict(changed)


@pytest.mark.parametrize("width", [40, 200])
def test_the_table_shows_all_figures(width):
    console = Console(file=io.StringIO(), width=width)
    print_sensitivity(some_record(), console)
    text = console.file.getvalue()
    lines = [line.split() for line in text.splitlines()]
    assert ["stage0.conv", "8", "+0.25", "(2.5", "%)", "+0.5", "(5.0", "%)"] in lines
    assert ["stage1.conv", "(+1)", "8", "-", "-"] in lines
    assert ["layer", "channels", "25", "%", "50", "%"] in lines
    flat = " ".join(text.split())
    for sentence in (
        "Nothing was trained",
        "batch norms keep",
        "7.00 percent of 9 images",
        "(+n):",
    ):
        assert sentence in flat


def test_the_picture_grows_with_the_network_and_darkens_with_the_error(tmp_path):
    heights = []
    for sets in (3, 33):
        sensitivity_chart(some_record(sets), tmp_path / "s.png")
        heights.append(len(np.asarray(Image.open(tmp_path / "s.png"))))
    assert (heights[1] - heights[0]) / 30 > 30, "pixels for each line"
    rows = [replace(row, zeroed=4) for row in some_record(2).rows]
    for error in (7.0, 90.0):
        changed = [replace(rows[0], error=error), *rows[1:3], replace(rows[3], error=90.0)]
        sensitivity_chart(replace(some_record(), rows=tuple(changed)), tmp_path / f"{error}.png")
    light, dark = (np.asarray(Image.open(tmp_path / f"{e}.png").convert("L")) for e in (7.0, 90.0))
    assert (dark < light).sum() > 1000, "pixels of one square"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["7.0.png", "90.0.png", "s.png"]


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with a config of bundled data, and a test split nobody may read."""
    monkeypatch.chdir(tmp_path)

    def forbidden(*_):
        raise AssertionError("the test split was read")

    monkeypatch.setattr(MNISTDataModule, "test_dataloader", forbidden)
    settings = {"source": "bundled", "num_validation": 300, "eval_batch_size": 64}
    write_config("data.yaml", "MNISTDataModule", **settings)
    return tmp_path


def write_config(path, name, **arguments):
    content = {"data": {"class_path": f"ssl_lightning.data.{name}", "init_args": arguments}}
    Path(path).write_text(yaml.safe_dump(content))


def test_the_command(folder, capsys):
    arguments = ["--data=data.yaml", "--shares=[0.5]", "--images=100", "--output=out"]
    assert main(["sensitivity", "zoo:lenet_mnist_dense", *arguments]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "percent of 100 validation images of MNIST" in out
    assert "Wrote sensitivity.json, sensitivity.csv, sensitivity.png in out" in out
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "sensitivity.csv",
        "sensitivity.json",
        "sensitivity.png",
    ]
    found = Sensitivity.load(folder / "out" / "sensitivity.json")
    assert found.title == "lenet_mnist_dense"
    data = MNISTDataModule(source="bundled", num_validation=300)
    (x, target), *_ = data.val_dataloader()
    net = zoo.load("lenet_mnist_dense")
    expected = sensitivity(
        net,
        torch.zeros(1, 1, 28, 28),
        lambda small: measure_error(small, [(x[:100], target[:100])]),
        shares=[0.5],
    )
    assert found.rows == expected.rows
    assert found.error == expected.error


def test_layers_and_kinds_of_the_command(folder):
    write_config("small.yaml", "SyntheticDataModule", image_size=8, channels=1, num_classes=10)
    arguments = ["sensitivity", "toy-net", "--data=small.yaml", "--images=20", "--shares=[0.5]"]
    with register_backbone("toy-net", ToyNet):
        assert main([*arguments, "--kind=depth", "--output=a"]) == 0
        assert main([*arguments, "--layers=conv*", "--kind=[channel,filter]", "--output=b"]) == 0
    names = [
        [row.group_set for row in Sensitivity.load(f"{name}/sensitivity.json").rows]
        for name in "ab"
    ]
    assert names[0] == ["conv2:depth"]
    assert names[1] == [f"conv{n}:{kind}" for n in (1, 2) for kind in ("channel", "filter")]


def test_data_and_folder_are_found_beside_the_network(folder, monkeypatch, capsys):
    """The config of an entry or a run names the data, if that is the library's own."""
    monkeypatch.setattr(Trial, "run", lambda *_: Result(1.0, 10, 10))
    net = create_backbone("lenet")
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    content = {
        "state_dict": {f"backbone.{name}": t for name, t in net.state_dict().items()},
        "hyper_parameters": {"backbone": "lenet", "backbone_args": {}},
    }
    torch.save(content, run / "checkpoints" / "last.ckpt")
    (folder / "data.yaml").rename(run / "config.yaml")
    assert main(["sensitivity", "run/checkpoints/last.ckpt"]) == 0
    assert "percent of 300 validation images" in " ".join(capsys.readouterr().out.split())
    assert (run / "sensitivity" / "sensitivity.png").is_file()
    write_config(run / "config.yaml", "MNISTDataModule")
    text = (run / "config.yaml").read_text().replace("ssl_lightning.data", "mine")
    (run / "config.yaml").write_text(text)
    assert main(["sensitivity", "run/checkpoints/last.ckpt"]) == 1
    assert "expected data to measure errors on, got none" in capsys.readouterr().err


WRONG = {
    "no network": (["nothing.ckpt"], "No checkpoint at nothing.ckpt"),
    "no backbone": (["lenett"], "no backbone of that name. Did you mean lenet"),
    "no entry": (["zoo:lenet"], "Unknown zoo entry 'lenet'"),
    "no data": (["lenet"], "expected data to measure errors on, got none. Give `--data CONFIG`"),
    "data none": (["lenet", "--data=none"], "expected data to measure errors on"),
    "no such data": (["lenet", "--data=x.yaml"], "--data: no file x.yaml"),
    "no section": (["lenet", "--data=empty.yaml"], "empty.yaml has no `data: {class_path"),
    "no images": (["lenet", "--data=data.yaml", "--images=0"], "expected images >= 1, got 0"),
    "no validation": (["lenet", "--data=whole.yaml"], "holds out no validation images"),
    "share": (["lenet", "--data=data.yaml", "--shares=[1.0]"], "below 1"),
    "other images": (["resnet20", "--data=data.yaml"], "ResNetCIFAR cannot run on images"),
    "few classes": (
        ["lenet", "--data=data.yaml", "--backbone_args={num_classes: 3}"],
        "a score for each class, more than 9 of them, got (1, 3)",
    ),
    "no classes": (["unet", "--data=pixels.yaml"], "expected one class per image"),
    "no kind": (["lenet", "--data=data.yaml", "--kind=coupld"], "Did you mean coupled"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_of_the_command_are_named(case, folder, capsys):
    arguments, message = WRONG[case]
    (folder / "empty.yaml").write_text("model: {}")
    write_config("whole.yaml", "SyntheticDataModule", num_validation=0)
    write_config("pixels.yaml", "SyntheticDataModule", task="segmentation", num_validation=8)
    before = sorted(folder.iterdir())
    assert main(["sensitivity", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert sorted(folder.iterdir()) == before


def test_the_page_has_what_the_command_prints():
    """The table in docs is that of the record beside it."""
    record = Sensitivity.load(ROOT / "docs" / "sensitivity" / "sensitivity.json")
    console = Console(file=io.StringIO(), width=200)
    print_sensitivity(record, console)
    page = (ROOT / "docs" / "sensitivity.md").read_text()
    rows = [line.strip() for line in console.file.getvalue().splitlines() if "%)" in line]
    assert len(rows) == len(record.by_set())
    written = [" ".join(line.split()) for line in page.splitlines()]
    for row in rows:
        assert " ".join(row.split()) in written
