"""Budgets that torch-pruning and torchao's PAT lead to, beside these libraries themselves."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import SGD

from ssl_lightning import Budget, SSLLightningModule, count_macs, create_backbone, resolve_groups
from ssl_lightning.callbacks.peers import (
    PATBudget,
    TorchPruningBudget,
    masks_of,
    only_input,
    retained_layers,
)
from ssl_lightning.groups import zero_groups_
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.measure.peers import PAT, chosen_by_torch_pruning, group_norm_pruner
from ssl_lightning.prune import UnreachableError
from toy import make_toy, toy_loader

pytest.importorskip("torch_pruning")
pytest.importorskip("torchao")
IMAGE = torch.zeros(1, 1, 8, 8)


def fitted(trainer: Any, budget: Budget, rate: float, *callbacks: Any, **settings: Any) -> Any:
    """The toy after two epochs of eight steps, in the second of which the budget is reached."""
    module = SSLLightningModule(make_toy(2), optimizer=partial(SGD, lr=rate), **settings)
    run = trainer(max_epochs=2, limit_val_batches=0, callbacks=[budget, *callbacks])
    run.fit(module, toy_loader(64), toy_loader(8))
    return module


def randomise_(net: nn.Module) -> None:
    """Let biases, norms and their statistics differ from channel to channel."""
    for name, tensor in named_tensors(net).items():
        if tensor.dim() == 1:
            tensor.detach().copy_(torch.rand(len(tensor)) + ("var" in name))


# --- torch-pruning -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet", "resnet20", "convnet"])
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_what_torch_pruning_removes_is_what_our_groups_remove(name: str, ratio: float) -> None:
    """Its own pruner cuts a copy: the same sizes, and in ours, zeroed, nothing else is left."""
    torch.manual_seed(0)
    net = create_backbone(name).eval()
    randomise_(net)
    x = torch.randn(1, *net.input_shape)
    sets = resolve_groups(net, [{"kind": "coupled"}], x)
    retained = retained_layers(net, sets)
    outputs = chosen_by_torch_pruning(copy.deepcopy(net), x, retained, ratio)
    masks = masks_of(sets, outputs)
    cut = copy.deepcopy(net)
    settings = {"pruning_ratio": ratio, "global_pruning": True}
    group_norm_pruner(cut, x, retained, **settings).step()
    kinds = (nn.Conv2d, nn.Linear)
    for layer, module in cut.named_modules():
        if isinstance(module, kinds):
            gone = len(outputs.get(f"{layer}.weight", ()))
            assert len(module.weight) == len(net.get_submodule(layer).weight) - gone, layer
    for group_set, mask in zip(sets, masks, strict=True):
        zero_groups_(group_set, mask, named_tensors(net))
    x = torch.randn(2, *net.input_shape)
    torch.testing.assert_close(cut(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_budget_is_kept_with_the_smallest_share_of_channels_that_does(trainer: Any) -> None:
    budget = TorchPruningBudget(macs=0.5, end=1)
    module = fitted(trainer, budget, 0.05)
    left = count_macs(module.backbone, IMAGE) / count_macs(make_toy(2), IMAGE)
    assert left <= 0.5
    assert module.backbone.conv1.out_channels == 4  # of six: with five, more than half is left
    assert module.backbone.conv2.out_channels == 4


def test_its_regulariser_acts_in_the_window_alone(trainer: Any) -> None:
    """Beside a network that takes the same steps with the pruner called by hand."""
    net = make_toy(2)
    pruner = group_norm_pruner(net, IMAGE, ["fc"])
    optimizer = SGD(net.train().parameters(), lr=0.1)
    for x, y in toy_loader(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        pruner.regularize(net)
        optimizer.step()
    seen: list[dict[str, Any]] = []

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            seen.append(copy.deepcopy(pl_module.backbone.state_dict()))

    steady = {"lr_scheduler": partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)}
    module = fitted(trainer, TorchPruningBudget(macs=0.5, end=1), 0.1, Keep(), **steady)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(seen[0][name], value, rtol=1e-5, atol=1e-6)
    assert module.backbone.training


def test_a_network_that_it_cannot_follow_is_refused_in_its_words(trainer: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such node")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_lightning.callbacks.peers.chosen_by_torch_pruning", broken)
        with pytest.raises(ValueError, match=r"torch-pruning cannot follow ToyNet: .*no such node"):
            fitted(trainer, TorchPruningBudget(macs=0.5, end=1), 0.1)


def test_a_budget_that_it_does_not_reach_is_refused(trainer: Any) -> None:
    with pytest.raises(UnreachableError, match=r"torch-pruning does not reach macs=0\.01"):
        fitted(trainer, TorchPruningBudget(macs=0.01, end=1), 0.1)


def test_channels_that_it_couples_otherwise_are_refused() -> None:
    sets = resolve_groups(make_toy(), [{"kind": "coupled"}], IMAGE)
    message = r"couples channels otherwise: of conv2 it removes none, .* would be 1\."
    with pytest.raises(ValueError, match=message):
        masks_of(sets, {"conv1.weight": {1}})
    (mask,) = masks_of(sets, {"conv1.weight": {1}, "conv2.weight": {1}})
    assert mask.nonzero().flatten().tolist() == [1]


def test_several_inputs_are_refused() -> None:
    module = SSLLightningModule(make_toy())
    module.sparsity.example = lambda: (IMAGE, IMAGE)
    with pytest.raises(ValueError, match="a network of one tensor"):
        only_input(module.sparsity)


# --- PAT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_is_made_of_the_weights_before_they_were_shrunk(momentum: float) -> None:
    """By hand: v <- v - lr g(w), then w = (1 - lambda sqrt(n) sum(lr) / |v|)+ v, row by row."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 5, bias=False).double()
    x, rate, strength = torch.randn(7, 3).double(), 0.1, 0.3
    optimizer = SGD(layer.parameters(), lr=rate, momentum=momentum)
    pat = PAT(optimizer, {"weight": layer.weight}, strength)
    latent, velocity = layer.weight.detach().clone(), 0.0
    shrunk = latent.clone()
    pat.begin()
    for step in range(1, 5):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = layer(x).square().sum() / 7
            loss.backward()
            return loss

        gradient = 2 * (shrunk @ x.T @ x) / 7
        velocity = momentum * velocity + gradient
        latent = latent - rate * velocity
        norms = latent.norm(dim=1, keepdim=True)
        shrunk = latent * (1 - strength * 3**0.5 * step * rate / norms).clamp(min=0)
        assert optimizer.step(closure) is not None
        torch.testing.assert_close(layer.weight.detach(), shrunk)
    assert (shrunk == 0).all(1).any()
    pat.end()
    before = layer.weight.detach().clone()
    optimizer.zero_grad()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before)  # no gradients, no shrinking


