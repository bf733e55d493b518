"""Checkpoints read from Python: nothing in them is executed, imported, opened or asked for."""

from __future__ import annotations

import io
import os
import sys

import pytest
import torch
from lightning.pytorch.plugins import AsyncCheckpointIO

from ssl_lightning import SSLLightningModule
from ssl_lightning.cli import main
from ssl_lightning.module.saving import WholeFiles
from toy import make_toy, toy_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
SHAPE = (1, 28, 28)


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


@pytest.fixture
def saved(trainer, tmp_path):
    """A trained module and its checkpoint."""
    module = SSLLightningModule("lenet", {"num_classes": 10})
    run = trainer(max_epochs=1)
    run.fit(module, toy_loader(16, shape=SHAPE))
    run.save_checkpoint(tmp_path / "a.ckpt")
    return module, tmp_path / "a.ckpt"


def forge(path, **changes):
    """Replace parts of a checkpoint; a dot in a name leads into a part."""
    content = torch.load(path, weights_only=True)
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            content[part][key] = value
        else:
            content[part] = value
    torch.save(content, path)


READERS = {
    "load": lambda trainer, given, path: SSLLightningModule.load_from_checkpoint(path),
    "fit": lambda trainer, given, path: trainer.fit(*given, ckpt_path=path),
    "validate": lambda trainer, given, path: trainer.validate(*given, ckpt_path=path),
    "test": lambda trainer, given, path: trainer.test(*given, ckpt_path=path),
    "predict": lambda trainer, given, path: trainer.predict(*given, ckpt_path=path),
}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("stage", READERS)
def test_nothing_is_unpickled(trainer, saved, tmp_path, monkeypatch, stage, force):
    _, path = saved
    forge(path, epoch=0, state=Bomb(tmp_path / "marker"))
    if force:  # torch's switch for old programs is not ours
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    given = (SSLLightningModule("lenet"), toy_loader(16, shape=SHAPE))
    with pytest.raises(ValueError, match=r"a\.ckpt cannot be read as a checkpoint.*plain val"):
        READERS[stage](trainer(max_epochs=2), given, path)
    assert not (tmp_path / "marker").exists()


def test_who_trusts_a_file_can_say_so(saved, trainer, tmp_path):
    module, path = saved
    forge(path, state=Bomb(tmp_path / "marker"))
    again = SSLLightningModule.load_from_checkpoint(path, weights_only=False)
    assert (tmp_path / "marker").exists()
    assert torch.equal(again.backbone.conv1.weight, module.backbone.conv1.weight)
    (tmp_path / "marker").rmdir()
    trainer(max_epochs=2).fit(again, toy_loader(16, shape=SHAPE), ckpt_path=path,
                              weights_only=False)  # fmt: skip
    assert (tmp_path / "marker").exists()


def test_a_writer_within_another_reads_and_writes_as_safely(saved, trainer, tmp_path):
    module, path = saved
    run = trainer(max_epochs=1, plugins=[AsyncCheckpointIO()])
    run.fit(module, toy_loader(16, shape=SHAPE))
    writer = run.strategy.checkpoint_io
    assert isinstance(writer, AsyncCheckpointIO)
    assert isinstance(writer.checkpoint_io, WholeFiles)
    forge(path, state=Bomb(tmp_path / "marker"))
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        trainer(max_epochs=2, plugins=[AsyncCheckpointIO()]).fit(
            SSLLightningModule("lenet"), toy_loader(16, shape=SHAPE), ckpt_path=path
        )
    assert not (tmp_path / "marker").exists()


