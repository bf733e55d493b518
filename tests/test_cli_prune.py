"""prune on the command line, and the ways to say which network a command means."""

from __future__ import annotations

import copy
import json
import logging
import shutil

import pytest
import torch
import yaml
from torch import nn

from conftest import ROOT
from ssl_lightning import (
    compact,
    count_macs,
    create_backbone,
    load_backbone,
    load_compact,
    make_plan,
    prune_,
    register_backbone,
    save_compact,
    zoo,
)
from ssl_lightning.cli import main
from ssl_lightning.cli.prune import one_goal
from ssl_lightning.cli.sources import named_network
from ssl_lightning.measure import num_parameters
from toy import ToyNet, make_toy, short_config

MNIST = torch.zeros(1, 1, 28, 28)

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path


def failing(arguments, capsys):
    assert main(arguments) == 1
    return " ".join(capsys.readouterr().err.split())


def agree(small, masked, shape=(1, 28, 28)):
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(small.eval()(x), masked.eval()(x), rtol=1e-4, atol=1e-4)


def write_checkpoint(path, net, name="lenet", arguments=None, **more):
    content = {
        "state_dict": {f"backbone.{key}": t for key, t in net.state_dict().items()},
        "hyper_parameters": {"backbone": name, "backbone_args": arguments or {}},
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def test_an_entry_of_the_zoo(folder, capsys):
    arguments = ["--macs=0.5", "--multiple=4", "--output=out"]
    assert main(["prune", "zoo:lenet_mnist_dense", *arguments]) == 0
    masked = zoo.load("lenet_mnist_dense")
    report = prune_(masked, MNIST, macs=0.5, multiple=4)
    out = capsys.readouterr().out
    for name, (zeroed, of) in report.zeroed.items():
        assert f"{name} {zeroed}/{of}" in " ".join(out.split())
    small = load_compact("out")
    agree(small, masked)
    before, after = (count_macs(net, MNIST) for net in (masked, small))
    assert after <= 0.5 * before
    assert small.conv1.out_channels % 4 == small.conv2.out_channels % 4 == 0
    assert f"MACs: {before:,} -> {after:,}" in out
    assert f"parameters: {num_parameters(masked):,} -> {num_parameters(small):,}" in out
    said = " ".join(out.split())
    assert "not pruned: fc2: the network's output" in said
    assert "fresh weights" not in said
    assert "outputs agree" in said
    assert "It was not trained after pruning" in said
    assert "{class_path: ssl_lightning.load_compact, init_args: {folder: out}}" in said
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["model.safetensors", "plan.json"]


def test_what_it_says_of_training_works(folder, capsys):
    """Train the pruned folder from a config, then compact, export and prune what that wrote."""
    assert main(["prune", "zoo:lenet_mnist_dense", "--fraction=0.5", "--output=out"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    spec = said[said.index("{class_path") : said.index("}}") + 2]
    content = short_config(folder, "lenet")
    content["model"]["penalties"] = []
    content["trainer"]["callbacks"] = content["trainer"]["callbacks"][1:]
    (folder / "c.yaml").write_text(yaml.safe_dump(content))
    assert main(["fit", "--config=c.yaml", "--model.backbone", spec]) == 0
    checkpoint, again = "run/checkpoints/last.ckpt", "--config=run/config.yaml"
    assert main(["compact", checkpoint, again, "--output=small"]) == 0
    assert main(["export", checkpoint, again, "--output=m.onnx"]) == 0
    assert main(["prune", checkpoint, again, "--fraction=0.3", "--output=smaller"]) == 0
    assert "with your network" in " ".join(capsys.readouterr().out.split())
    pruned = load_compact("out")
    sizes = [num_parameters(load_compact(name, pruned)) for name in ("smaller", "small")]
    assert sizes[0] < sizes[1] <= num_parameters(pruned)


def test_a_run_that_was_compacted_in_training(folder, capsys):
    """Plans that a checkpoint has come before the new one, and its own network is pruned."""
    content = short_config(folder, "lenet")
    content["model"]["penalties"][0]["layers"] = "conv*"
    callbacks = content["trainer"]["callbacks"]
    callbacks.insert(1, {"class_path": "CompactDuringFit", "init_args": {"at": 1}})
    (folder / "c.yaml").write_text(yaml.safe_dump(content))
    assert main(["fit", "--config=c.yaml"]) == 0
    checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
    trained = load_backbone(checkpoint)
    assert trained.plans, "compacted in training"
    assert trained.model.conv1.out_channels < 20
    capsys.readouterr()
    assert main(["prune", str(checkpoint), "--parameters=0.4"]) == 0
    assert "Wrote" in capsys.readouterr().out
    small = load_compact(folder / "run" / "pruned")
    masked = copy.deepcopy(trained.model)
    prune_(masked, MNIST, budget={"parameters": 0.4})
    agree(small, masked)
    assert num_parameters(small) <= 0.4 * num_parameters(trained.model)
    plans = json.loads((folder / "run" / "pruned" / "plan.json").read_text())["plan"]
    assert len(plans) == 2
    assert main(["prune", "run/pruned", "--fraction=0.2"]) == 0
    smaller = load_compact("run/pruned-pruned")
    assert num_parameters(smaller) < num_parameters(small)
    plans = json.loads((folder / "run/pruned-pruned/plan.json").read_text())["plan"]
    assert len(plans) == 3


def test_an_existing_folder_is_replaced_file_by_file(folder):
    for fraction, retained in ((0.2, 456), (0.7, 171)):
        assert main(["prune", "zoo:lenet_mnist_dense", f"--fraction={fraction}"]) == 0
        small = load_compact("lenet_mnist_dense-pruned")
        widths = small.conv1.out_channels, small.conv2.out_channels, small.fc1.out_features
        assert sum(widths) == retained
    net = zoo.load("lenet_mnist_dense")
    prune_(net, MNIST, fraction=0.7)
    agree(small, net)


def test_backbones_by_name_kinds_and_layers(folder, capsys):
    """A seed gives the weights; whole layers go for a budget of depth; layers are patterns."""
    with register_backbone("toy-net", ToyNet):
        arguments = ["--seed=4", "--backbone_args={dropout: 0.5}", "--depth=2", "--macs=0.1"]
        assert main(["prune", "toy-net", *arguments]) == 0
        small = load_compact("toy-net-pruned")
    out, x = capsys.readouterr().out, torch.zeros(1, 1, 8, 8)
    assert "conv2:depth 1/1" in " ".join(out.split())
    assert "toy-net has fresh weights" in out
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in small.modules()) == 2
    net = make_toy(seed=4).eval()
    assert count_macs(small, x) <= 0.1 * count_macs(net, x)
    left = small.fc.in_features // 16
    assert 0 < left == len(small.conv1.weight) < 6
    assert all(
        any(torch.equal(row, full) for full in net.conv1.weight) for row in small.conv1.weight
    )
    capsys.readouterr()
    arguments = ["--layers=conv*", "--kind=[filter,channel]", "--threshold=0.1", "--output=a"]
    assert main(["prune", "lenet", *arguments]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "/" in line]
    assert names[:4] == ["conv1:filter", "conv2:filter", "conv1:channel", "conv2:channel"]
    for name in ("a", "b"):
        random = ["--fraction=0.5", "--importance=random", "--seed=2", f"--output={name}"]
        assert main(["prune", "zoo:lenet_mnist_dense", *random]) == 0
    texts = [(folder / name / "plan.json").read_text() for name in ("a", "b")]
    assert texts[0] == texts[1]


WRONG = {
    "no goal": (
        [],
        "--size, --depth, --latency, --latency_ms) or one of",
    ),
    "two goals": (["--macs=0.5", "--fraction=0.1"], "got --macs and --fraction"),
    "both others": (["--threshold=0.5", "--fraction=0.1"], "got --fraction and --threshold"),
    "share": (["--macs=-0.5"], "expected macs as a positive number, got -0.5"),
    "fraction": (["--fraction=1.0"], "0 <= fraction < 1"),
    "too little": (["--macs=0.0001"], "the budget cannot be reached"),
    "kind": (["--fraction=0.5", "--kind=coupld"], "Did you mean coupled"),
    "no heads": (["--macs=0.5", "--kind=head"], "LeNet has no head groups"),
    "nothing": (["--fraction=0.5", "--kind=head"], "expected groups that compaction could remove"),
    "no shortcut": (["--depth=2"], "Expected layers with a shortcut around them"),
    "layers": (["--fraction=0.5", "--layers=x*"], "'x*' matches no layer"),
    "importance": (["--fraction=0.5", "--importance=l3"], "Unknown importance 'l3'"),
    "multiple": (["--fraction=0.5", "--multiple=0"], "a whole number >= 1 as multiple, got 0"),
    "argument": (["--fraction=0.5", "--backbone_args={width: 3}"], "has no argument `width`"),
    "model": (["--fraction=0.5", "--model=torch.nn.Linear"], "is a backbone's name, which is made"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_named_and_nothing_is_written(case, folder, capsys):
    arguments, message = WRONG[case]
    assert message in failing(["prune", "lenet", *arguments], capsys)
    assert not list(folder.iterdir())


def test_goals():
    assert one_goal({"macs": None}, {"fraction": 0.0}) == {"fraction": 0.0}
    assert one_goal({"macs": 0.5}, {"fraction": None}) == {"budget": {"macs": 0.5}}


# --- which network a command means ----------------------------------------------------------------


def small_folder(folder):
    net = create_backbone("lenet", num_classes=7)
    prune_(net, MNIST, fraction=0.5)
    plan = make_plan(net, MNIST)
    return save_compact(folder, compact(net, plan), plan, "lenet", {"num_classes": 7})


def test_all_that_names_a_network(folder):
    entry = "lenet_mnist_shape"
    shutil.copytree(ROOT / "zoo" / entry, folder / "mine" / entry)
    small_folder(folder / "run" / "compact")
    write_checkpoint(folder / "run" / "checkpoints" / "a.ckpt", create_backbone("lenet"))
    made = {
        f"zoo:{entry}": (ROOT / "zoo" / entry, "lenet_mnist_shape-x"),
        f"mine/{entry}": (folder / "mine" / entry, f"mine/{entry}-x"),
        "run/compact": (folder / "run", "run/compact-x"),
        "run/checkpoints/a.ckpt": (folder / "run", "run/x"),
        "lenet": (None, "lenet-x"),
        "torchvision:resnet18": (None, "torchvision-resnet18-x"),
        "timm:mobilenetv3_small_050": (None, "timm-mobilenetv3_small_050-x"),
    }
    for source, (home, output) in made.items():
        named = named_network(source)
        assert not named.model.training, source
        assert named.beside("x", "-x").as_posix() == output, source
        assert (named.home and named.home.resolve()) == (home and home.resolve()), source
        again = named.recipe.create()
        again.load_state_dict(named.model.state_dict())
        again.eval()
        assert named.example().shape[1:] == named.model.input_shape, source
        agree(again, named.model, named.model.input_shape)
        assert named.masked() is named.model or named.trained is not None
        assert named.fresh == (home is None), source
    agree(named_network(f"zoo:{entry}").model, named_network(f"mine/{entry}").model)
    assert named_network("lenet", backbone_args={"num_classes": 3}).model.num_classes == 3
    shutil.copytree(folder / "run" / "compact", folder / "lenet")
    assert named_network("lenet").model.num_classes == 7, "a path that exists is taken as one"


MISTAKEN = {
    "nothing.ckpt": "No checkpoint at nothing.ckpt",
    "no/folder": "No checkpoint at no/folder",
    "lenett": "No file or folder lenett, and no backbone of that name. Did you mean lenet",
    "lenet_mnist_shape": "Give zoo:lenet_mnist_shape or that folder",
    "zoo:lenet": "Unknown zoo entry 'lenet'",
    "zoo:alexnet_imagenette_dense": "are not stored",
    "timm:mobilenetv3_smal_050": "Did you mean timm:mobilenetv3_small_050",
    "torchvision:resnt18": "Did you mean torchvision:resnet18",
    "empty": "a compact network is a folder with",
    "run": "run is the folder of a run. Give run/compact",
    "sparsified": "sparsified is the folder of a run. Give sparsified/result/compact",
}


@pytest.mark.parametrize("source", MISTAKEN)
@pytest.mark.parametrize("command", ["prune", "export"])
def test_what_names_no_network(source, command, folder, capsys):
    (folder / "empty").mkdir()
    small_folder(folder / "run" / "compact")
    small_folder(folder / "sparsified" / "result" / "compact")
    goal = ["--fraction=0.1"] if command == "prune" else []
    assert MISTAKEN[source] in failing([command, source, *goal], capsys)
    assert sorted(p.name for p in folder.iterdir()) == ["empty", "run", "sparsified"]


def test_a_network_is_not_written_where_a_run_or_a_file_is(folder, capsys):
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "checkpoints" / "last.ckpt").touch()
    (folder / "file").touch()
    for name, what in (("run", "the folder of a run"), ("file", "a file")):
        said = failing(["prune", "lenet", "--macs=0.5", f"--output={name}"], capsys)
        assert f"--output: {name} is {what}. Give another folder." in said
    assert [p.name for p in (folder / "run").iterdir()] == ["checkpoints"]


def test_weights_alone_are_no_checkpoint_and_it_says_what_takes_them(folder, capsys):
    torch.save({"fc.weight": torch.zeros(1)}, folder / "net.pt")
    said = failing(["prune", "net.pt", "--macs=0.5"], capsys)
    assert (
        "It holds weights alone: `fit` and `sparsify` start from them by --model.init_from" in said
    )


def test_arguments_that_a_source_does_not_need(folder, capsys):
    small_folder(folder / "small")
    arguments = ["--fraction=0.1", "--backbone_args={num_classes: 3}"]
    assert "Leave --backbone_args out" in failing(["prune", "small", *arguments], capsys)
    said = failing(["prune", "zoo:lenet_mnist_shape", *arguments], capsys)
    assert "has no argument 'num_classes'" in said
    said = failing(["prune", "small", "--fraction=0.1", "--model=a.B", "--config=c.yaml"], capsys)
    assert "got both" in said


def test_a_network_that_does_not_tell_its_size(folder, capsys):
    write_checkpoint(folder / "a.ckpt", create_backbone("lenet"))
    with register_backbone("plain-net", lambda: nn.Linear(4, 2)):
        said = failing(["prune", "plain-net", "--fraction=0.1"], capsys)
    assert "Cannot tell what plain-net takes: expected a network with an attribute" in said


def test_entries_and_backbones_are_exported_by_name(folder):
    arguments = ["--format=torch_export"]
    assert main(["export", "zoo:lenet_mnist_shape", *arguments]) == 0
    program = torch.export.load("lenet_mnist_shape.pt2").module()
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(program(x), zoo.load("lenet_mnist_shape")(x))
    assert main(["export", "mlp", *arguments, "--backbone_args={num_classes: 3}"]) == 0
    assert torch.export.load("mlp.pt2").module()(x).shape == (3, 3)
