"""LowRank in training: nothing but the layers changes, and training goes on."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from ssl_lightning import (
    Budget,
    CompactDuringFit,
    LowRank,
    SaveCompact,
    SparsityMonitor,
    SSLLightningModule,
    StructuredSparsity,
    ThresholdPruning,
    count_macs,
    factorise,
    load_backbone,
    load_compact,
)
from ssl_lightning.compaction.factors import product
from toy import make_toy, toy_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    # the order of the toy's batches is fixed, and the mixin passes over those that were seen
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended"),
]

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
RANKS = {"conv2": [3, 3], "fc": 4}
IMAGE = torch.zeros(1, 1, 8, 8)
MNIST = partial(toy_loader, shape=(1, 28, 28))
COUPLED = {"kind": "coupled", "strength": 1e-4}


def module_of(net=None, penalties=(), optimizer=SGD, **settings):
    net = make_toy() if net is None else net
    return SSLLightningModule(net, penalties=list(penalties), optimizer=optimizer, **settings)


def fit(trainer, *callbacks, module=None, epochs=3, ckpt=None, loader=toy_loader, **settings):
    module = module_of() if module is None else module
    run = trainer(max_epochs=epochs, callbacks=list(callbacks), **settings)
    run.fit(module, loader(), ckpt_path=ckpt)
    return module, run


def weights(module):
    return module.backbone.state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_at_epoch_0_it_is_the_training_of_the_factorised_network(trainer):
    by_hand = factorise(make_toy(), IMAGE, ranks=RANKS).network
    one, _ = fit(trainer, module=module_of(by_hand, [COUPLED]))
    other, _ = fit(trainer, LowRank(ranks=RANKS), module=module_of(penalties=[COUPLED]))
    assert_same(weights(one), weights(other))
    assert [type(part) for part in other.backbone.fc] == [nn.Linear, nn.Linear]


@pytest.mark.parametrize(
    "arguments", [{"macs": 0.6}, {"energy": 0.8}, {"macs": 0.7, "layers": "conv2"}]
)
@pytest.mark.parametrize("method", ["svd", "tucker", "cp"])
def test_it_keeps_what_factorise_keeps(trainer, arguments, method):
    callback = LowRank(**arguments, method=method)
    module, _ = fit(trainer, callback, epochs=1)
    assert callback.report.macs[1] == count_macs(module.backbone, IMAGE)
    assert callback.report.macs[0] == count_macs(make_toy(), IMAGE)
    assert module.sparsity.plans == [callback.plan]
    assert module.sparsity.macs_left() == pytest.approx(
        100 * callback.report.macs[1] / callback.report.macs[0]
    )


class Look(Callback):
    def __init__(self, look):
        self.look = look

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.look(trainer, pl_module)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_optimizer_goes_on_with_the_factors_in_the_groups_of_their_layers(trainer, kind):
    before = {}

    def remember(trainer, module):
        (optimizer,) = trainer.optimizers
        for name, parameter in module.backbone.named_parameters():
            before[name] = parameter.detach().clone(), copy.deepcopy(optimizer.state[parameter])

    def compare(trainer, module):
        (optimizer,) = trainer.optimizers
        plain, small = optimizer.param_groups
        names = {id(p): n for n, p in module.backbone.named_parameters()}
        assert [names[id(p)] for p in plain["params"]] == [
            "conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias",
            "fc.0.weight", "fc.1.weight", "fc.1.bias",
        ]  # fmt: skip
        assert [names[id(p)] for p in small["params"]] == [f"conv2.{i}.weight" for i in range(3)]
        assert small["lr"] == 0.01
        assert names.keys() == {id(p) for g in optimizer.param_groups for p in g["params"]}
        for name, parameter in module.backbone.named_parameters():
            if name.startswith(("conv2", "fc")):
                assert not optimizer.state.get(parameter), name
                continue
            value, state = before[name]
            assert torch.equal(parameter, value)
            assert state
            for key, expected in state.items():
                assert torch.equal(
                    torch.as_tensor(optimizer.state[parameter][key]), torch.as_tensor(expected)
                )
        expected = factorise(Old(before), IMAGE, ranks=RANKS).network
        torch.testing.assert_close(product(module.backbone.conv2), product(expected.conv2))
        assert torch.equal(module.backbone.fc[1].bias, before["fc.bias"][0])
        before["compared"] = True

    optimizer = partial(kind, lr=0.02, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    groups = [{"parameters": "conv2.*", "lr": 0.01}]
    module = module_of(optimizer=optimizer, parameter_groups=groups, penalties=[COUPLED])
    module, _ = fit(
        trainer, Look(remember), LowRank(ranks=RANKS, at=1), Look(compare), module=module
    )
    assert before["compared"]
    assert module.backbone.conv2[0].weight.grad is not None


def Old(before):  # noqa: N802 - a network
    net = make_toy()
    net.load_state_dict({name: value for name, (value, _) in before.items()}, strict=False)
    return net


@pytest.mark.parametrize("at", [0, 1])
def test_a_run_killed_anywhere_resumes_bit_equal(trainer, tmp_path, at):
    def callbacks():
        return [LowRank(macs=0.7, at=at), CompactDuringFit(at=2)]

    penalties = [{**COUPLED, "strength": 0.3}]
    keep = ModelCheckpoint(
        tmp_path / "all", "{step}", save_top_k=-1, every_n_train_steps=3, save_last=False
    )
    adam = partial(torch.optim.AdamW, lr=0.01)
    whole, run = fit(
        trainer, *callbacks(), keep, module=module_of(penalties=penalties, optimizer=adam),
        epochs=4, enable_checkpointing=True,
    )  # fmt: skip
    assert len(whole.sparsity.plans) == 2
    checkpoints = sorted((tmp_path / "all").glob("*.ckpt"))
    assert len(checkpoints) == 10
    for path in checkpoints:
        torch.manual_seed(99)
        again, other = fit(
            trainer,
            *callbacks(),
            module=module_of(make_toy(5), penalties, adam),
            epochs=4,
            ckpt=path,
        )
        assert_same(weights(whole), weights(again))
        assert again.sparsity.plans == whole.sparsity.plans
        assert again.sparsity.origin == whole.sparsity.origin
        assert again.sparsity.regularizer.strengths(1.0) == whole.sparsity.regularizer.strengths(
            1.0
        )
        assert other.callback_metrics["macs/left"] == run.callback_metrics["macs/left"]
    trained = load_backbone(tmp_path / "all" / "step=30.ckpt", model=make_toy)
    assert trained.plans == tuple(whole.sparsity.plans)


def test_penalties_on_factors_remove_whole_ranks(trainer, tmp_path):
    penalty = {"kind": "filter", "layers": ["conv2.0", "conv2.1"], "strength": 0.05}
    module, run = fit(
        trainer,
        LowRank(ranks={"conv2": [4, 4]}, method="tucker", layers="conv2"),
        SparsityMonitor(table=False),
        SaveCompact(str(tmp_path / "compact")),
        module=module_of(penalties=[penalty]),
        epochs=4,
    )
    names = [s.name for s in module.sparsity.regularizer.group_sets]
    assert names == ["conv2.0:filter", "conv2.1:filter"]
    less = load_compact(tmp_path / "compact", model=make_toy)
    gone = int((module.backbone.conv2[0].weight == 0).flatten(1).all(1).sum())
    assert gone > 0
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(less(x), module.backbone.eval()(x))
    assert count_macs(less, IMAGE) < count_macs(module.backbone, IMAGE)
    share = 100.0 * gone / 4
    assert run.callback_metrics["sparsity/conv2.0/filters"] == pytest.approx(share)
    assert "sparsity/conv2/filters" not in run.callback_metrics


def test_strengths_do_not_change_when_factors_shrink(trainer):
    seen = []

    class Zero(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.backbone.fc[0].weight[1:3] = 0
            seen.append(pl_module.sparsity.regularizer.strengths(1.0))

    module, _ = fit(
        trainer, LowRank(ranks={"fc": 5}, method="svd"), Zero(), CompactDuringFit(at=0),
        module=module_of(penalties=[{"kind": "neuron_out", "layers": "fc*", "strength": 1e-4}]),
        epochs=1,
    )  # fmt: skip
    assert module.backbone.fc[1].in_features == 3
    assert module.sparsity.regularizer.strengths(1.0) == seen[0]


def test_weights_to_start_from_are_factorised_not_fresh_ones(trainer, tmp_path):
    gentle = partial(torch.optim.SGD, lr=1e-3)
    start, run = fit(
        trainer, module=SSLLightningModule("lenet", optimizer=gentle), loader=MNIST, epochs=1
    )
    run.save_checkpoint(tmp_path / "start.ckpt")
    still = partial(torch.optim.SGD, lr=0.0)
    module = SSLLightningModule("lenet", optimizer=still, init_from=str(tmp_path / "start.ckpt"))
    callback = LowRank(ranks={"fc1": 40})
    module, _ = fit(trainer, callback, module=module, loader=MNIST, epochs=1)
    expected = factorise(start.backbone, torch.zeros(1, 1, 28, 28), ranks={"fc1": 40}).network
    assert_same(weights(module), expected.state_dict())


def test_layers_with_locked_groups_remain(trainer):
    net = make_toy()
    with torch.no_grad():
        net.conv1.weight[:2] *= 0.01
    penalty = {"kind": "filter", "layers": "conv1*", "strength": 1e-4, "members": "weight"}
    pruning = ThresholdPruning(start=0, threshold=0.2, relative=True)
    callback = LowRank(ranks={"fc": 3}, at=1)
    module, _ = fit(trainer, pruning, callback, module=module_of(net, [penalty]), epochs=2)
    assert not module.backbone.conv1.weight[:2].any()
    assert len(module.sparsity.locks) == 2
    callback = LowRank(ranks={"conv1": 1, "fc": 3}, at=1)
    module, _ = fit(
        trainer, pruning, callback, module=module_of(copy.deepcopy(net), [penalty]), epochs=2
    )
    assert callback.report.left["conv1"] == "it has locked groups"


def test_a_budget_follows(trainer):
    budget = Budget(macs=0.5, end=1, importance="l2")
    module, _ = fit(
        trainer, LowRank(macs=0.8), budget, module=module_of(penalties=[{"kind": "coupled"}])
    )
    assert budget.landed["macs"] <= 0.5 * budget.dense["macs"]
    assert len(module.sparsity.plans) == 2


@pytest.mark.parametrize("at", [0, 1])
def test_averages_follow(trainer, at):
    averaging = EMAWeightAveraging(decay=0.5)
    module, _ = fit(trainer, LowRank(ranks=RANKS, at=at), averaging, epochs=2)
    average = averaging._average_model.module
    assert [n for n, _ in average.backbone.named_parameters()] == [
        n for n, _ in module.backbone.named_parameters()
    ]
    assert all(bool(p.isfinite().all()) for p in module.backbone.parameters())


class Whole(StructuredSparsity):
    """A module that is itself the network, with an optimizer of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(64, 32)
        self.out = nn.Linear(32, 10)
        self.example_input_array = torch.zeros(1, 1, 8, 8)
        self.sparsify(penalties=[{"kind": "neuron_out", "layers": "hidden*", "strength": 1e-4}])

    def forward(self, x):
        return self.out(torch.relu(self.hidden(x.flatten(1))))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.mark.parametrize("at", [0, 1])