def test_it_acts_in_the_window_and_the_budget_is_kept(trainer: Any) -> None:
    seen: dict[int, list[int]] = {0: [], 1: []}

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            weight = pl_module.backbone.conv2.weight
            seen[trainer.current_epoch].append(int((weight == 0).flatten(1).all(1).sum()))

    budget = PATBudget(macs=0.5, end=1, strength=0.25)
    module = fitted(trainer, budget, 0.1, Keep())
    assert max(seen[0]) > 0
    assert max(seen[1]) == 0
    assert module.sparsity.macs_left() <= 50


def test_a_run_that_is_resumed_in_the_window_goes_on_as_it_was(trainer: Any, tmp_path: Any) -> None:
    def run(ckpt: Any = None) -> Any:
        module = SSLLightningModule(
            make_toy(2),
            optimizer=partial(SGD, lr=0.05),
            lr_scheduler=partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
        )
        keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        budget = PATBudget(macs=0.5, end=2, strength=0.02)
        settings = {"enable_checkpointing": True, "callbacks": [budget, keep]}
        fit = trainer(max_epochs=3, limit_val_batches=0, **settings)
        fit.fit(module, toy_loader(64), toy_loader(8), ckpt_path=ckpt)
        return module.backbone.state_dict()

    whole = run()
    resumed = run(tmp_path / "epoch=0.ckpt")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value)


def test_rates_that_differ_are_refused(trainer: Any) -> None:
    settings = {"parameter_groups": [{"parameters": "fc*", "lr": 0.01}]}
    with pytest.raises(ValueError, match=r"expected one optimizer of one rate, got 1 and rates"):
        fitted(trainer, PATBudget(macs=0.5, end=1), 0.1, **settings)


@pytest.mark.parametrize("kind", [TorchPruningBudget, PATBudget])
def test_without_the_extra_its_name_is_said(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_lightning.suggest.missing_packages", lambda names: list(names))
    with pytest.raises(ValueError, match=r"pip install 'ssl-lightning\[peers\]'"):
        kind(macs=0.5)
