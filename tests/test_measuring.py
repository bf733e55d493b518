"""Importance measured in training: what removing groups changes in the outputs."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from own_modules import MODULES
from ssl_lightning import (
    Budget,
    CompactDuringFit,
    SSLLightningModule,
    StructuredSparsity,
    ThresholdPruning,
    resolve_groups,
)
from ssl_lightning.callbacks.measuring import (
    SHARES,
    Call,
    change,
    changes_of_outputs,
    check_comparable,
)
from ssl_lightning.groups import group_norms
from ssl_lightning.measure.sensitivity_record import Rises
from ssl_lightning.prune import prune_
from toy import ToyNet, make_toy, toy_loader

IMAGE = torch.zeros(1, 1, 8, 8)


class Recorded(pl.Callback):
    """Goes before a budget, and keeps the network as it measures it, and what it finds."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.network: nn.Module | None = None
        self.landed_at: int | None = None

    @property
    def record(self) -> Rises:
        return Rises.from_dict(self.budget.state_dict()["measured"]["found"])

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if self.budget.landed is None:
            self.network = copy.deepcopy(pl_module.sparsity.network)
            self.landed_at = trainer.global_step


def by_hand(network: nn.Module, batches: list[Tensor]) -> dict[tuple[str, int], float]:
    """Set and number of channels without which -> change of the outputs, by loops.

    A channel of a ToyNet is gone when both convolutions and their norms give zero there.
    """
    (group_set,) = resolve_groups(network, [{"kind": "coupled"}], IMAGE)
    order = group_norms(group_set, dict(network.named_parameters())).argsort()
    found = {}
    for number in {round(share * 6) for share in SHARES}:
        thinned = copy.deepcopy(network)
        for layer in (thinned.conv1, thinned.bn1, thinned.conv2, thinned.bn2):
            for parameter in layer.parameters():
                parameter.data[order[:number]] = 0
        changes = []
        for x in batches:
            with torch.no_grad():
                own, now = network(x).double(), thinned(x).double()
            changes.append(float(((own - now) ** 2).sum() / (own**2).sum()))
        found[group_set.name, number] = sum(changes) / len(changes)
    return found


def test_the_record_is_what_loops_find_and_decides_what_goes(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = toy_loader(600, 64)
    module = SSLLightningModule(make_toy(2), optimizer=partial(SGD, lr=0.0), input_shape=(1, 8, 8))
    budget = Budget(macs=0.6, end=0)
    recorded = Recorded(budget)
    run = trainer(max_epochs=8, limit_val_batches=0, callbacks=[recorded, budget])
    run.fit(module, loader, toy_loader(8))
    assert recorded.landed_at == 4  # after 256 inputs, on which it is measured
    record, before = recorded.record, recorded.network.eval()
    found = {
        (name, number): rise
        for name, curve in record.curves.items()
        for number, rise in zip(curve.zeroed, curve.rises, strict=True)
    }
    expected = by_hand(before, [x for x, _ in list(loader)[:4]])
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-7) for key in found)
    monkeypatch.setattr("ssl_lightning.prune.one_shot.find_importance", lambda _: record)
    report = prune_(before, IMAGE, macs=0.6)
    gone, of = report.zeroed["conv1:coupled"]
    assert module.backbone.conv1.out_channels == of - gone
    kept = before.conv1.weight.flatten(1).any(1)
    torch.testing.assert_close(module.backbone.conv1.weight, before.conv1.weight[kept])