def test_a_module_that_is_itself_the_network(trainer, tmp_path, at):
    module, run = fit(trainer, LowRank(ranks={"hidden": 4}, at=at), module=Whole())
    assert module.hidden[0].weight.shape == (4, 64)
    assert [s.name for s in module.sparsity.regularizer.group_sets] == [
        "hidden.0:neuron_out", "hidden.1:neuron_out"
    ]  # fmt: skip
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = Whole.load_from_checkpoint(tmp_path / "a.ckpt")
    assert_same(module.state_dict(), again.state_dict())


def test_stochastic_averages_follow(trainer):
    fit(
        trainer,
        LowRank(ranks=RANKS, at=1),
        StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2),
    )


@pytest.mark.parametrize("callback", [LowRank(macs=1.0), LowRank(macs=1.0, at=1)])
def test_nothing_to_save_changes_nothing(trainer, callback):
    module, _ = fit(trainer, callback)
    plain, _ = fit(trainer)
    assert_same(weights(module), weights(plain))
    assert module.sparsity.plans == []


def test_one_callback_serves_two_modules_and_one_module_is_factorised_once(trainer):
    callback = LowRank(ranks=RANKS)
    first, _ = fit(trainer, callback, epochs=1)
    second, _ = fit(trainer, callback, epochs=1)
    assert_same(weights(first), weights(second))
    fit(trainer, callback, module=second, epochs=1)
    assert len(second.sparsity.plans) == 1


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "LowRank: expected one of macs, energy and ranks, got none"),
        ({"macs": 0.5, "energy": 0.5}, "LowRank: expected one of"),
        ({"macs": -1.0}, "LowRank: expected macs as a positive number"),
        ({"energy": 0.0}, "LowRank: expected energy as a share"),
        ({"macs": 0.5, "method": "tuckr"}, "Did you mean tucker"),
        ({"macs": 0.5, "at": -1}, "LowRank: expected start >= 0"),
    ],
)
def test_arguments_are_checked_at_once(arguments, text):
    with pytest.raises(ValueError, match=text):
        LowRank(**arguments)


