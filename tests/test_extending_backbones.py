"""A backbone of the user's own, in one file with public names: from its name to every command."""

from __future__ import annotations

import functools
import json
import logging
import sys

import pytest
import torch
import yaml
from torch import nn

from ssl_lightning import (
    BACKBONES,
    SSLLightningModule,
    benchmark,
    compact,
    create_backbone,
    list_backbones,
    load_backbone,
    load_compact,
    make_plan,
    publishing,
    register_backbone,
    save_compact,
    zoo,
)
from ssl_lightning.cli import main
from toy import short_config, toy_loader

OWN_FILE = '''
"""A backbone of one's own: this file is all that it takes."""

import torch
from torch import nn

from ssl_lightning import register_backbone


class Tiny(nn.Module):
    def __init__(self, width=8, act="relu", num_classes=10, pretrained=False):
        super().__init__()
        assert not pretrained, "asked for weights"
        self.conv = nn.Conv2d(1, width, 3)
        self.act, self.fc = getattr(torch, act), nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.act(self.conv(x)).amax((2, 3)))


register_backbone("tiny", Tiny, input_shape=(1, 28, 28))
'''

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


@pytest.fixture(autouse=True)
def table():
    """Take what a test registers out of the table again."""
    before = dict(BACKBONES)
    yield
    BACKBONES.clear()
    BACKBONES.update(before)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the file in it, importable; no test has imported it yet."""
    (tmp_path / "my_backbone.py").write_text(OWN_FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(logging, "raiseExceptions", False)
    yield tmp_path
    forget()


def forget():
    for module in ("my_backbone", "my_class"):
        sys.modules.pop(module, None)
    BACKBONES.pop("tiny", None)


def tiny(width=4, num_classes=10):
    layers = nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, num_classes)
    return nn.Sequential(*layers)


# --- in Python ---


def test_train_compact_save_load_and_measure_from_python(tmp_path, trainer):
    register_backbone("my-tiny", tiny, input_shape=(1, 8, 8))
    assert "my-tiny" in list_backbones()
    torch.manual_seed(0)
    penalty = {"kind": "filter", "layers": "0", "strength": 0.3}
    module = SSLLightningModule("my-tiny", backbone_args={"width": 6}, penalties=[penalty])
    trainer(max_epochs=3, enable_checkpointing=True).fit(module, toy_loader(), toy_loader())
    path = next(tmp_path.rglob("*.ckpt"))

    trained = load_backbone(path)
    assert trained.model.input_shape == (1, 8, 8)
    net, x = trained.model, torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        net[0].weight[:2], net[0].bias[:2] = 0, 0
    plan = make_plan(net, x)
    small = compact(net, plan)
    assert small[0].out_channels <= 4
    save_compact(tmp_path / "small", small, plan, "my-tiny", {"width": 6, "num_classes": 10})
    loaded = load_compact(tmp_path / "small")
    torch.testing.assert_close(loaded(x), net(x))
    measured = benchmark({"dense": net, "compact": loaded}, x, repeats=1)
    assert measured.models["compact"].macs < measured.models["dense"].macs

    del BACKBONES["my-tiny"]
    for read in (load_compact, lambda folder: load_backbone(path)):
        with pytest.raises(ValueError, match=r"'my-tiny' is not the name .* `register_backbone`"):
            read(tmp_path / "small")


def test_what_a_network_does_not_say_is_taken_from_the_registration():
    register_backbone("a", tiny, input_shape=[1, 8, 8])
    net = create_backbone("a", num_classes=3)
    assert (net.input_shape, net.num_classes) == ((1, 8, 8), 3)
    register_backbone("b", BACKBONES["lenet"], input_shape=(9, 9, 9))
    assert create_backbone("b").input_shape == (1, 28, 28)
    register_backbone("c", functools.partial(tiny, width=3))
    assert create_backbone("c")[0].out_channels == 3
    register_backbone("d", lambda **arguments: tiny(**arguments))
    assert create_backbone("d", width=5)[0].out_channels == 5


def test_a_taken_name_is_refused_unless_it_is_replaced():
    for name in ("lenet", "resnet20"):
        with pytest.raises(ValueError, match=rf"the name '{name}' already means .*replace=True"):
            register_backbone(name, tiny)
    assert create_backbone("lenet").conv1.out_channels == 20
    register_backbone("lenet", tiny, replace=True)
    assert create_backbone("lenet")[0].out_channels == 4


@pytest.mark.parametrize("name", ["", "timm:mine", "zoo:mine", "a b", "-a", "a..b", ".a", 3, None])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match=r"register_backbone: expected a name of letters"):
        register_backbone(name, tiny)


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (tiny, {"depth": 3}, r"has no argument `depth`. It accepts: width, num_classes"),
        (functools.partial(tiny, width=3), {"width": 4}, r"has no argument `width`"),
        (lambda width: tiny(width), {}, r"`mine`: missing a required argument: 'width'"),
        (lambda: 3, {}, r"`mine`: expected its factory to return a torch.nn.Module, got a int"),
    ],
)
def test_mistakes_in_creating_are_named(factory, arguments, message):
    register_backbone("mine", factory)
    with pytest.raises(ValueError, match=message):
        create_backbone("mine", **arguments)


@pytest.mark.parametrize("factory", [3, None, "tiny"])
def test_what_makes_no_network_is_refused(factory):
    with pytest.raises(ValueError, match=r"register_backbone: expected a class or function"):
        register_backbone("mine", factory)
    assert "mine" not in BACKBONES


# --- what a file may say ---


def refuse_weights(width=4, pretrained=True, weights="DEFAULT", checkpoint_path="a.pth"):
    assert (pretrained, weights, checkpoint_path) == (False, None, ""), "asked for weights"
    return tiny(width)


def test_a_file_never_lets_a_registered_backbone_look_for_weights(tmp_path):
    register_backbone("mine", refuse_weights)
    net, x = tiny(), torch.randn(1, 1, 8, 8)
    plan = make_plan(net, x)
    folder = save_compact(tmp_path, net, plan, "mine", {"pretrained": True, "weights": "V1"})
    recipe = json.loads((folder / "plan.json").read_text())
    assert recipe["arguments"] == {}
    recipe["arguments"] = {"pretrained": True, "weights": "V1", "checkpoint_path": "b.pth"}
    (folder / "plan.json").write_text(json.dumps(recipe))
    torch.testing.assert_close(load_compact(folder)(x), net(x))


@pytest.mark.parametrize("value", ["/etc/passwd", "a.pth", {"class_path": "x.Y"}, [1, "a"]])
def test_a_file_gives_a_registered_backbone_plain_values_only(tmp_path, value):
    register_backbone("mine", lambda **arguments: tiny())
    net = tiny()
    folder = save_compact(tmp_path, net, make_plan(net, torch.zeros(1, 1, 8, 8)), "mine", {})
    recipe = json.loads((folder / "plan.json").read_text())
    recipe["arguments"] = {"anything": value}
    (folder / "plan.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=r"the argument 'anything' of 'mine' is "):
        load_compact(folder)


# --- on the command line ---


def failing(arguments, capsys):
    assert main(arguments) == 1
    return " ".join(capsys.readouterr().err.split())


def test_the_name_works_on_the_command_line(own, capsys):
    content = short_config(own, "tiny")
    content["model"]["backbone_args"] = {"width": 12, "pretrained": False}
    (own / "own.yaml").write_text(yaml.safe_dump(content))
    fit = ["fit", "--config", "own.yaml"]
    assert "Unknown backbone `tiny`" in failing(fit, capsys)
    assert main([*fit, "--import", "my_backbone"]) == 0
    assert yaml.safe_load((own / "run/config.yaml").read_text())["import"] == "my_backbone"
    path, small = str(own / "run/checkpoints/last.ckpt"), str(own / "run/compact")
    known = "--import=my_backbone"
    for arguments in (
        ["compact", path],
        ["benchmark", path, "--repeats=1", "--threads=1", "--per_layer=false"],
        ["export", path],
        ["export", small],
    ):
        forget()
        said = failing(arguments, capsys)
        assert "'tiny' is not the name of a backbone" in said
        assert "`--import` names the module" in said
        assert "my_backbone" not in sys.modules
        assert main([*arguments, known]) == 0
    loaded, x = load_compact(small), torch.randn(2, 1, 28, 28)
    assert loaded.conv.out_channels < 12
    torch.testing.assert_close(loaded(x), load_backbone(path).model(x), rtol=1e-4, atol=1e-5)
    forget()
    assert main(["fit", "--config=run/config.yaml", f"--ckpt_path={path}"]) == 0  # it has the key
    assert main(["test", "--config=own.yaml", f"--ckpt_path={path}", known]) == 0


def test_a_module_that_is_not_there_is_named(own, capsys):
    said = failing(["compact", "a.ckpt", "--import", "no_such_module"], capsys)
    assert "--import: cannot import 'no_such_module': No module named" in said
    assert "PYTHONPATH" in said


# --- in the zoo ---


CLASS_BY_NAME = """
from my_backbone import Tiny
from ssl_lightning import register_backbone