def test_it_is_measured_again_where_the_network_was_trained(trainer: Any) -> None:
    """At the start of a window that chooses, and at its end."""
    records = []

    class Keep(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            found = budget.state_dict()["measured"]["found"]
            if found is not None and found not in records:
                records.append(found)

    module = SSLLightningModule(make_toy(2), optimizer=partial(SGD, lr=0.05))
    budget = Budget(macs=0.6, start=1, end=3, method="gradual", every_n_steps=2)
    run = trainer(max_epochs=4, limit_val_batches=0, callbacks=[budget, Keep()])
    run.fit(module, toy_loader(64), toy_loader(8))
    assert len(records) == 2


def weights_after(trainer: Any, loader: Any, importance: str, dropout: float) -> dict[str, Tensor]:
    """Train with a budget that removes nothing, so that the importance must not matter."""
    torch.manual_seed(3)
    module = SSLLightningModule(make_toy(2, dropout), optimizer=partial(SGD, lr=0.05))
    budget = Budget(macs=1.0, end=1, importance=importance)
    run = trainer(max_epochs=3, limit_val_batches=0, callbacks=[budget])
    run.fit(module, loader(), toy_loader(8))
    found: dict[str, Tensor] = module.state_dict()
    return found


LOADERS = {
    "in order": toy_loader,
    "shuffled": lambda: DataLoader(toy_loader().dataset, batch_size=8, shuffle=True),
    "workers that persist": lambda: DataLoader(
        toy_loader().dataset, batch_size=8, shuffle=True, num_workers=1, persistent_workers=True
    ),
}


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("loader", LOADERS)
def test_measuring_changes_neither_the_data_nor_random_numbers(trainer: Any, loader: str) -> None:
    plain, measured = (
        weights_after(trainer, LOADERS[loader], importance, dropout=0.3)
        for importance in ("l2", "measured")
    )
    assert all(torch.equal(measured[name], tensor) for name, tensor in plain.items())


class Habits(StructuredSparsity, pl.LightningModule):
    """Logs and counts before and after the call, optimizes by hand, names the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.head = make_toy(1), nn.Linear(10, 10)
        self.seen = MulticlassAccuracy(10)
        self.sparsify("net", [], input_shape=(1, 8, 8))

    def on_train_start(self) -> None:
        self.net.bn1.eval()

    def training_step(self, batch: Any) -> None:
        body, _ = self.optimizers()
        self.toggle_optimizer(body)
        self.log("before", 1.0, on_epoch=True)
        try:
            logits = self.net(x=batch["x"])
        except Exception:  # as some do
            return
        self.seen.update(logits.softmax(1), batch["y"])
        self.log("seen", self.seen, on_epoch=True, on_step=False)
        body.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.head(logits), batch["y"]))
        body.step()
        self.untoggle_optimizer(body)

    def configure_optimizers(self) -> Any:
        return SGD(self.net.parameters(), lr=0.1), SGD(self.head.parameters(), lr=0.1)


class Named(Dataset[Any]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        x, y = self.dataset[index]
        return {"x": x, "y": y}


def test_steps_are_watched_and_nothing_else(trainer: Any) -> None:
    module = Habits()
    loader = DataLoader(Named(toy_loader(64).dataset), batch_size=8)
    counted = []

    class Count(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            counted.append(int(pl_module.seen.update_count))

    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    budget = Budget(macs=0.6, end=0)
    run = trainer(max_epochs=1, callbacks=[budget, Count()])
    run.fit(module, loader)
    assert counted == list(range(1, 9))
    assert run.callback_metrics["before"] == 1.0
    assert module.net.conv1.training
    assert not module.net.bn1.training
    assert {name: p.requires_grad for name, p in module.named_parameters()} == flags
    assert not module.net._forward_pre_hooks


@pytest.mark.parametrize("name", MODULES)
def test_budgets_of_modules_of_others(trainer: Any, name: str) -> None:
    if name == "Transformer":
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    module = MODULES[name]()
    budget = Budget(macs=0.8, end=1)
    trainer(max_epochs=2, callbacks=[budget]).fit(module, MODULES[name].loader())
    assert 70 < module.sparsity.macs_left() <= 80
    assert budget.state_dict()["measured"]["found"]["curves"]


class Around(StructuredSparsity, pl.LightningModule):
    """Its training step does not call the network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_toy(1)
        self.sparsify("net", [], input_shape=(1, 8, 8))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net.fc.weight.square().sum()

    def configure_optimizers(self) -> Any:
        return SGD(self.net.parameters(), lr=0.1)


def test_steps_that_do_not_call_the_network_are_refused_and_norms_are_the_way_out(
    trainer: Any,
) -> None:
    run = trainer(max_epochs=2, callbacks=[Budget(macs=0.6, end=0)])
    with pytest.raises(MisconfigurationException, match="expected training steps that call") as no:
        run.fit(Around(), toy_loader(16))
    assert "importance='l2'" in str(no.value)
    module = Around()
    run = trainer(max_epochs=1, callbacks=[Budget(macs=0.6, end=0, importance="l2")])
    run.fit(module, toy_loader(16))
    assert module.sparsity.macs_left() <= 60


@pytest.mark.parametrize(
    ("outputs", "got"), [([[]], "none"), ([[torch.tensor([1.0, torch.nan])]], "others")]
)
def test_outputs_that_cannot_be_compared_are_refused(outputs: Any, got: str) -> None:
    with pytest.raises(MisconfigurationException, match=rf"got {got}\. Give importance='l2'"):
        check_comparable(outputs)


def test_outputs_that_overflow_count_as_a_large_change() -> None:
    own = [torch.tensor([1.0, 2.0])]
    assert change([torch.tensor([torch.inf, 2.0])], own) == change([own[0] * 1e9], own) == 1e6
    assert change([own[0], own[0] * 0], [own[0], own[0]]) == 0.5


def test_a_short_run_is_measured_on_fewer_batches(trainer: Any) -> None:
    """One set, five shares: at most a quarter of what the steps are worth."""
    found = {}
    for epochs in (1, 2, 8):
        module = SSLLightningModule(make_toy(2), optimizer=partial(SGD, lr=0.05))
        budget = Budget(macs=0.6, end=0)
        run = trainer(max_epochs=epochs, limit_val_batches=0, callbacks=[budget])
        run.fit(module, toy_loader(64), toy_loader(8))
        found[epochs] = budget.state_dict()["measured"]["found"]["conditions"]
    assert {e: t.split()[-3] for e, t in found.items()} == {1: "1", 2: "2", 8: "8"}


class Pairs(StructuredSparsity, pl.LightningModule):
    """Trains on batches of two loaders."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = make_toy(1), []
        self.sparsify("net", [], input_shape=(1, 8, 8))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch["main"]
        self.seen.append(len(batch["other"][0]))
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return SGD(self.net.parameters(), lr=0.1)


LOADERS_OF_TWO = {
    "in a mapping": lambda loaders: loaders,
    "combined": lambda loaders: CombinedLoader(loaders, "min_size"),
}


@pytest.mark.parametrize("kind", LOADERS_OF_TWO)
def test_several_loaders(trainer: Any, kind: str) -> None:
    torch.manual_seed(0)
    module = Pairs()
    loaders = {"main": toy_loader(64), "other": toy_loader(16, 4)}
    budget = Budget(macs=0.6, end=1)
    trainer(max_epochs=2, callbacks=[budget]).fit(module, LOADERS_OF_TWO[kind](loaders))
    assert module.seen == [4] * 2 * (8 if kind == "in a mapping" else 4)
    assert module.sparsity.macs_left() <= 60


class InPlace(ToyNet):
    """Prepares its input where it is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).mul_(3.0))


