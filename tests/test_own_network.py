"""A network of the user's own, from the config to every command, with a class in a new module."""

from __future__ import annotations

import json
import logging
import shutil
import sys

import pytest
import torch
import yaml
from torch import nn

from ssl_lightning import SSLLightningModule, load_backbone, load_compact
from ssl_lightning.cli import main
from toy import short_config

CODE = """
import torch
from torch import nn

class MyNet(nn.Module):
    input_shape = (1, 28, 28)
    num_classes = 10

    def __init__(self, width=8, act: str = "relu", norm: nn.Module | None = None):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.norm, self.act = norm or nn.Identity(), getattr(torch, act)
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        return self.fc(self.norm(self.act(self.conv(x))).amax((2, 3)))

def make():
    return MyNet(12)
"""

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with `my_nets.py` in it, importable, and a config; no test has imported it yet."""
    (tmp_path / "my_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    yield tmp_path
    sys.modules.pop("my_nets", None)


def trained(own, **init_args):
    """Train two epochs, pruned in the second; return the checkpoint."""
    network = {"class_path": "my_nets.MyNet", "init_args": {"width": 12, **init_args}}
    content = short_config(own, network)
    (own / "own.yaml").write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(own / "own.yaml")]) == 0
    return own / "run" / "checkpoints" / "last.ckpt"


def forget():
    """Let the module be imported anew, so that a test sees whether it was."""
    sys.modules.pop("my_nets", None)


def failing(arguments, capsys):
    assert main(arguments) == 1
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("named", ["--model=my_nets.MyNet", "--config=own.yaml"])
def test_a_network_by_class_path_goes_the_whole_way(own, capsys, named):
    trained(own)
    forget()
    shutil.copytree(own / "run", own / "elsewhere")
    path, small = own / "elsewhere/checkpoints/last.ckpt", own / "elsewhere/compact"
    for arguments in (
        ["compact", str(path)],
        ["benchmark", str(path)],
        ["export", str(path)],
        ["export", str(small)],
        ["prune", str(path), "--fraction=0.2"],
        ["sensitivity", str(small)],
    ):
        said = failing(arguments, capsys)
        assert "is of the network 'my_nets.MyNet'. Give it: in Python `model=`" in said
        assert "in commands `--model my_nets.MyNet`, or `--config`" in said
    with pytest.raises(ValueError, match=r"'my_nets\.MyNet'\. Give it: "):
        load_backbone(path)
    with pytest.raises(ValueError, match=r"'my_nets\.MyNet'\. Give it: "):
        load_compact(small)
    assert "my_nets" not in sys.modules
    again = ["fit", f"--ckpt_path={path}", "--data=MNISTDataModule", "--data.source=bundled"]
    assert "is of the network 'my_nets.MyNet'" in failing(again, capsys)
    assert "my_nets" not in sys.modules

    assert main(["compact", str(path), named, "--output", str(own / "again")]) == 0
    assert "The outputs of both networks agree" in capsys.readouterr().out
    arguments = ["--repeats=1", "--threads=1", "--dense", str(path), "--compacted", str(small)]
    assert main(["benchmark", str(path), named, *arguments]) == 0
    report = json.loads((own / "elsewhere" / "report.json").read_text())
    assert report["errors"]["masked"] == pytest.approx(report["errors"]["compact"], abs=0.02)
    assert report["benchmark"]["models"]["compact"]["macs"] < 12 * 26 * 26 * 9
    for network, file in (
        (path, own / "elsewhere" / "model.onnx"),
        (small, small.with_suffix(".onnx")),
    ):
        assert main(["export", str(network), named]) == 0
        assert file.is_file()
    for network in (path, small):
        arguments = ["--fraction=0.4", "--output", str(own / "pruned")]
        assert main(["prune", str(network), named, *arguments]) == 0
        assert "model=...)` to SSLLightningModule" in capsys.readouterr().out
    assert main(["test", f"--config={own / 'own.yaml'}", f"--ckpt_path={path}"]) == 0
    assert main(["fit", f"--config={own / 'run/config.yaml'}", f"--ckpt_path={path}"]) == 0

    from my_nets import MyNet

    network = load_backbone(path, MyNet).model
    x = torch.randn(3, 1, 28, 28)
    assert network.conv.out_channels == 12  # not the default: the checkpoint holds the arguments
    thinner = load_compact(own / "pruned", MyNet(12)).conv.out_channels
    assert 0 < thinner < load_compact(small, MyNet(12)).conv.out_channels
    for folder in (small, own / "again"):
        for model in (MyNet, MyNet(12), lambda: MyNet(12)):
            loaded = load_compact(folder, model)
            assert loaded.conv.out_channels < 12
            torch.testing.assert_close(loaded(x), network(x), rtol=1e-4, atol=1e-5)


def test_in_the_folder_of_the_run_the_network_is_known(own, capsys):
    path = trained(own)
    for arguments in (["compact", path], ["export", path], ["export", own / "run" / "compact"]):
        forget()
        assert main([str(argument) for argument in arguments]) == 0
        assert "my_nets.MyNet, which you trained in this folder" in capsys.readouterr().out
    again = own / "again"
    (own / "run").rename(again)  # as one that came from elsewhere
    forget()
    assert "in commands `--model" in failing(
        ["compact", str(again / "checkpoints/last.ckpt")], capsys
    )
    assert "my_nets" not in sys.modules


@pytest.mark.parametrize("forgery", ["another class", "another module", "a damaged register"])
def test_what_was_not_trained_there_is_not_imported(own, capsys, monkeypatch, forgery):
    path = trained(own)
    forget()
    other = own / "other"
    other.mkdir()
    (other / "forged.py").write_text("raise SystemError('imported')")
    if forgery == "another class":
        content = torch.load(path, weights_only=True)
        content["hyper_parameters"]["backbone_class"] = "forged.MyNet"
        torch.save(content, path)
    elif forgery == "another module":
        (other / "my_nets.py").write_text("raise SystemError('imported')")
    else:
        (own / "home/ssl_lightning/own_runs.json").write_text('{"/": [')
    monkeypatch.syspath_prepend(str(other))
    assert "in commands `--model" in failing(["compact", str(path)], capsys)


def test_what_only_a_config_can_say(own, capsys):
    """A module as an argument is no plain value: the class alone is not enough."""
    path = trained(
        own, norm={"class_path": "torch.nn.BatchNorm2d", "init_args": {"num_features": 12}}
    )
    said = failing(["compact", str(path), "--model", "my_nets.MyNet"], capsys)
    assert "the argument 'norm' of MyNet is {'class_path': 'torch.nn.BatchNorm2d'" in said
    assert "`--config`" in said
    assert main(["compact", str(path), "--config", "own.yaml"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=MyNet"], "--model: expected the import path of a network's class"),
        (["--model=my_nets.YourNet"], "has no attribute 'YourNet'"),
        (["--model=no_such.Net"], "No module named 'no_such'"),
        (["--model=my_nets.CODE"], "has no attribute 'CODE'"),
        (["--config=none.yaml"], "no file none.yaml"),
        (["--config=list.yaml"], "expected `model: {backbone: {class_path: ...}}` in list.yaml"),
        (["--config=bad.yaml"], "cannot make my_nets.MyNet as bad.yaml says"),
        (["--model=my_nets.make", "--config=bad.yaml"], "got both"),
        (["--model=my_nets.make"], "does not fit the backbone 'my_nets.MyNet'"),
        (
            ["--model=os.getcwd"],
            "got getcwd, which makes a str. Give what makes a torch",
        ),
        (["--model=operator.neg"], "got neg, which cannot be called without arguments: "),
        (["--model=builtins.dict"], "got dict, which makes a dict. Give what"),
        (["--model=torch.nn.Softmax"], "the argument 'width' of Softmax is 12"),
    ],
)
def test_mistakes_are_named(own, arguments, message, capsys):
    path = own / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    settings = {"backbone_class": "my_nets.MyNet", "backbone_init_args": {"width": 12}}
    torch.save({"state_dict": {}, "hyper_parameters": settings}, path)
    (own / "list.yaml").write_text("[1]")
    bad = {"model": {"backbone": {"class_path": "my_nets.MyNet", "init_args": {"depth": 3}}}}
    (own / "bad.yaml").write_text(yaml.safe_dump(bad))
    assert message in failing(["compact", str(path), *arguments], capsys)


def test_a_network_that_is_not_needed_is_refused(own, capsys):
    path = own / "last.ckpt"
    net = SSLLightningModule("lenet").backbone
    state = {f"backbone.{name}": t for name, t in net.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"backbone": "lenet"}}, path)
    said = failing(["compact", str(path), "--model=my_nets.MyNet"], capsys)
    assert "has the backbone 'lenet', which is made by its name. Leave --model out" in said


def test_what_is_no_network_is_refused_from_python(own):
    trained(own)
    with pytest.raises(ValueError, match=r"expected a network, its class .*, got 'x'"):
        load_compact(own / "run" / "compact", "x")


def test_load_from_checkpoint_says_what_to_give(own):
    path = trained(own)
    with pytest.raises(ValueError, match=r"network 'my_nets\.MyNet', this module has the backbone"):
        SSLLightningModule.load_from_checkpoint(path)
    from my_nets import MyNet

    module = SSLLightningModule.load_from_checkpoint(path, backbone=MyNet(12))
    assert isinstance(module.backbone.conv, nn.Conv2d)
    start = SSLLightningModule(MyNet(12), init_from=str(path))
    assert start.hparams["backbone_class"] == "my_nets.MyNet"


def test_a_config_beside_a_checkpoint_imports_nothing(own, capsys):
    """A run folder may come from anywhere; only `--data` names a data module to import."""
    path = trained(own)
    config = own / "run" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["data"]["class_path"] = "forged.Data"
    config.write_text(yaml.safe_dump(content))
    (own / "forged.py").write_text("raise SystemError('imported')")
    capsys.readouterr()
    arguments = [
        "benchmark",
        str(path),
        "--model=my_nets.MyNet",
        "--repeats=1",
        "--per_layer=false",
    ]
    assert main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Errors are not measured" in said
    assert "forged.Data" in said
    with pytest.raises(SystemError, match="imported"):
        main([*arguments, f"--data={config}"])
