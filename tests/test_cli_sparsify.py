"""sparsify: one command from a network to a compact, measured, exported one beside controls."""

from __future__ import annotations

import json
import logging

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml
from torch import nn

from ssl_lightning import compact, count_macs, create_backbone, load_compact, make_plan, zoo
from ssl_lightning.callbacks import SaveCompact
from ssl_lightning.checkpoints import load_backbone
from ssl_lightning.cli import main
from ssl_lightning.cli.ways import GIVEN, NARROW, RESULT, fresh, ways
from ssl_lightning.data import MNISTDataModule
from ssl_lightning.files import FolderLock
from ssl_lightning.groups import KINDS
from ssl_lightning.measure import num_parameters

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")

DATA = {"source": "bundled", "batch_size": 32, "num_validation": 500}
CONFIG = {
    "seed_everything": 0,
    "model": {
        "backbone": "lenet",
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02, "momentum": 0.9}},
    },
    "data": {"class_path": "MNISTDataModule", "init_args": DATA},
    "trainer": {
        "max_epochs": 9,  # the command says 2
        "limit_train_batches": 6,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a config."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def arguments(*more, output="out"):
    return [
        "sparsify",
        "--config=config.yaml",
        "--epochs=2",
        "--repeats=3",
        f"--output={output}",
        *more,
    ]


def rows(folder):
    return {row["name"]: row for row in json.loads((folder / "result.json").read_text())}


def wrong_share(model):
    """Validation error in percent, counted apart from the library."""
    data = MNISTDataModule(**DATA)
    wrong = total = 0
    with torch.inference_mode():
        for images, labels in data.val_dataloader():
            wrong += int((model.eval()(images).argmax(1) != labels).sum())
            total += len(labels)
    return 100 * wrong / total


def test_the_whole_way_with_controls(folder, capsys):
    assert main(arguments("--budget.macs=0.5", "--engine=onnxruntime", "--controls")) == 0
    said = capsys.readouterr().out
    found, out = rows(folder / "out"), folder / "out"
    assert list(found) == ["given", "result", "dense", "one_shot", "random", "narrow"]
    image = torch.zeros(1, 1, 28, 28)
    for name, row in found.items():
        model = load_compact(str(out / name / "compact"))
        assert (row["macs"], row["parameters"]) == (count_macs(model, image), num_parameters(model))
        assert row["latency_ms"] > 0
        if name == "given":
            assert row["value"] is None  # its weights are as they were drawn
        else:
            assert row["value"] == pytest.approx(wrong_share(model), abs=1e-3)
        assert (100 if name in ("given", "dense") else 40) <= row["macs_left"] <= 100
        assert row["macs_left"] <= 50 or name in ("given", "dense")
        assert row["label"] in said
    assert found["given"]["latency_left"] == 100
    masked = load_backbone(str(out / "result/checkpoints/last.ckpt")).model
    small = load_compact(str(out / "result/compact")).eval()
    x = torch.rand(1, 1, 28, 28)
    again = compact(masked, make_plan(masked, image)).eval()
    torch.testing.assert_close(small(x), again(x), atol=1e-5, rtol=0)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (exported,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(exported, small(x).detach().numpy(), atol=1e-4)
    assert (out / "result.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob("*/resume"))


def test_controls_differ_from_the_result_in_one_thing_only():
    budget = {"class_path": "Budget", "init_args": {"macs": 0.5, "method": "gradual", "end": 3}}
    config = {
        "model": {"backbone": "zoo:lenet_mnist_dense", "penalties": [{"kind": "coupled"}]},
        "trainer": {"max_epochs": 6},
        "budget": budget,
    }
    found = ways(config, controls=True)
    assert found[RESULT] == config
    for name, given in found.items():
        arguments = (given["budget"] or {}).get("init_args", {})
        assert arguments.get("macs", 0.5) == 0.5, name
        assert given["trainer"]["max_epochs"] == (0 if name == GIVEN else 6), name
        assert given["model"]["backbone"] == "zoo:lenet_mnist_dense"
    assert found["one_shot"]["budget"]["init_args"]["end"] == 3
    assert found["one_shot"]["budget"]["init_args"]["method"] == "one_shot"
    assert found[NARROW]["model"]["backbone_args"] == {"pretrained": False}
    assert found[NARROW]["budget"]["init_args"]["end"] == 0
    assert list(ways(config, controls=False)) == [GIVEN, RESULT]
    with pytest.raises(ValueError, match="leave --controls out"):
        fresh({"backbone": {"class_path": "ssl_lightning.load_compact"}})


def test_all_runs_have_a_learning_rate_cycle(folder, capfd):
    """A scheduler of the user's own counts for all; without one the dense run gets a cycle too."""
    assert main(arguments("--budget.macs=0.5", "--controls")) == 0
    rates = {}
    for name in ("result", "dense", "random", "narrow"):
        path = folder / "out" / name / "checkpoints/last.ckpt"
        content = torch.load(path, weights_only=False)
        (state,) = content["lr_schedulers"]
        rates[name] = state["_last_lr"][0]
    assert len(set(rates.values())) == 1, rates
    assert rates["dense"] < 0.02


def test_trained_networks_are_measured_as_they_are_given(folder):
    model = ["--model.backbone=zoo:lenet_mnist_dense", "--budget.macs=0.3"]
    assert main(arguments(*model)) == 0
    found = rows(folder / "out")
    assert list(found) == ["given", "result"]
    expected = wrong_share(zoo.load("lenet_mnist_dense"))
    assert found["given"]["value"] == pytest.approx(expected, abs=1e-3)


def test_weights_of_another_run_are_measured_too(folder):
    torch.manual_seed(5)
    first = ["fit", "--config=config.yaml", "--trainer.max_epochs=1"]
    assert main([*first, "--trainer.default_root_dir=first"]) == 0
    (path,) = (folder / "first").rglob("*.ckpt")
    assert main(arguments(f"--model.init_from={path}", "--budget.macs=0.5")) == 0
    expected = wrong_share(load_backbone(str(path)).model)
    assert rows(folder / "out")["given"]["value"] == pytest.approx(expected, abs=1e-3)


def test_the_dense_network_is_measured_as_it_is(folder):
    """timm's ResNets begin with whole branches behind batch norms of scale zero."""
    network = {"backbone": "timm:resnet10t", "backbone_args": {"num_classes": 10, "in_chans": 1}}
    config = {**CONFIG, "model": {**CONFIG["model"], **network, "input_shape": [1, 28, 28]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(arguments("--budget.macs=0.5", "--budget.end=1")) == 0
    dense = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    found = rows(folder / "out")
    assert found["given"]["macs"] == count_macs(dense, torch.zeros(1, 1, 28, 28))
    assert found["given"]["parameters"] == num_parameters(dense)
    assert found["result"]["macs_left"] <= 50


def test_a_file_of_weights_is_where_a_run_begins(folder):
    torch.manual_seed(5)
    net = create_backbone("lenet")
    torch.save(net.state_dict(), "mine.pt")
    assert main(arguments("--model.init_from=mine.pt", "--budget.macs=0.5")) == 0
    expected = wrong_share(net)
    assert rows(folder / "out")["given"]["value"] == pytest.approx(expected, abs=1e-3)


def test_the_same_command_continues_after_a_stop(folder, monkeypatch, capsys):
    command = ["--budget.macs=0.5", "--controls", "--budget.end=1"]
    assert main(arguments(*command, output="whole")) == 0
    original = SaveCompact.on_fit_end

    def stopped(self, trainer, module):
        if "random" in str(self.folder):
            raise KeyboardInterrupt
        original(self, trainer, module)

    monkeypatch.setattr(SaveCompact, "on_fit_end", stopped)
    assert main(arguments(*command)) == 130
    assert "The same command continues" in capsys.readouterr().out
    assert (folder / "out/random/resume/last.ckpt").is_file()
    monkeypatch.setattr(SaveCompact, "on_fit_end", original)
    before = (folder / "out/result/compact/model.safetensors").stat().st_mtime_ns
    assert main(arguments(*command)) == 0
    assert "of an earlier run and will be replaced" not in capsys.readouterr().out
    assert (folder / "out/result/compact/model.safetensors").stat().st_mtime_ns == before
    whole, continued = rows(folder / "whole"), rows(folder / "out")
    figures = ("value", "macs", "parameters")
    assert {n: [r[f] for f in figures] for n, r in whole.items()} == {
        n: [r[f] for f in figures] for n, r in continued.items()
    }


def test_other_settings_are_refused_in_the_same_folder(folder, capsys):
    assert main(arguments("--budget.macs=0.5")) == 0
    assert main(arguments("--budget.macs=0.4")) == 1
    said = capsys.readouterr().err
    assert "out was begun with other settings: " in said
    assert "macs" in said


def test_a_refused_budget_leaves_the_folder_to_the_next(folder, capsys):
    assert main(arguments("--budget.macs=0.0001")) == 1
    assert "cannot be reached" in capsys.readouterr().err
    assert not (folder / "out").exists()
    assert main(arguments("--budget.macs=0.5")) == 0


def test_a_second_command_in_the_folder_of_a_running_one_changes_nothing(folder, capsys):
    assert main(arguments("--budget.macs=0.5")) == 0
    before = (folder / "out/sparsify.json").read_bytes()
    lock = FolderLock(folder / "out")
    assert main(arguments("--budget.macs=0.5")) == 1
    assert "(--output), or wait" in capsys.readouterr().err
    lock.release()
    assert (folder / "out/sparsify.json").read_bytes() == before


def test_another_metric_needs_no_other_training(folder, capsys):
    command = ["--budget.macs=0.5", "--metric=val/f1"]
    assert main(arguments(*command)) == 1
    assert "Known: val/loss, val/error. Give one of them" in capsys.readouterr().err
    before = (folder / "out/result/compact/model.safetensors").stat().st_mtime_ns
    assert main(arguments("--budget.macs=0.5", "--metric=val/loss")) == 0
    assert rows(folder / "out")["result"]["metric"] == "val/loss"
    assert main(arguments("--budget.macs=0.5")) == 0
    assert rows(folder / "out")["result"]["metric"] == "val/error"
    assert (folder / "out/result/compact/model.safetensors").stat().st_mtime_ns == before


def test_controls_added_later_are_shown_from_then_on(folder):
    command = ["--budget.macs=0.5", "--split=test"]
    assert main(arguments(*command)) == 0
    assert list(rows(folder / "out")) == ["given", "result"]
    assert main(arguments(*command, "--controls")) == 0
    whole = rows(folder / "out")
    assert len(whole) == 6
    assert whole["result"]["metric"] == "test/error"
    assert main(arguments(*command)) == 0
    assert list(rows(folder / "out")) == list(whole)


class Tiny(nn.Module):
    """Of the user's own; without an error among its metrics."""

    input_shape = (3, 28, 28)

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


def test_a_network_of_ones_own_and_another_metric(folder, capsys):
    (folder / "task.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {
                    "backbone": {"class_path": f"{__name__}.Tiny"},
                    "loss": {"class_path": "torch.nn.MSELoss"},
                },
                "data": {
                    "class_path": "SyntheticDataModule",
                    "init_args": {"task": "regression", "channels": 3, "num_validation": 20},
                },
            }
        )
    )
    command = ["--config=task.yaml", "--budget.macs=0.5", "--controls"]
    assert main(arguments(*command)) == 0, capsys.readouterr().err
    found = rows(folder / "out")
    assert len(found) == 6
    assert {row["metric"] for row in found.values()} == {"val/loss"}


MISTAKES = {
    "shape": (
        ["--budget.macs=0.5", f"--model.backbone.class_path={__name__}.Tiny"],
        "Tiny takes images (3, 28, 28), the data has (1, 28, 28). They differ in",
    ),
    "percent": (["--budget.macs=50"], "as a share of at most 1, or a number of at least 101"),
    "none": ([], "expected a budget, got none. Give one, such as --budget.macs 0.5"),
    "engine": (["--budget.macs=0.5", "--engine=nothing"], "Unknown engine 'nothing'"),
    "devices": (["--budget.macs=0.5", "--trainer.devices=2"], "expected one process"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(folder, capsys, case):
    more, message = MISTAKES[case]
    assert main(arguments(*more)) == 1
    assert message in capsys.readouterr().err


def test_the_budget_may_be_given_as_a_key_of_any_config(folder):
    """Of `fit`: from a file and from the command line, and the stored config runs again."""
    (folder / "budget.yaml").write_text("budget: {macs: 0.5, end: 1}\n")
    fit = ["fit", "--config=config.yaml", "--trainer.max_epochs=2", "--trainer.callbacks"]
    fit += ['[{"class_path": "SaveCompact"}]', "--trainer.default_root_dir"]
    assert main([*fit, "a", "--config=budget.yaml"]) == 0
    assert main([*fit, "b", "--budget.macs=0.5", "--budget.end=1"]) == 0
    assert main(["fit", "--config=a/config.yaml", "--trainer.default_root_dir=c"]) == 0
    networks = [load_compact(f"{name}/compact").state_dict() for name in "abc"]
    for other in networks[1:]:
        assert {k: v.shape for k, v in networks[0].items()} == {
            k: v.shape for k, v in other.items()
        }
        assert all(torch.equal(networks[0][key], other[key]) for key in other)
    stored = yaml.safe_load((folder / "a/config.yaml").read_text())["budget"]["init_args"]
    assert (stored["macs"], stored["end"]) == (0.5, 1)
    (path,) = (folder / "a").rglob("*.ckpt")
    assert main(["test", "--config=a/config.yaml", f"--ckpt_path={path}"]) == 0


def test_kinds_need_no_strength(folder):
    assert "coupled" in KINDS
    penalties = '[{"kind": "coupled", "layers": "conv*"}]'
    assert main(arguments("--budget.macs=0.6", f"--model.penalties={penalties}")) == 0
    small = load_compact("out/result/compact")
    assert small.get_submodule("fc1").out_features == 500
    assert count_macs(small, torch.zeros(1, 1, 28, 28)) <= 0.6 * 2_293_000