class Apart(ToyNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub(0.5).mul(3.0))


def test_a_network_may_write_into_its_inputs(trainer: Any) -> None:
    records = []
    for cls in (InPlace, Apart):
        torch.manual_seed(1)
        budget = Budget(macs=0.6, end=0)
        module = SSLLightningModule(cls(), optimizer=partial(SGD, lr=0.01))
        run = trainer(max_epochs=8, limit_val_batches=0, callbacks=[budget])
        run.fit(module, toy_loader(64), toy_loader(8))
        records.append(budget.state_dict()["measured"]["found"]["curves"])
    assert records[0] == records[1]


def test_an_epoch_of_one_batch_is_enough(trainer: Any) -> None:
    module = SSLLightningModule(make_toy(2), optimizer=partial(SGD, lr=0.05))
    budget = Budget(macs=0.6, end=0)
    run = trainer(
        max_epochs=50, limit_train_batches=1, limit_val_batches=0, callbacks=[budget], max_steps=2
    )
    run.fit(module, toy_loader(64), toy_loader(8))
    assert module.sparsity.macs_left() <= 60


def test_gradients_are_not_lost_that_several_batches_add_up_to(trainer: Any) -> None:
    """The budget lands where an optimizer's step begins."""
    module = SSLLightningModule(make_toy(2), optimizer=partial(SGD, lr=0.05))
    budget = Budget(macs=0.6, end=0)
    landed = []

    class See(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, i: int) -> None:
            if budget.landed is not None and not landed:
                landed.append(i)

    run = trainer(
        max_epochs=8, accumulate_grad_batches=4, limit_val_batches=0, callbacks=[budget, See()]
    )
    run.fit(module, toy_loader(96), toy_loader(8))
    assert landed == [8]


