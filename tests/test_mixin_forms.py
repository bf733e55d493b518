"""The mixin in modules that hold, share, freeze and step their parts in other ways."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    GradientAccumulationScheduler,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics.classification import MulticlassAccuracy

from ssl_lightning import (
    CompactDuringFit,
    SaveCompact,
    Sparsify,
    StructuredSparsity,
    ThresholdPruning,
    load_compact,
)
from test_mixin import checkpoints, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
COUPLED = [{"kind": "coupled", "strength": 1e-3}]
RAMP = [{**COUPLED[0], "schedule": {"kind": "ramp", "end": 4}}]


def make_net():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class Plain(StructuredSparsity):
    """A network and a head; what a subclass adds comes before it is sparsified."""

    penalties = COUPLED
    network: str | None = "net"

    def __init__(self):
        super().__init__()
        self.net, self.head = make_net(), nn.Linear(8, 3)
        self.add()
        if self.network is not None:
            self.sparsify(self.network, self.penalties, input_shape=(1, 8, 8))

    def add(self):
        pass

    def forward(self, x):
        return self.head(self.net(x))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=0.05, momentum=0.9)


class Evaluated(Plain):
    def validation_step(self, batch, batch_idx):
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))


def loader(rows=4, **settings):
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    return DataLoader([(x, int(3 * x.mean() % 3)) for x in images], batch_size=rows, **settings)


def sparse():
    return [ThresholdPruning(start=1, fraction=0.4), CompactDuringFit(at=1)]


def validate(folder, module, *callbacks, **settings):
    """Return the loss of a module with a validation step, by a trainer of its own."""
    run = trainer(folder, *callbacks)
    return run.validate(module, loader(), verbose=False, **settings)[0]["loss"]


def equal(one, other):
    return [
        key
        for key, value in one.state_dict().items()
        if not torch.equal(other.state_dict()[key].nan_to_num(), value.nan_to_num())
    ] == []


# --- compaction in modules that use the network in several places --------------------------------


class Twice(Plain):
    def add(self):
        self.model = nn.Sequential(self.net, self.head)

    def forward(self, x):
        return self.model(x)


def test_a_network_under_two_names_is_compacted_under_both(tmp_path):
    module = Twice()
    trainer(tmp_path, *sparse()).fit(module, loader())
    assert module.model[0] is module.net
    assert module.net[0].out_channels < 8
    assert all(p.grad is not None for p in module.parameters())


class Stem(Plain):
    def add(self):
        self.stem = self.net[0]


class Tied(Plain):
    def add(self):
        self.decoder = nn.Conv2d(8, 8, 3)
        self.decoder.weight = self.net[3].weight


class Listed(Plain):
    def add(self):
        self.nets = [self.net]


class Method(Plain):
    def add(self):
        self.encode = self.net.forward


class ListedWhole(Plain):
    network = None

    def add(self):
        self.blocks = [self.net[0]]
        self.example_input_array = torch.zeros(1, 1, 8, 8)
        self.sparsify("", COUPLED)


class Averaged(Plain):
    def add(self):
        self.average = AveragedModel(self.net)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Stem, "`stem` refers to the network `net` or a part of it"),
        (Tied, "`decoder.weight` refers to"),
        (Listed, "`nets` refers to"),
        (Method, "`encode` refers to"),
        (ListedWhole, "`blocks` refers to the module or a part of it"),
        (Averaged, "`average` holds averaged weights of the network `net`"),
    ],
)
def test_what_would_still_use_the_old_layers_is_refused_at_the_start(cls, message, tmp_path):
    module = cls()
    with pytest.raises(MisconfigurationException, match=f"CompactDuringFit: {message}"):
        trainer(tmp_path, *sparse()).fit(module, loader())
    assert module.net[0].out_channels == 8
    trainer(tmp_path, sparse()[0]).fit(module, loader())


class Measured(Plain):
    network = None

    def add(self):
        self.accuracy = MulticlassAccuracy(3)
        self.scale = nn.Parameter(torch.ones(3))
        self.example_input_array = torch.zeros(1, 1, 8, 8)
        self.sparsify("", COUPLED)

    def forward(self, x):
        return super().forward(x) * self.scale

    def training_step(self, batch, batch_idx):
        self.accuracy(self(batch[0]), batch[1])
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


def test_metrics_of_a_module_that_is_the_network_are_logged_after_compaction(tmp_path):
    module = Measured()
    run = trainer(tmp_path, *sparse())
    run.fit(module, loader())
    assert module.net[0].out_channels < 8
    assert 0 <= run.callback_metrics["accuracy"] <= 1


# --- checkpoints ----------------------------------------------------------------------------------


class Masked(Plain):
    def add(self):
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("best", torch.tensor(torch.inf))
        self.register_buffer("unknown", torch.tensor(torch.nan))
        self.net.register_buffer("past", torch.full((2, 2), -torch.inf).triu(1))


def test_buffers_that_are_infinite_by_design_are_loaded(tmp_path):
    torch.manual_seed(0)
    module = Masked()
    folder = str(tmp_path / "compact")
    trainer(tmp_path, *sparse(), checkpoints(tmp_path), SaveCompact(folder)).fit(module, loader())
    again = Masked()
    run = trainer(tmp_path, *sparse(), checkpoints(tmp_path))
    run.fit(again, loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert equal(module, again)
    assert equal(module, Masked.load_from_checkpoint(tmp_path / "epoch=2.ckpt"))
    small = load_compact(folder, model=lambda: Masked().net)
    assert torch.isneginf(small.past[0, 1])


@pytest.mark.parametrize("name", ["head.weight", "net.1.running_var", "net.0.bias"])
def test_weights_and_statistics_that_are_infinite_are_not(name, tmp_path):
    module = Masked()
    trainer(tmp_path, checkpoints(tmp_path), epochs=1).fit(module, loader())
    content = torch.load(tmp_path / "epoch=0.ckpt")
    content["state_dict"][name][0] = torch.inf
    torch.save(content, tmp_path / "diverged.ckpt")
    with pytest.raises(ValueError, match=f"`{name}` in the checkpoint holds NaN or infinite"):
        Masked.load_from_checkpoint(tmp_path / "diverged.ckpt")


class Partial(Evaluated):
    def on_save_checkpoint(self, checkpoint):
        del checkpoint["state_dict"]["head.weight"]

    def on_load_checkpoint(self, checkpoint):
        checkpoint["state_dict"]["head.weight"] = torch.ones(3, 8)


def test_a_hook_may_complete_the_tensors_of_a_checkpoint(tmp_path):
    trainer(tmp_path, checkpoints(tmp_path), epochs=1).fit(Partial(), loader(), loader())
    again = Partial()
    validate(tmp_path, again, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert bool((again.head.weight == 1).all())


def test_double_precision_resumes_bit_equal(tmp_path):
    torch.manual_seed(0)
    module = Plain()
    run = trainer(tmp_path, *sparse(), checkpoints(tmp_path), precision="64-true")
    run.fit(module, loader())
    for epoch in (0, 1):
        again = Plain()
        trainer(tmp_path, *sparse(), precision="64-true").fit(
            again, loader(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt"
        )
        assert equal(module, again)


def test_scales_of_an_earlier_checkpoint_come_back(tmp_path):
    module = Evaluated()
    trainer(tmp_path, checkpoints(tmp_path), epochs=1).fit(module, loader(), loader())
    module.sparsity.regularizer.scales = [5.0]
    validate(tmp_path, module, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert module.sparsity.regularizer.scales == (1.0,)


# --- sparsify: where, and how often ---------------------------------------------------------------


class InSetup(Evaluated):
    network = None

    def setup(self, stage):
        self.sparsify("net", self.penalties, input_shape=(1, 8, 8))


def test_the_same_call_for_each_stage_changes_nothing(tmp_path):
    module = InSetup()
    run = trainer(tmp_path, *sparse())
    run.fit(module, loader(), loader())
    plans = module.sparsity.plans
    assert len(plans) == 1
    validate(tmp_path, module)
    assert module.sparsity.plans is plans
    with pytest.raises(ValueError, match="expected one call, got a second one, for 'head'"):
        module.sparsify("head")
    with pytest.raises(ValueError, match="says something else"):
        module.sparsify("net", RAMP)


class ByCallback(Evaluated):
    network = None


def test_a_module_that_a_callback_sparsified_is_loaded_and_evaluated_without_it(tmp_path):
    def sparsify():
        return Sparsify("net", COUPLED, input_shape=[1, 8, 8])

    torch.manual_seed(0)
    module, path = ByCallback(), tmp_path / "epoch=1.ckpt"
    run = trainer(tmp_path, sparsify(), *sparse(), checkpoints(tmp_path))
    run.fit(module, loader(), loader())
    validate(tmp_path, module, sparsify())
    again = ByCallback.load_from_checkpoint(path)
    assert again.net[0].out_channels == module.net[0].out_channels < 8
    alone = validate(tmp_path, ByCallback(), ckpt_path=path)
    assert alone == validate(tmp_path, ByCallback(), sparsify(), ckpt_path=path)
    with pytest.raises(MisconfigurationException, match="ByCallback was not sparsified"):
        trainer(tmp_path).fit(ByCallback(), loader(), loader(), ckpt_path=path)
    run = trainer(tmp_path, sparsify(), *sparse(), checkpoints(tmp_path))
    run.fit(again, loader(), loader(), ckpt_path=path)
    assert equal(module, again)


class Wrapped(Plain):
    def add(self):
        self.net = torch.compile(self.net, backend="eager")


class Inside(Wrapped):
    network = "net._orig_mod"


def test_a_wrapped_network_is_named_by_what_is_inside(tmp_path):
    with pytest.raises(ValueError, match=r"compiled by `torch.compile`.*'net._orig_mod'"):
        Wrapped()
    module = Inside()
    trainer(tmp_path, sparse()[0]).fit(module, loader())
    assert not bool(module.net._orig_mod[0].weight.flatten(1).any(1).all())


# --- optimizers -----------------------------------------------------------------------------------


class Gan(StructuredSparsity):
    """The discriminator makes many steps for one of the generator, whose network is sparse."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
        self.critic = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
        self.sparsify("generator", [{"kind": "neuron_out", "layers": "0", "strength": 1e4}])

    def training_step(self, batch, batch_idx):
        generator, critic = self.optimizers()
        made = self.generator(torch.randn(4, 4))
        if batch_idx == 29:
            self.manual_backward(-self.critic(made).mean())
            generator.step()
            return
        critic.zero_grad()
        self.manual_backward((self.critic(made.detach()) - self.critic(batch)).mean())
        critic.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(m.parameters(), lr=0.1) for m in (self.generator, self.critic)]