register_backbone("my_backbone.Tiny", Tiny, input_shape=(1, 28, 28))
"""


@pytest.mark.parametrize("given", ["by name", "by class_path"])
def test_a_network_of_ones_own_is_published_once_it_is_registered(own, capsys, given):
    (own / "my_class.py").write_text(CLASS_BY_NAME)
    arguments = {"width": 12}
    content = short_config(own, "tiny")
    content["model"]["backbone_args"] = arguments
    known = ["--import", "my_backbone"]
    if given == "by class_path":
        content = short_config(own, {"class_path": "my_backbone.Tiny", "init_args": arguments})
        content["model"]["input_shape"] = [1, 28, 28]
        known = ["--import", "my_class"]
    content["seed_everything"] = 0
    (own / "own.yaml").write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", "own.yaml", "--import", "my_backbone"]) == 0
    forget()
    publish = ["zoo", "publish", "run", "--name", "mine", "--root", "my_zoo"]
    said = failing(publish, capsys)
    assert "register_backbone" in said
    assert "--import" in said
    assert not (own / "my_zoo" / "mine").exists()
    assert main([*publish, *known]) == 0
    card = zoo.card("mine", "my_zoo")
    assert card.compact.macs < card.dense.macs
    loaded = zoo.load("mine", root="my_zoo")
    assert loaded.conv.out_channels < 12
    assert loaded(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert all(check.ok for check in publishing.verify("mine", "my_zoo", latency=False))
    for name in ("tiny", "my_backbone.Tiny"):
        BACKBONES.pop(name, None)
    with pytest.raises(ValueError, match="register_backbone"):
        zoo.load("mine", root="my_zoo")
