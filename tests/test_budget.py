"""Budgets: groups chosen for a cost, and the callback that reaches it in training."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ExponentialLR

from ssl_lightning import (
    MCP,
    SSLLightningModule,
    StructuredSparsity,
    create_backbone,
    resolve_groups,
)
from ssl_lightning.callbacks import Budget
from ssl_lightning.callbacks.methods import METHODS
from ssl_lightning.compaction import compact, make_plan
from ssl_lightning.costs import RESOURCES, Costs, parse_targets
from ssl_lightning.groups import group_norms
from ssl_lightning.measure import count_macs
from ssl_lightning.measure.left import CompactForm
from ssl_lightning.prune import UnreachableError, choose_groups, prune_, relative
from toy import Kill, killed_and_resumed, toy_loader

SMALL = torch.zeros(1, 1, 8, 8)
CIFAR = torch.zeros(1, 3, 32, 32)
COUPLED = {"kind": "coupled"}


class Net(nn.Module):
    """Three convolutions with batch norms, two of them added up, and a linear layer."""

    input_shape = (1, 8, 8)
    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 20, 3, padding=1), nn.BatchNorm2d(20)
        self.conv3, self.bn3 = nn.Conv2d(20, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = x + self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(x)))))
        return self.fc(torch.relu(x).mean((2, 3)))


def make_net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


# --- choosing groups ------------------------------------------------------------------------------


def cost_of(widths: dict[str, int]) -> dict[str, float]:
    """What a :class:`Net` costs, by hand, from the channels of its two sets."""
    outer, inner = widths["conv1:coupled"], widths["conv2:coupled"]
    weights = outer * 9 + inner * outer * 9 * 2
    norms = 2 * outer * 4 + inner * 4  # scale, shift, mean and variance
    small = weights + 2 * outer + inner + 10 * outer + 10 + norms
    return {
        "macs": 64 * weights + 10 * outer,
        "parameters": small - norms // 2,
        "size": 4 * small + 3 * 8,  # and three numbers of batches
    }


def by_loops(net: nn.Module, targets: dict[str, float], multiple: int) -> dict[str, int]:
    """Take the least important blocks one after the other until the budget is kept; count."""
    sets = resolve_groups(net, [COUPLED], SMALL)
    tensors = dict(net.named_parameters())
    blocks = []
    for group_set in sets:
        norms = sorted(group_norms(group_set, tensors).tolist())
        mean = sum(norms) / len(norms)
        while len(norms) > multiple:
            size = len(norms) % multiple or multiple
            blocks.append((sum(norms[:size]) / size / mean, group_set.name, size))
            norms = norms[size:]
    widths = {s.name: s.num_groups for s in sets}
    dense = cost_of(widths)
    limits = {n: v * dense[n] if v <= 1 else v for n, v in targets.items()}
    for _, name, size in [(0.0, sets[0].name, 0), *sorted(blocks)]:
        widths[name] -= size
        if all(cost_of(widths)[n] <= limits[n] for n in targets):
            return widths
    raise AssertionError("cannot be reached")


def test_the_costs_by_hand_are_those_of_the_meters() -> None:
    net = make_net()
    costs = Costs(parse_targets("", {"macs": 1, "parameters": 1, "size": 1}), net, SMALL)
    assert costs.dense == cost_of({"conv1:coupled": 12, "conv2:coupled": 20})


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize(
    "targets",
    [{"macs": 0.5}, {"macs": 0.2}, {"parameters": 2000}, {"size": 0.6}, {"macs": 0.5, "size": 9e3}],
    ids=str,
)
def test_as_few_groups_as_the_budget_asks_for(targets: dict[str, float], multiple: int) -> None:
    """Against a search by loops; it ends where the budget is used up to half a percent."""
    net = make_net()
    sets = resolve_groups(net, [COUPLED], SMALL)
    scores = relative(sets, [group_norms(s, dict(net.named_parameters())) for s in sets])
    costs = Costs(parse_targets("here", targets), net, SMALL)
    choice = choose_groups(net, CompactForm(SMALL), sets, scores, costs, multiple=multiple)
    widths = {s.name: int((~m).sum()) for s, m in zip(sets, choice.masks, strict=True)}
    assert choice.costs == {name: cost_of(widths)[name] for name in targets}
    assert all(n % multiple == 0 for n in widths.values())
    used = costs.worst(choice.costs)
    assert used <= 1
    plain = cost_of(by_loops(net, targets, multiple))
    assert used >= min(0.995, costs.worst({name: plain[name] for name in targets}))


@given(share=st.floats(0.15, 1.0), seed=st.integers(0, 5))
@settings(max_examples=8, deadline=None)
def test_prune_keeps_a_budget_and_uses_it(share: float, seed: int) -> None:
    net = make_net(seed)
    report = prune_(net, SMALL, macs=share)
    widths = {name: of - n for name, (n, of) in report.zeroed.items()}
    dense = cost_of({name: of for name, (_, of) in report.zeroed.items()})["macs"]
    assert report.macs == (dense, cost_of(widths)["macs"])
    assert report.macs[1] <= share * dense
    plain = cost_of(by_loops(make_net(seed), {"macs": share}, 1))["macs"]
    assert report.macs[1] >= min(0.995 * share * dense, plain)


def test_depth_is_reached_by_depth_groups_and_the_rest_by_others() -> None:
    net = create_backbone("resnet20")
    groups = [{"kind": "depth", "layers": "layer*.conv?"}, {"kind": "coupled"}]
    report = prune_(net, CIFAR, groups=groups, budget={"depth": 14, "macs": 0.4})
    small = compact(net, make_plan(net, CIFAR))
    layers = [m for m in small.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 14
    assert report.macs is not None
    assert 0.39 * report.macs[0] <= count_macs(small, CIFAR) <= 0.4 * report.macs[0]
    gone = [name for name, (n, _) in report.zeroed.items() if n and name.endswith(":depth")]
    assert len({name.rpartition(".")[0] for name in gone}) == 3  # a block of two convolutions each
    with pytest.raises(UnreachableError, match="got no depth groups"):
        prune_(create_backbone("resnet20"), CIFAR, budget={"depth": 0.5})


def test_depth_groups_are_ranked_by_the_norm_of_an_element() -> None:
    net = create_backbone("resnet20")
    with torch.no_grad():
        for name in ("layer1.1", "layer3.2"):
            for parameter in net.get_submodule(name).parameters():
                parameter.mul_(0.01)
    report = prune_(
        net, CIFAR, groups=[{"kind": "depth", "layers": "layer*.conv?"}], fraction=4 / 18
    )
    gone = {name for name, (n, _) in report.zeroed.items() if n}
    assert gone == {f"{b}.{c}:depth" for b in ("layer1.1", "layer3.2") for c in ("conv1", "conv2")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mac": 0.5}, "some of macs, sparse_macs, parameters, size, depth, latency, late"),
        ({"macs": 0}, "expected macs as a positive number, got 0"),
        ({"macs": float("nan")}, "positive number, got nan"),
        ({"size": "1 MB"}, "positive number, got '1 MB'"),
        ({"latency": 3.0}, "share of at most 1, got 3. Give milliseconds as latency_ms=3"),
        ({"latency": 0.5, "latency_ms": 3.0}, "one target for latency, got latency=0.5"),
    ],
)  # fmt: skip
def test_targets_that_are_none(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_targets("here", given)


def test_an_absolute_target_above_the_dense_cost_is_a_mistake() -> None:
    with pytest.raises(
        ValueError, match="below what the dense network costs, 20 convolutions and linear"
    ):
        prune_(create_backbone("resnet20"), CIFAR, budget={"depth": 30})


# --- in training ----------------------------------------------------------------------------------


def run(
    trainer: Callable[..., Any], *callbacks: Any, module: Any = None, epochs: int = 4, **given: Any
) -> Any:
    net = make_net()
    optimizer = given.pop("optimizer", partial(SGD, lr=0.02, momentum=0.9))
    module = module or SSLLightningModule(net, optimizer=optimizer, **given)
    fit = trainer(max_epochs=epochs, callbacks=list(callbacks))
    fit.fit(module, toy_loader(), toy_loader(8))
    return module, fit


@pytest.mark.parametrize(
    "optimizer", [partial(SGD, lr=0.02, momentum=0.9), partial(AdamW, lr=1e-3)]
)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_within_the_budget(trainer: Any, method: str, optimizer: Any) -> None:
    """And what is left is trained: the optimizer's parameters are the network's, and they move."""
    budget = Budget(macs=0.5, end=2, method=method, every_n_steps=3)
    seen: list[dict[str, Tensor]] = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append({n: p.detach().clone() for n, p in pl_module.named_parameters()})

    module, fit = run(trainer, budget, Watch(), optimizer=optimizer, penalties=[COUPLED])
    dense = count_macs(make_net(), SMALL)
    left = count_macs(module.backbone, SMALL)
    assert 0.45 * dense <= left <= 0.5 * dense
    assert budget.landed == {"macs": left}
    assert budget.dense == {"macs": dense}
    held = {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in module.parameters()}
    still = [name for name in seen[2] if torch.equal(seen[2][name], seen[3][name])]
    assert all(".conv" in name and name.endswith("bias") for name in still)  # before batch norms
    assert all(scale == 0 for scale in module.regularizer.scales)


@pytest.mark.parametrize("given", [{"parameters": 0.5}, {"size": 9000}, {"macs": 0.6, "size": 0.4}])
def test_every_resource_and_the_tightest_counts(trainer: Any, given: dict[str, float]) -> None:
    module, _ = run(trainer, Budget(**given, end=1), epochs=2)
    costs = Costs(parse_targets("", given), make_net(), SMALL)
    shares = [cost / costs.limits[name] for name, cost in costs.of(module.backbone).items()]
    assert 0.93 <= max(shares) <= 1


def test_depth_in_training(trainer: Any) -> None:
    torch.manual_seed(0)
    module = SSLLightningModule(
        create_backbone("resnet20"),
        penalties=[{"kind": "depth", "layers": "layer*.conv?"}],
        optimizer=partial(SGD, lr=0.01),
    )
    fit = trainer(max_epochs=2, callbacks=[Budget(depth=14, end=1)])
    fit.fit(module, toy_loader(8, 4, (3, 32, 32)), toy_loader(4, 4, (3, 32, 32)))
    layers = [m for m in module.backbone.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 14


def test_a_multiple_of_channels(trainer: Any) -> None:
    module, _ = run(trainer, Budget(macs=0.5, end=1, multiple=4), epochs=2)
    widths = [m.out_channels for m in module.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert all(width % 4 == 0 for width in widths)
    assert count_macs(module.backbone, SMALL) <= 0.5 * count_macs(make_net(), SMALL)


def test_budgets_follow_each_other_in_shares_of_the_first_network(trainer: Any) -> None:
    first, second = Budget(macs=0.7, end=1), Budget(macs=0.3, end=2)
    module, _ = run(trainer, first, second, epochs=3)
    dense = count_macs(make_net(), SMALL)
    assert first.dense == second.dense == {"macs": dense}
    assert 0.25 * dense <= count_macs(module.backbone, SMALL) <= 0.3 * dense
    assert first.landed["macs"] >= 0.6 * dense


def test_a_module_of_ones_own(trainer: Any) -> None:
    class Own(StructuredSparsity, pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()
            self.sparsify("net", input_shape=(1, 8, 8))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.net(batch[0])

        def configure_optimizers(self) -> Any:
            return AdamW(self.parameters(), lr=1e-3)

    module = Own()
    run(trainer, Budget(macs=0.5, end=1), module=module, epochs=2)
    assert count_macs(module.net, SMALL) <= 0.5 * count_macs(make_net(), SMALL)


# --- the learning rate ----------------------------------------------------------------------------


class Rates(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_without_a_scheduler_retraining_starts_a_fresh_cycle(trainer: Any) -> None:
    rates = Rates()
    run(trainer, Budget(macs=0.5, end=3), rates, epochs=8)
    assert rates.seen[0] == rates.seen[3] == pytest.approx(0.02)
    assert all(a > b for a, b in pairwise(rates.seen[3:]))
    assert rates.seen[-1] < 0.002


def test_a_scheduler_of_ones_own_is_used_and_a_low_rate_said(trainer: Any) -> None:
    rates, schedule = Rates(), partial(ExponentialLR, gamma=0.5)
    run(trainer, Budget(macs=0.5, end=1), rates, lr_scheduler=schedule, epochs=2)
    assert rates.seen == pytest.approx([0.02, 0.01])
    with pytest.warns(UserWarning, match="retraining starts at the learning rate 0.0025, 12% of"):
        run(trainer, Budget(macs=0.5, end=3), lr_scheduler=schedule)


@pytest.mark.parametrize(
    ("backbone", "end"),
    [({"backbone": "lenet"}, 2), ({"backbone": "zoo:lenet_mnist_dense"}, 0),
     ({"backbone": "zoo:lenet_mnist_dense", "backbone_args": {"pretrained": False}}, 2)],
)  # fmt: skip
def test_the_end_is_0_for_a_trained_network(trainer: Any, backbone: Any, end: int) -> None:
    budget = Budget(macs=0.5)
    module = SSLLightningModule(**backbone, optimizer=partial(SGD, lr=0.01))
    fit = trainer(max_epochs=6, callbacks=[budget], limit_train_batches=1)
    images = toy_loader(8, 8, (1, 28, 28))
    fit.fit(module, images, images)
    assert budget.end == end
    assert budget.landed is not None


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected a target, got none"),
        ({"macs": 0.5, "start": 3, "end": 2}, "0 <= start <= end"),
        ({"macs": 0.5, "start": -1}, "0 <= start"),
        ({"macs": 0.5, "method": "oneshot"}, "Did you mean one_shot"),
        ({"macs": 0.5, "importance": "l3"}, "Unknown importance"),
        ({"macs": 0.5, "multiple": 0}, ">= 1 as multiple"),
        ({"macs": 0.5, "multiple": "auto"}, "expected an engine for multiple='auto'"),
        ({"latency": 0.5}, "Budget: expected an engine for a latency"),
    ],
)
def test_budgets_that_are_none(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**given)


@pytest.mark.parametrize(
    ("budget", "penalties", "message"),
    [
        (Budget(macs=0.002, end=1), [], r"Budget: the budget cannot .*macs: 0\.006 of 0\.002"),
        (Budget(macs=0.05, end=1), [COUPLED | {"layers": "conv2"}], "`conv1` .*none of its groups"),
        (Budget(depth=3, end=1), [], "got no depth groups"),
        (Budget(macs=0.5, end=9), [], "end=9 is never reached: the run has the epochs 0 to 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_reached_is_said_before_training(
    trainer: Any, budget: Budget, penalties: Any, message: str
) -> None:
    steps: list[int] = []

    class Count(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            steps.append(1)

    with pytest.raises(ValueError, match=message):
        run(trainer, budget, Count(), penalties=penalties, epochs=2)
    assert not steps


def test_a_penalty_without_strength_needs_a_budget(trainer: Any) -> None:
    with pytest.raises(ValueError, match="it has no strength, and nothing that steers it"):
        run(trainer, penalties=[COUPLED])


# --- resuming -------------------------------------------------------------------------------------


RESUMED = {method: {"method": method} for method in METHODS} | {
    f"{method} of random groups": {"method": method, "importance": "random"}
    for method in ("one_shot", "gradual")
}
RESUMED["one_shot by gradients"] = {"importance": "taylor"}
RESUMED["gradual by gradients"] = {"method": "gradual", "importance": "taylor"}


def resumable(
    trainer: Any, folder: Path, way: str, kill: int | None = None, every: int | None = 1
) -> SSLLightningModule:
    torch.manual_seed(5)
    module = SSLLightningModule(
        make_net(),
        optimizer=partial(SGD, lr=0.02, momentum=0.9),
        input_shape=(1, 8, 8),
    )
    keep = ModelCheckpoint(
        folder, save_last=True, every_n_train_steps=every, enable_version_counter=False
    )
    fit = trainer(
        max_epochs=4,
        enable_checkpointing=True,
        callbacks=[
            Budget(macs=0.5, start=1, end=2, every_n_steps=3, **RESUMED[way]),
            Kill(kill),
            keep,
        ],
    )
    last = folder / "last.ckpt"
    fit.fit(module, toy_loader(), toy_loader(8), ckpt_path=last if last.exists() else None)
    return module


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("way", RESUMED)
@pytest.mark.parametrize(("kill", "every"), [(5, 1), (9, 1), (14, 2), (16, None), (17, 1), (29, 1)])
def test_a_killed_run_resumes_bit_equal(
    trainer: Any, tmp_path: Path, way: str, kill: int, every: int | None
) -> None:
    """Before, in and after the window; from the middle and the end of an epoch."""
    fit = partial(resumable, trainer, way=way, every=every)
    whole, resumed = killed_and_resumed(lambda f, at: fit(f, kill=at), tmp_path, kill)
    assert resumed.sparsity.plans == whole.sparsity.plans


def test_a_run_resumed_after_the_end_without_the_budget_is_refused(
    trainer: Any, tmp_path: Path
) -> None:
    module = SSLLightningModule(make_net(), optimizer=partial(SGD, lr=0.02))
    fit = trainer(max_epochs=3)
    fit.fit(module, toy_loader(), toy_loader(8))
    fit.save_checkpoint(tmp_path / "plain.ckpt")
    late = trainer(max_epochs=5, callbacks=[Budget(macs=0.5, end=1)])
    with pytest.raises(
        MisconfigurationException, match="after end=1, from a checkpoint that knows"
    ):
        late.fit(module, toy_loader(), toy_loader(8), ckpt_path=tmp_path / "plain.ckpt")


def test_on_the_command_line(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from ssl_lightning.cli import main
    from toy import short_config

    monkeypatch.chdir(tmp_path)
    config = short_config(tmp_path, "lenet")
    config["model"]["penalties"] = [COUPLED]
    config["trainer"]["callbacks"] = [
        {"class_path": "Budget", "init_args": {"macs": 0.5, "end": 1}},
        {"class_path": "SaveCompact"},
    ]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["fit", "--config=config.json"]) == 0
    from ssl_lightning import load_compact

    small = load_compact(tmp_path / "run" / "compact")
    dense = count_macs(create_backbone("lenet"), torch.zeros(1, 1, 28, 28))
    assert 0.49 * dense <= count_macs(small, torch.zeros(1, 1, 28, 28)) <= 0.5 * dense


def test_the_tables_are_documented() -> None:
    assert set(RESOURCES) == {"macs", "sparse_macs", "parameters", "size", "depth", "latency"}
    assert all(METHODS[name]().__doc__ for name in METHODS)
    assert MCP().gamma == 3.0
