"""Budgets that torch-pruning and torchao's PAT lead to, beside these libraries themselves."""

from __future__ import annotations

import copy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import SGD

from ssl_lightning import (
    Budget,
    CompactDuringFit,
    SSLLightningModule,
    count_macs,
    create_backbone,
    resolve_groups,
)
from ssl_lightning.callbacks.peers import (
    PATBudget,
    PeerBudget,
    TorchPruningBudget,
    masks_of,
    only_input,
    retained_layers,
)
from ssl_lightning.compaction import plan_and_compact
from ssl_lightning.groups import zero_groups_
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.measure.peers import PAT, cut_by_torch_pruning, group_norm_pruner
from ssl_lightning.prune import UnreachableError
from toy import Kill, killed_and_resumed, make_toy, toy_loader

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


@pytest.mark.parametrize(
    ("name", "step"),
    [("lenet", 60), ("lenet", 250), ("convnet", 60), ("convnet", 250), ("resnet20", 60)],
)
def test_what_torch_pruning_cuts_is_what_our_groups_remove(name: str, step: int) -> None:
    """The same sizes in its network as are left of ours, and the same outputs.

    Its ResNet-20 does not run any more after some more steps: the code pads channels of its
    shortcuts by numbers of the dense network. What is gone is the same there, too.
    """
    torch.manual_seed(0)
    net = create_backbone(name).eval()
    randomise_(net)
    x = torch.randn(2, *net.input_shape)
    sets = resolve_groups(net, [{"kind": "coupled"}], x)
    cut = copy.deepcopy(net)
    steps = cut_by_torch_pruning(cut, x[:1], retained_layers(net, sets))
    gone = next(islice(steps, step, None))
    for layer, module in cut.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            left = len(net.get_submodule(layer).weight) - len(gone.get(f"{layer}.weight", ()))
            assert len(module.weight) == left, layer
    for group_set, mask in zip(sets, masks_of(sets, gone), strict=True):
        zero_groups_(group_set, mask, named_tensors(net))
    torch.testing.assert_close(cut(x), net(x), rtol=1e-4, atol=1e-5)
    assert count_macs(plan_and_compact(net, x[:1])[1], x[:1]) == count_macs(cut, x[:1])
    for later in steps:
        masks_of(sets, later)
        assert all(gone[layer] <= later[layer] for layer in gone)
    assert sum(map(len, later.values())) > sum(map(len, gone.values()))


def test_a_budget_is_that_of_the_first_step_that_keeps_it(trainer: Any) -> None:
    module = SSLLightningModule(make_toy(2), optimizer=partial(SGD, lr=0.0))
    budget = TorchPruningBudget(macs=0.5, end=1)
    trainer(max_epochs=2, limit_val_batches=0, callbacks=[budget]).fit(
        module, toy_loader(64), toy_loader(8)
    )
    net = make_toy(2).eval()
    dense = count_macs(net, IMAGE)
    for _ in cut_by_torch_pruning(net, IMAGE, ["fc"]):
        if count_macs(net, IMAGE) <= 0.5 * dense:
            break
    for name in ("conv1", "conv2", "fc"):
        ours, theirs = (each.get_submodule(name).weight for each in (module.backbone, net))
        torch.testing.assert_close(ours, theirs)


def test_a_budget_is_kept_with_no_more_gone_than_that_needs(trainer: Any) -> None:
    module = fitted(trainer, TorchPruningBudget(macs=0.5, end=1), 0.05)
    left = count_macs(module.backbone, IMAGE) / count_macs(make_toy(2), IMAGE)
    assert left <= 0.5
    assert module.backbone.conv1.out_channels == 4  # of six: with five, more than half is left
    assert module.backbone.conv2.out_channels == 4


def test_its_regulariser_acts_in_the_window_alone(trainer: Any) -> None:
    """Beside networks that take the same steps by hand, in the window with the pruner called."""
    seen: list[Any] = []

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            seen.append(copy.deepcopy(pl_module.backbone))

        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 8:
                seen.append(copy.deepcopy(pl_module.backbone))  # cut, before the next step

    def by_hand(net: nn.Module, regularize: Any) -> nn.Module:
        optimizer = SGD(net.train().parameters(), lr=0.1)
        for x, y in toy_loader(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            regularize(net)
            optimizer.step()
        return net

    net = make_toy(2)
    pruner = group_norm_pruner(net, IMAGE, ["fc"], reg=0.05)
    steady = {"lr_scheduler": partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)}
    budget = TorchPruningBudget(macs=0.5, end=1, strength=0.05)
    module = fitted(trainer, budget, 0.1, Keep(), **steady)
    same = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
    in_window, cut, after = seen
    same(dict(in_window.state_dict()), dict(by_hand(net, pruner.regularize).state_dict()))
    assert not torch.equal(net.conv1.weight, by_hand(make_toy(2), lambda _: None).conv1.weight)
    same(dict(after.state_dict()), dict(by_hand(cut, lambda _: None).state_dict()))
    assert module.backbone.training