@pytest.mark.parametrize(
    ("callback", "text"),
    [
        (LowRank(macs=0.5, at=3), "at=3 is never reached|start=3 is never reached"),
        (LowRank(macs=0.01, at=0), "cannot be reached: with rank 1"),
        (LowRank(macs=0.01, at=2), "cannot be reached: with rank 1"),
        (LowRank(ranks={"nothing": 2}, at=2), "has no such layer"),
    ],
)
def test_a_run_in_which_it_would_fail_is_refused_at_the_start(trainer, callback, text):
    with pytest.raises(ValueError, match=text):
        fit(trainer, callback)


def test_penalties_that_would_match_nothing_are_refused_at_the_start(trainer):
    penalty = {"kind": "filter", "layers": "conv2", "strength": 1e-3}
    for at in (0, 1):
        with pytest.raises(ValueError, match="'conv2' matches no layer"):
            fit(trainer, LowRank(ranks=RANKS, at=at), module=module_of(penalties=[penalty]))


def test_optimizers_and_strategies_as_in_compact_during_fit(trainer):
    rprop = partial(torch.optim.Rprop, lr=0.01)
    with pytest.raises(ValueError, match="cannot be sliced"):
        fit(trainer, LowRank(ranks=RANKS, at=1), module=module_of(optimizer=rprop))
    fit(trainer, LowRank(ranks=RANKS), module=module_of(optimizer=rprop), epochs=1)
    run = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(MisconfigurationException, match="LowRank needs one device or DDP"):
        LowRank(macs=0.5).setup(run, module_of(), "fit")
    module = module_of()
    module.other = [module.backbone.fc]
    with pytest.raises(MisconfigurationException, match=r"LowRank: `other` refers to"):
        fit(trainer, LowRank(ranks=RANKS), module=module)


@pytest.mark.parametrize("at", [0, 1])
def test_a_checkpoint_without_the_factors_is_refused_later(trainer, tmp_path, at):
    _, run = fit(trainer, epochs=2)
    run.save_checkpoint(tmp_path / "dense.ckpt")
    with pytest.raises(MisconfigurationException, match="from a checkpoint without the factors"):
        fit(trainer, LowRank(ranks=RANKS, at=at), ckpt=tmp_path / "dense.ckpt", epochs=3)