def test_an_optimizer_of_another_network_may_step_more_often(tmp_path):
    module = Gan()
    trainer(tmp_path, epochs=1).fit(module, DataLoader(torch.rand(120, 8), batch_size=4))
    assert not module.generator[0].weight.any()


class Unfreeze(BaseFinetuning):
    def __init__(self, train_bn):
        super().__init__()
        self.train_bn = train_bn

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net, train_bn=self.train_bn)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net, optimizer)


class Strong(Plain):
    penalties = [{"kind": "filter", "strength": 50.0, "members": "all"}]  # noqa: RUF012


@pytest.mark.parametrize("train_bn", [True, False])
def test_penalties_wait_until_a_callback_unfreezes_the_network(train_bn, tmp_path):
    module = Strong()
    with pytest.warns(UserWarning, match="no effect while parameters of their groups are frozen"):
        trainer(tmp_path, Unfreeze(train_bn), epochs=1).fit(module, loader())
    assert bool(module.net[0].weight.all())
    module = Strong()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, Unfreeze(train_bn), epochs=2).fit(module, loader())
    assert not module.net[0].weight.any()


def test_penalties_act_in_a_copy_of_a_trained_module(tmp_path):
    module = Strong()
    trainer(tmp_path, epochs=1).fit(module, loader())
    again = copy.deepcopy(module)
    with torch.no_grad():
        again.net[0].weight.fill_(1.0)
    trainer(tmp_path, epochs=1).fit(again, loader())
    assert not again.net[0].weight.any()


