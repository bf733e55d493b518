"""Training on from an entry of the zoo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ssl_lightning import SSLLightningModule, create_backbone, load_backbone, publishing, zoo
from ssl_lightning.cli import main
from ssl_lightning.compaction import load_compact
from ssl_lightning.zoo.cards import CONFIG
from test_cli import short_run
from zoo_runs import LOG, NAME, ZOO

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


def from_zoo(folder: Path, *extra: str) -> list[str]:
    """Arguments of a short run that starts from an entry and prunes a layer further."""
    penalties = '[{"kind": "neuron_out", "layers": "fc1", "strength": 0.001}]'
    extra = ("--model.penalties", penalties, "--model.backbone", f"zoo:{NAME}", *extra)
    return short_run(folder, *extra, "--trainer.limit_train_batches=2")


def test_a_module_from_an_entry_has_its_weights_and_trains():
    torch.manual_seed(0)
    module = SSLLightningModule(f"zoo:{NAME}")
    assert module.backbone.training
    torch.testing.assert_close(module.backbone.conv1.weight, zoo.load(NAME).conv1.weight)
    assert (module.num_classes, module.input_shape) == (10, (1, 28, 28))
    fresh = SSLLightningModule(f"zoo:{NAME}", {"pretrained": False})
    assert not torch.equal(fresh.backbone.conv1.weight, module.backbone.conv1.weight)
    with pytest.raises(ValueError, match=r"has no argument 'pretraind'. Did you mean pretrained"):
        SSLLightningModule(f"zoo:{NAME}", {"pretraind": False})
    with pytest.raises(ValueError, match="Unknown zoo entry 'lenet'"):
        SSLLightningModule("zoo:lenet")
    with pytest.raises(ValueError, match=r"entry of the zoo.*zoo\.load"):
        create_backbone(f"zoo:{NAME}")


def test_fresh_weights_have_the_scale_of_their_own_number_of_inputs():
    torch.manual_seed(0)
    fresh, dense = zoo.load(NAME, pretrained=False), create_backbone("lenet")
    assert fresh.conv2.in_channels < dense.conv2.in_channels
    for model in (fresh, dense):
        fan_in = model.conv2.weight[0].numel()
        deviation = float(model.conv2.weight.detach().std())
        assert deviation * fan_in**0.5 == pytest.approx(1, rel=0.1)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A finished run that started from an entry, with the zoo out of sight afterwards."""
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(from_zoo(folder, *LOG)) == 0
    return folder / "run"


def test_checkpoints_of_such_runs_are_compacted_without_the_zoo(tuned, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_ZOO_DIR", str(tmp_path / "nowhere"))
    checkpoint = str(tuned / "checkpoints" / "last.ckpt")
    assert main(["compact", checkpoint, "--output", str(tmp_path / "small")]) == 0
    small, saved = load_compact(tmp_path / "small"), load_compact(tuned / "compact")
    trained = load_backbone(checkpoint)
    assert (trained.name, trained.started_from.backbone) == (f"zoo:{NAME}", "lenet")
    x = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        for model in (small, saved):
            torch.testing.assert_close(model(x), trained.model(x))
    assert small.fc1.out_features < zoo.load(NAME, root=ZOO).fc1.out_features
    assert json.loads((tmp_path / "small" / "plan.json").read_text())["backbone"] == "lenet"


def test_such_runs_are_tested_resumed_and_published(tuned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = f"--ckpt_path={tuned / 'checkpoints/last.ckpt'}"
    assert main(["test", f"--config={tuned / CONFIG}", checkpoint]) == 0
    publishing.publish(tuned, "tuned", tmp_path / "zoo")
    card = zoo.card("tuned", tmp_path / "zoo")
    assert (card.backbone, card.dense.macs) == ("lenet", 2_293_000)
    assert card.compact.macs < zoo.card(NAME, ZOO).compact.macs
    assert all(c.ok for c in publishing.verify("tuned", tmp_path / "zoo", latency=False))
    monkeypatch.setenv("SSL_ZOO_DIR", str(tmp_path / "nowhere"))
    assert main(["test", f"--config={tuned / CONFIG}", checkpoint]) == 1


def test_a_damaged_start_is_named(tuned, tmp_path):
    content = torch.load(tuned / "checkpoints" / "last.ckpt", weights_only=True)
    content["ssl_lightning"]["started_from"] = "{"
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"`started_from` in .*bad.ckpt is damaged"):
        load_backbone(tmp_path / "bad.ckpt")
