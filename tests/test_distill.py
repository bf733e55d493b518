"""Distill: the loss by hand, what it leaves alone, and that it follows the network's changes."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.optim import SGD

from ssl_lightning import Budget, Distill, SSLLightningModule
from ssl_lightning.callbacks.distill import attention, soft_targets, squared_difference
from ssl_lightning.cli import main
from toy import KilledError, killed_and_resumed, make_toy, short_config, toy_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


def module_of(net=None, **settings):
    given = {"optimizer": partial(SGD, lr=0.05), "input_shape": (1, 8, 8)}
    return SSLLightningModule(net or make_toy(1), **{**given, **settings})


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3, 3)])
def test_soft_targets_against_numpy(temperature, shape):
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    rows = [z.movedim(1, -1).reshape(-1, shape[1]).numpy() / temperature for z in (s, t)]
    q, p = map(softmax, rows)
    expected = (p * np.log(p / q)).sum(1).mean() * temperature**2
    assert float(soft_targets(s, t, temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(squared_difference(s, t, temperature)) == pytest.approx(
        float(((s - t) ** 2).mean()), rel=1e-12
    )


def test_attention_maps_against_numpy():
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    maps = (x.numpy() ** 2).mean(1).reshape(2, 12)
    expected = maps / np.sqrt((maps**2).sum(1, keepdims=True))
    np.testing.assert_allclose(attention(x).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("features", [None, ["conv2"], {"conv1": "conv2"}])
def test_training_is_that_of_a_loop_written_by_hand(trainer, features):
    """In float64, with a batch norm in training mode, against a loop without any hook."""
    net, teacher = make_toy(1).double(), make_toy(2).double().eval()
    reference = make_toy(1).double()
    module = module_of(net)
    callback = Distill(teacher, 0.7, 3.0, features=features, feature_weight=5.0)
    loader = toy_loader(dtype=torch.float64)
    run = trainer(max_epochs=1, precision="64-true", callbacks=[callback])
    run.fit(module, loader)

    pairs = {} if features is None else dict(zip(features, ["conv2"], strict=True))
    outputs = {}

    def keep(name, module, arguments, output):
        outputs[name] = output

    for name, other in pairs.items():
        reference.get_submodule(name).register_forward_hook(partial(keep, "mine"))
        teacher.get_submodule(other).register_forward_hook(partial(keep, "other"))
    sgd = SGD(reference.parameters(), lr=0.05)
    for x, y in loader:
        s = reference(x)
        with torch.no_grad():
            t = teacher(x)
        p, log_q = (t / 3).softmax(1), (s / 3).log_softmax(1)
        distance = (p * (p.log() - log_q)).sum() / len(x) * 9
        loss = 0.3 * nn.functional.cross_entropy(s, y) + 0.7 * distance
        if pairs:
            maps = [o.pow(2).mean(1).flatten(1) for o in (outputs["mine"], outputs["other"])]
            unit = [m / m.norm(dim=1, keepdim=True) for m in maps]
            loss = loss + 5.0 * (unit[0] - unit[1]).pow(2).mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    for name, weight in reference.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], weight, rtol=1e-9, atol=1e-12)
    assert float(run.callback_metrics["distill/loss"]) == pytest.approx(float(distance.detach()))


def test_the_teacher_is_left_as_it_was_and_is_in_no_checkpoint(trainer, tmp_path):
    teacher = make_toy(2).train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    module = module_of()
    names = set(module.state_dict())
    run = trainer(max_epochs=1, callbacks=[Distill(teacher)])
    run.fit(module, toy_loader())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert set(module.state_dict()) == names
    run.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert set(content["state_dict"]) == names
    assert "training_step" not in vars(module)
    assert not any(m._forward_hooks for m in module.modules())


def test_the_module_is_restored_after_an_error(trainer):
    class Fails(Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("stop")

    module = module_of()
    with pytest.raises(RuntimeError, match="stop"):
        trainer(max_epochs=1, callbacks=[Distill(make_toy(2)), Fails()]).fit(module, toy_loader())
    assert "training_step" not in vars(module)


class Kill(Callback):
    def __init__(self, at):
        self.at = at

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.at:
            raise KilledError


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("kill", [5, 11, 20])
def test_with_a_budget_a_killed_run_resumes_bit_equal(trainer, tmp_path, kill):
    def fit(folder, at=None):
        torch.manual_seed(5)
        module = module_of(make_toy(1, dropout=0.2))
        keep = ModelCheckpoint(
            folder, save_last=True, every_n_train_steps=1, enable_version_counter=False
        )
        callbacks = [Budget(macs=0.6, end=1), Distill(make_toy(2)), Kill(at), keep]
        run = trainer(max_epochs=3, enable_checkpointing=True, callbacks=callbacks)
        last = folder / "last.ckpt"
        run.fit(module, toy_loader(), ckpt_path=last if last.exists() else None)
        return module

    whole, _ = killed_and_resumed(fit, tmp_path, kill)
    assert whole.backbone.conv1.out_channels < 6


@pytest.mark.parametrize("source", ["zoo", "checkpoint"])
def test_teachers_by_name(trainer, tmp_path, source):
    path = "zoo:lenet_mnist_dense"
    if source == "checkpoint":
        first = SSLLightningModule("lenet")
        run = trainer(max_epochs=1)
        run.fit(first, toy_loader(shape=(1, 28, 28)))
        path = str(tmp_path / "teacher.ckpt")
        run.save_checkpoint(path)
    callback = Distill(path)
    module = SSLLightningModule("lenet", optimizer=partial(SGD, lr=0.0))
    run = trainer(max_epochs=1, callbacks=[callback])
    run.fit(module, toy_loader(8, shape=(1, 28, 28)))
    assert float(run.callback_metrics["distill/loss"]) > 0


def test_in_a_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = short_config(tmp_path, "lenet")
    config["model"]["penalties"] = []
    config["model"]["optimizer"]["init_args"]["lr"] = 0.001
    teacher = {"teacher": "zoo:lenet_mnist_dense", "temperature": 2.0, "features": ["conv1"]}
    config["trainer"]["callbacks"] = [{"class_path": "Distill", "init_args": teacher}]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["fit", "--config=config.json"]) == 0
    teacher["features"] = ["conv3"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["fit", "--config=config.json"]) == 1
    assert "expected layers of the network as features, got 'conv3'" in capsys.readouterr().err


def test_its_cost_is_reported(trainer, monkeypatch):
    said = []
    monkeypatch.setattr("ssl_lightning.callbacks.distill.rank_zero_info", said.append)
    trainer(max_epochs=1, callbacks=[Distill(make_toy(2))]).fit(module_of(), toy_loader(8))
    macs = 8 * 8 * 9 * 6 + 8 * 8 * 9 * 36 + 96 * 10
    (text,) = said
    assert f"{macs / 1e6:.4g} million multiply-adds per input" in text
    assert "33% of the network's own" in text


MISTAKES = {
    "weight": ({"weight": 1.5}, ValueError, "0 <= weight <= 1"),
    "temperature": ({"temperature": 0.0}, ValueError, "temperature > 0"),
    "loss": ({"loss": "kl"}, ValueError, "Unknown loss 'kl'"),
    "layer": (
        {"features": ["conv3"]},
        ValueError,
        "layers of the network as features, got 'conv3'",
    ),
    "teacher's": ({"features": {"conv1": "x"}}, ValueError, "layers of the teacher as features"),
    "positions": ({"features": ["fc"]}, ValueError, "features with the same positions"),
    "entry": ({"teacher": "zoo:nothing"}, ValueError, "nothing"),
    "file": ({"teacher": "no.ckpt"}, FileNotFoundError, "No checkpoint at no.ckpt"),
    "classes": (
        {"teacher": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))},
        ValueError,
        r"got \(8, 10\) of the network and \(8, 3\) of the teacher",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(trainer, case):
    settings, error, message = MISTAKES[case]
    with pytest.raises(error, match=message):
        trainer(max_epochs=1, callbacks=[Distill(**{"teacher": make_toy(2), **settings})]).fit(
            module_of(), toy_loader()
        )


def test_a_step_without_the_network_is_refused(trainer):
    class Other(SSLLightningModule):
        def training_step(self, batch, batch_idx):
            return self.backbone.fc.weight.sum()

    module = Other(make_toy(1), optimizer=partial(SGD, lr=0.05), input_shape=(1, 8, 8))
    with pytest.raises(MisconfigurationException, match="did not call the network"):
        trainer(max_epochs=1, callbacks=[Distill(make_toy(2))]).fit(module, toy_loader())