# --- schedules ------------------------------------------------------------------------------------


class Epochs(Plain):
    penalties = RAMP

    def on_train_start(self):
        self.seen = []

    def on_before_zero_grad(self, optimizer):
        self.seen.append(self.sparsity.epoch)

    def on_train_epoch_end(self):
        self.at_end = self.sparsity.epoch


def test_schedules_follow_epochs_when_accumulation_changes(tmp_path):
    module = Epochs()
    run = trainer(tmp_path, GradientAccumulationScheduler({1: 2}), epochs=3)
    run.fit(module, loader())
    assert module.seen == [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5]
    assert module.at_end == 3


def test_schedules_follow_epochs_when_a_resumed_run_has_larger_batches(tmp_path):
    trainer(tmp_path, checkpoints(tmp_path), epochs=2).fit(Epochs(), loader())
    module = Epochs()
    trainer(tmp_path, epochs=4).fit(module, loader(8), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert module.seen == [2, 2.5, 3, 3.5]


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.rand(1, 8, 8), 0


def test_schedules_that_never_start_are_refused_or_said(tmp_path):
    class Late(Plain):
        penalties = [{**COUPLED[0], "schedule": {"kind": "ramp", "start": 5, "end": 9}}]  # noqa: RUF012

    with pytest.raises(ValueError, match=r"is 0 during all of the run's 2 epochs"):
        trainer(tmp_path, epochs=-1, max_steps=8).fit(Late(), loader())
    with pytest.warns(UserWarning, match="The data loader has no length"):
        trainer(tmp_path, epochs=-1, max_steps=2).fit(Epochs(), DataLoader(Endless()))