def test_a_layer_of_one_channel_is_left_out_of_its_regulariser() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(64, 2))
    pruner = group_norm_pruner(net, IMAGE, ["5"])
    net(IMAGE).sum().backward()
    pruner.regularize(net)
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters())
    with pytest.raises(ValueError, match="it finds no groups"):
        group_norm_pruner(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), IMAGE, ["1"])


def test_a_network_that_it_cannot_follow_is_refused_in_its_words(trainer: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such node")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_lightning.callbacks.peers.cut_by_torch_pruning", broken)
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


def resumable(
    trainer: Any,
    folder: Path,
    kind: type[PeerBudget],
    kill: int | None = None,
    every: int | None = 1,
) -> SSLLightningModule:
    """A run of four epochs of eight steps, with the window in the second and third."""
    module = SSLLightningModule(make_toy(2), optimizer=partial(SGD, lr=0.05, momentum=0.9))
    keep = ModelCheckpoint(
        folder, save_last=True, every_n_train_steps=every, enable_version_counter=False
    )
    budget = kind(macs=0.5, start=1, end=3, strength=0.02)
    settings = {"enable_checkpointing": True, "callbacks": [budget, Kill(kill), keep]}
    last = folder / "last.ckpt"
    fit = trainer(max_epochs=4, limit_val_batches=0, **settings)
    fit.fit(module, toy_loader(64), toy_loader(8), ckpt_path=last if last.exists() else None)
    return module


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("kind", [TorchPruningBudget, PATBudget])
@pytest.mark.parametrize(("kill", "every"), [(5, 1), (9, 1), (16, None), (18, 1), (21, 2), (29, 1)])
def test_a_killed_run_resumes_bit_equal(
    trainer: Any, tmp_path: Path, kind: type[PeerBudget], kill: int, every: int | None
) -> None:
    """Before, in and after the window; from the middle and the end of an epoch."""
    killed_and_resumed(lambda f, at: resumable(trainer, f, kind, at, every), tmp_path, kill)


@pytest.mark.parametrize("kind", [TorchPruningBudget, PATBudget])
def test_a_network_that_is_replaced_in_the_window_is_refused(trainer: Any, kind: Any) -> None:
    module = SSLLightningModule(make_toy(2), optimizer=partial(SGD, lr=0.05))
    with torch.no_grad():
        for layer in (module.backbone.conv1, module.backbone.bn1, module.backbone.bn2):
            layer.weight[:2] = layer.bias[:2] = 0
        module.backbone.conv2.weight[:2] = 0
    callbacks = [kind(macs=0.5, end=2), CompactDuringFit(at=1)]
    run = trainer(max_epochs=3, limit_val_batches=0, callbacks=callbacks)
    with pytest.raises(MisconfigurationException, match="another callback replaced the network"):
        run.fit(module, toy_loader(64), toy_loader(8))


@pytest.mark.parametrize("kind", [TorchPruningBudget, PATBudget])
def test_a_window_of_no_epochs_is_refused(trainer: Any, kind: Any) -> None:
    with pytest.raises(
        ValueError, match=f"{kind.__name__}: expected epochs to act in, got start=0"
    ):
        fitted(trainer, kind(macs=0.5, end=0), 0.1)


class Two(SSLLightningModule):
    def configure_optimizers(self) -> Any:
        self.automatic_optimization = False
        return [SGD(self.parameters(), lr=0.1), SGD(self.parameters(), lr=0.1)]


@pytest.mark.parametrize("kind", [TorchPruningBudget, PATBudget])
def test_several_optimizers_are_refused(trainer: Any, kind: Any) -> None:
    run = trainer(max_epochs=2, callbacks=[kind(macs=0.5, end=1)])
    with pytest.raises(ValueError, match=f"{kind.__name__}: expected one optimizer, got 2"):
        run.fit(Two(make_toy()), toy_loader(8), toy_loader(8))


def test_rates_that_differ_are_refused(trainer: Any) -> None:
    settings = {"parameter_groups": [{"parameters": "fc*", "lr": 0.01}]}
    with pytest.raises(
        ValueError, match=r"PATBudget: expected one rate for all parameters, got \[0\.01, 0\.1\]"
    ):
        fitted(trainer, PATBudget(macs=0.5, end=1), 0.1, **settings)


@pytest.mark.parametrize("kind", [TorchPruningBudget, PATBudget])
def test_without_the_extra_its_name_is_said(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_lightning.suggest.missing_packages", lambda names: list(names))
    with pytest.raises(ValueError, match=r"pip install 'ssl-lightning\[peers\]'"):
        kind(macs=0.5)