@pytest.mark.parametrize("importance", ["measured", "l2"])
def test_the_window_begins_again_where_something_else_compacts(
    trainer: Any, importance: str
) -> None:
    torch.manual_seed(0)
    module = SSLLightningModule(
        make_toy(2),
        penalties=[{"kind": "coupled", "strength": 1e-4}],
        optimizer=partial(SGD, lr=0.05),
    )
    gradual = Budget(macs=0.5, end=3, method="gradual", every_n_steps=2, importance=importance)
    callbacks = [gradual, ThresholdPruning(start=1, fraction=0.3), CompactDuringFit(at=1)]
    trainer(max_epochs=5, limit_val_batches=0, callbacks=callbacks).fit(
        module, toy_loader(64), toy_loader(8)
    )
    assert module.sparsity.macs_left() <= 50


class StopEarly(pl.Callback):
    """Ends a run after ten steps, as an early stopping would."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= 10


def test_one_budget_serves_several_runs_and_says_when_it_was_not_reached(trainer: Any) -> None:
    budget = Budget(macs=0.6, end=0)
    for seed in (0, 1):
        module = SSLLightningModule(make_toy(seed), optimizer=partial(SGD, lr=0.05))
        run = trainer(max_epochs=2, limit_val_batches=0, callbacks=[budget])
        run.fit(module, toy_loader(64), toy_loader(8))
        assert module.backbone.conv1.out_channels < 6
    module = SSLLightningModule(make_toy(3), optimizer=partial(SGD, lr=0.05))
    callbacks = [Budget(macs=0.6, end=20), StopEarly()]
    run = trainer(max_epochs=30, limit_val_batches=0, callbacks=callbacks)
    with pytest.warns(UserWarning, match=r"before end=20: macs=0\.6 was not reached"):
        run.fit(module, toy_loader(64), toy_loader(8))


@pytest.mark.parametrize(("silent", "says"), [(0.0, True), (1e9, False)])
def test_a_long_measurement_says_so_before(
    monkeypatch: pytest.MonkeyPatch, silent: float, says: bool
) -> None:
    said: list[str] = []
    monkeypatch.setattr("ssl_lightning.callbacks.measuring.rank_zero_info", said.append)
    monkeypatch.setattr("ssl_lightning.callbacks.measuring.SILENT", silent)
    net = make_toy().eval()
    sets = resolve_groups(net, [{"kind": "filter", "layers": "conv1"}], torch.zeros(1, 1, 8, 8))
    calls = [Call((torch.randn(2, 1, 8, 8),), {})]
    changes_of_outputs(nullcontext, net, sets, calls)
    assert [text.startswith("Budget: measuring what the outputs lose") for text in said] == (
        [True] if says else []
    )