CODE = "raise SystemExit('imported')\n"
NAMED = {
    "instantiator": ({"hyper_parameters___instantiator": "forged_code.run"}, "'_instantiator'"),
    "allowed instantiator": (
        {
            "hyper_parameters___instantiator": "lightning.pytorch.cli.instantiate_module",
            "hyper_parameters__optimizer": {"class_path": "forged_code.Optimizer"},
        },
        "'_instantiator' is",
    ),
    "class": ({"hyper_parameters___class_path": "forged_code.Module"}, "'_class_path'"),
    "optimizer": ({"hyper_parameters__optimizer": "forged_code.SGD"}, "'optimizer'"),
    "start": ({"hyper_parameters__init_from": "/named/by/the/file"}, "'init_from'"),
    "old settings": ({"hparams": {"_instantiator": "forged_code.run"}}, "'_instantiator'"),
    "older settings": ({"module_arguments": {"init_from": "x"}}, "'init_from'"),
    "settings elsewhere": ({"hparams_name": "backbone"}, "`hparams_name` is 'backbone'"),
    "no settings": ({"hyper_parameters": ["lenet"]}, "expected its `hyper_parameters` as Mapping"),
    "timm weights": (
        {
            "hyper_parameters__backbone": "timm:resnet10t",
            "hyper_parameters__backbone_args": {"checkpoint_path": "named.pth"},
        },
        "'checkpoint_path' of 'timm:resnet10t' is not one of the network's own",
    ),
    "torchvision weights": (
        {
            "hyper_parameters__backbone": "torchvision:mobilenet_v3_small",
            "hyper_parameters__backbone_args": {"weights": "DEFAULT"},
        },
        "'weights' of 'torchvision:mobilenet_v3_small' is not one of",
    ),
    "an entry": (
        {
            "hyper_parameters__backbone": "zoo:lenet_mnist_shape",
            "hyper_parameters__backbone_args": {"root": "/named/by/the/file"},
        },
        "of the entry 'zoo:lenet_mnist_shape', but has no `started_from`",
    ),
    "another network": ({"hyper_parameters__backbone": "mlp"}, "does not fit SSLLightningModule"),
    "no shape": ({"hyper_parameters__input_shape": {"a": 1}}, "its setting 'input_shape' is"),
    "no penalties": ({"hyper_parameters__penalties": 3}, "its setting 'penalties' is 3"),
    "a penalty's file": ({"hyper_parameters__penalties": ["a.yaml"]}, "expected mappings in 'pen"),
    "a call": (
        {"hyper_parameters__penalties": [{"class_path": "forged_code.Penalty"}]},
        "the setting 'penalties' holds",
    ),
    "a call in depth": (
        {"hyper_parameters__backbone_args": {"num_classes": {"init_args": {}}}},
        "the setting 'backbone_args' holds",
    ),
    "a call as text": (
        {"hyper_parameters__lr_interval": "{class_path: forged_code.run}"},
        "the setting 'lr_interval' holds",
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_settings_name_nothing(saved, tmp_path, monkeypatch, case):
    _, path = saved
    (tmp_path / "forged_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    changes, message = NAMED[case]
    forge(path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        SSLLightningModule.load_from_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "forged_code" not in sys.modules


PARSED = {
    **{name: NAMED[name][0] for name in NAMED if name not in ("old settings", "older settings")},
    "a shell": {
        "hyper_parameters__penalties": [
            {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "marker"]}}
        ]
    },
    "an argument": {
        "hyper_parameters__backbone_args": {
            "num_classes": {
                "class_path": "logging.FileHandler",
                "init_args": {"filename": "marker"},
            }
        }
    },
    "a backbone": {"hyper_parameters__backbone": {"class_path": "forged_code.Net"}},
    "a backbone's name": {"hyper_parameters__backbone": "forged_code.Net"},
    "a class of one's own": {"hyper_parameters__backbone_class": "forged_code.Net"},
    "a scheduler": {"hyper_parameters__lr_scheduler": {"class_path": "forged_code.Scheduler"}},
    "a file": {"hyper_parameters__backbone_args": "/named/by/the/file"},
    "another setting": {"hyper_parameters__callbacks": "forged_code.Callback"},
}


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("case", PARSED)
def test_commands_import_nothing_that_a_checkpoint_names(
    saved, tmp_path, monkeypatch, capsys, case, command
):
    """Lightning's command line lets its parser read the settings in a checkpoint."""
    _, path = saved
    (tmp_path / "forged_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    forge(path, **PARSED[case])
    data = ["--data=MNISTDataModule", "--data.source=bundled", "--trainer.logger=false"]
    assert main([command, *data, f"--ckpt_path={path}", "--trainer.fast_dev_run=true"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "marker").exists()
    assert "forged_code" not in sys.modules


def test_settings_of_the_caller_replace_those_of_the_file(saved, tmp_path):
    module, path = saved
    forge(path, hyper_parameters__backbone="timm:x", hyper_parameters__backbone_args={"y": "z"},
          hyper_parameters__optimizer="named")  # fmt: skip
    again = SSLLightningModule.load_from_checkpoint(
        path, backbone="lenet", backbone_args={}, optimizer=torch.optim.SGD
    )
    assert torch.equal(again.backbone.fc1.weight, module.backbone.fc1.weight)
    own = SSLLightningModule.load_from_checkpoint(
        io.BytesIO(path.read_bytes()), backbone=module.backbone, backbone_args={}, optimizer=None
    )
    assert own.backbone is module.backbone


def test_a_checkpoint_of_an_entry_is_read_without_the_zoo(trainer, tmp_path, monkeypatch):
    module = SSLLightningModule("zoo:mlp_mnist_neuron_small")
    run = trainer(max_epochs=1)
    run.fit(module, toy_loader(16, shape=SHAPE))
    run.save_checkpoint(tmp_path / "a.ckpt")
    monkeypatch.setenv("SSL_ZOO_DIR", str(tmp_path / "none"))
    again = SSLLightningModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(again.backbone.fc1.layer.weight, module.backbone.fc1.layer.weight)
    assert (again.hparams["backbone"], again.started_from) == (
        "zoo:mlp_mnist_neuron_small",
        module.started_from,
    )


def test_an_open_file_is_read_as_safely(saved):
    _, path = saved
    forge(path, hyper_parameters___instantiator="forged_code.run")
    with path.open("rb") as file, pytest.raises(ValueError, match="'_instantiator'"):
        SSLLightningModule.load_from_checkpoint(file)


def test_a_remote_file_is_read_as_safely(saved):
    module, path = saved
    again = SSLLightningModule.load_from_checkpoint(f"file://{path}")
    assert torch.equal(again.backbone.conv1.weight, module.backbone.conv1.weight)
    forge(path, hyper_parameters___instantiator="forged_code.run")
    with pytest.raises(ValueError, match="'_instantiator'"):
        SSLLightningModule.load_from_checkpoint(f"file://{path}")


class OwnSetup(SSLLightningModule):
    def setup(self, stage):
        pass


@pytest.mark.parametrize("place", ["{}", "file://{}"])
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_subclass_with_its_own_setup_reads_as_safely(trainer, saved, tmp_path, place, stage):
    _, path = saved
    forge(path, extra=Bomb(tmp_path / "marker"))
    given = OwnSetup("lenet"), toy_loader(16, shape=SHAPE)
    with pytest.raises(ValueError, match="holds objects beside tensors") as caught:
        READERS[stage](trainer(max_epochs=2), given, place.format(path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "marker").exists()


def test_the_method_is_still_of_the_class(saved):
    module, path = saved
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        module.load_from_checkpoint(path)


class Own(SSLLightningModule):
    """A module of a user, with its network in its code."""

    def __init__(self, width: int = 3) -> None:
        super().__init__(make_toy())
        self.save_hyperparameters()


def test_modules_of_users_are_read(trainer, tmp_path):
    run = trainer(max_epochs=1)
    run.fit(Own(5), toy_loader(16))
    run.save_checkpoint(tmp_path / "own.ckpt")
    assert Own.load_from_checkpoint(tmp_path / "own.ckpt").hparams["width"] == 5


BROKEN = {
    "origin": ({"ssl_lightning__origin": {"x": 1}}, "`origin`"),
    "locks": ({"ssl_lightning__locks": [{"parameter": "w"}]}, "`locks`"),
    "huge locks": (
        {"ssl_lightning__locks": [{"parameter": "w", "shape": [10**12], "locked": [1]}]},
        "`locks`",
    ),
    "locks of nothing": (
        {"ssl_lightning__locks": [{"parameter": "w", "shape": [2], "locked": [1]}]},
        "`locks`.*w.*with the shape of the network",
    ),
    "seed": ({"ssl_lightning__run_seed": "x"}, "`run_seed`"),
    "plans": ({"ssl_lightning__plans": [3]}, "`plans`"),
    "states": ({"optimizer_states": {"a": 1}}, "expected its `optimizer_states` as list"),
    "epoch": ({"epoch": "x"}, "expected its `epoch` as int, got 'x'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_parts_are_named(saved, trainer, case):
    _, path = saved
    changes, message = BROKEN[case]
    forge(path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        SSLLightningModule.load_from_checkpoint(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        trainer(max_epochs=2).fit(
            SSLLightningModule("lenet"), toy_loader(16, shape=SHAPE), ckpt_path=path
        )
