"""The mixin in LightningModules as other people write them: train, prune, compact, resume."""

from __future__ import annotations

import copy
import pickle

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.utils.data import DataLoader

import own_modules
import ssl_lightning
from own_modules import COUPLED, MODULES, UNetModule, Whole
from ssl_lightning import (
    Budget,
    CompactDuringFit,
    DepthCollapse,
    Distill,
    FilterPictures,
    LowRank,
    NormPictures,
    PruneLike,
    SaveCompact,
    Sparsify,
    SparsityMonitor,
    SSLLightningModule,
    StructuredSparsity,
    ThresholdPruning,
    compact,
    load_compact,
    make_plan,
)
from ssl_lightning.callbacks import CALLBACKS
from ssl_lightning.measure import num_parameters


def trainer(folder, *callbacks, epochs=3, **settings):
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        callbacks=list(callbacks),
        **settings,
    )


def sparse_callbacks():
    return [ThresholdPruning(start=1, fraction=0.5), CompactDuringFit(at=1)]


def batches(rows, width, count=1):
    return DataLoader(torch.ones(count * rows, width), batch_size=rows)


def checkpoints(folder):
    return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, every_n_epochs=1)


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_others_train_sparse_compact_resume_bit_equal_and_end_exact(name, tmp_path):
    if name == "Transformer":
        pytest.importorskip("transformers")
    cls = MODULES[name]
    torch.manual_seed(0)
    module = cls()
    before = num_parameters(module)
    start = copy.deepcopy(module.state_dict())
    pl.seed_everything(7)
    run = trainer(tmp_path, *sparse_callbacks(), checkpoints(tmp_path / "whole"))
    run.fit(module, cls.loader())
    sparsity = module.sparsity
    assert len(sparsity.plans) == 1
    assert num_parameters(module) < before
    live = {id(p) for p in module.parameters()}
    held = [p for o in run.optimizers for g in o.param_groups for p in g["params"]]
    assert {id(p) for p in held} <= live
    assert all(p.grad is not None for p in held if p.requires_grad)

    for epoch in (0, 1):  # the run is killed before, and after, the network was compacted
        again = cls()
        again.load_state_dict(start, strict=False)
        pl.seed_everything(99)
        trainer(tmp_path, *sparse_callbacks(), checkpoints(tmp_path / "whole")).fit(
            again, cls.loader(), ckpt_path=tmp_path / "whole" / f"epoch={epoch}.ckpt"
        )
        assert again.sparsity.plans == sparsity.plans
        for key, value in module.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), key

    network, example = sparsity.network.eval(), sparsity.example_input()
    plan = make_plan(network, example)  # compares in float64
    small = compact(network, plan)
    assert num_parameters(small) <= num_parameters(network)
    again = cls() if name != "UNetModule" else configured(cls())
    again.eval().on_load_checkpoint(torch.load(tmp_path / "whole" / "epoch=2.ckpt"))
    assert [p.shape for p in again.parameters()] == [p.shape for p in module.parameters()]


def configured(module):
    module.configure_model()
    return module


@pytest.mark.parametrize("cls", [UNetModule, Whole])
def test_training_on_the_compact_network_equals_training_on_the_masked_one(
    cls, tmp_path, monkeypatch
):
    """With penalties in the first epoch only: later, what is removed counts in no group's norm."""
    results = []
    until = {**COUPLED[0], "schedule": {"kind": "window", "end": 1}}
    monkeypatch.setattr(own_modules, "COUPLED", [until])
    for compacting in (False, True):
        torch.manual_seed(0)
        module = cls()
        pl.seed_everything(7)
        callbacks = sparse_callbacks() if compacting else sparse_callbacks()[:1]
        module = module.double()
        run = trainer(tmp_path, *callbacks, precision="64-true")
        run.fit(module, cls.loader())
        torch.manual_seed(1)
        network = module.sparsity.network.eval()
        results.append(network(torch.rand_like(module.sparsity.example_input())))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)


def test_all_callbacks_work_on_a_module_of_others(tmp_path):
    module = UNetModule()
    folder = str(tmp_path / "compact")
    run = trainer(
        tmp_path,
        ThresholdPruning(start=1, fraction=0.5),
        CompactDuringFit(at=1),
        SparsityMonitor(table=False),
        FilterPictures(layer="down1.conv", folder=str(tmp_path)),
        NormPictures(folder=str(tmp_path)),
        SaveCompact(folder),
    )
    run.fit(module, UNetModule.loader())
    assert {"groups/coupled", "macs/left", "sparsity/down1.conv/filters"} <= set(
        run.callback_metrics
    )
    assert run.callback_metrics["macs/left"] < 80
    assert {"filters.png", "norms.png"} <= {file.name for file in tmp_path.iterdir()}
    small = load_compact(folder, model=lambda: UNetModule().net)
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(small(x), module.net.eval()(x), atol=1e-5)

    control = UNetModule()
    trainer(tmp_path, PruneLike(folder, start=1, importance="random")).fit(
        control, UNetModule.loader()
    )
    assert len(control.sparsity.locks) > 0

    within = UNetModule()
    trainer(tmp_path, Budget(macs=0.5, end=1)).fit(within, UNetModule.loader())
    assert 45 < within.sparsity.macs_left() <= 50

    factored = UNetModule()
    low_rank = LowRank(macs=0.6, method="svd", layers="*conv*", at=1)
    trainer(tmp_path, low_rank).fit(factored, UNetModule.loader())
    assert 50 < factored.sparsity.macs_left() <= 60

    torch.manual_seed(0)
    taught, teacher = UNetModule(), UNetModule()
    before = distance(taught, teacher)
    maps = {"features": ["down1.conv"], "feature_weight": 1.0}
    distill = Distill(teacher.net, 1.0, loss="squared_difference", **maps)
    taught.net.train()
    trainer(tmp_path, distill, epochs=15).fit(taught, UNetModule.loader())
    assert distance(taught, teacher) < 0.95 * before
    tested = {ThresholdPruning, CompactDuringFit, SparsityMonitor, SaveCompact, PruneLike}
    assert set(CALLBACKS.values()) == tested | {
        FilterPictures,
        NormPictures,
        Budget,
        LowRank,
        DepthCollapse,
        Distill,
        Sparsify,
    }


def distance(one, other):
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return float((one.net.eval()(x) - other.net.eval()(x)).square().mean())


class Residual(StructuredSparsity):
    def __init__(self):
        super().__init__()
        self.net = ssl_lightning.create_backbone("resnet20")
        self.sparsify(
            "net",
            [{"kind": "depth", "layers": "*.conv2", "strength": 1e-3}],
            input_shape=(3, 32, 32),
        )

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_block_of_a_module_of_others_collapses(tmp_path):
    module = Residual()
    block = next(n for n, m in module.net.named_modules() if n.endswith("1.conv2"))
    with torch.no_grad():
        module.net.get_submodule(block).weight.zero_()
    collapse = DepthCollapse()
    batch = (torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
    trainer(tmp_path, collapse, epochs=1).fit(module, DataLoader([batch], batch_size=None))
    assert block in collapse.collapsed


def test_a_callback_sparsifies_from_a_config(tmp_path):
    class Plain(StructuredSparsity):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

        def training_step(self, batch, batch_idx):
            return self.body(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    penalties = [{"kind": "neuron_out", "layers": "0", "strength": 10.0}]
    module = Plain()
    run = trainer(tmp_path, Sparsify("body", penalties, input_shape=[4]), checkpoints(tmp_path))
    run.fit(module, batches(2, 4))
    assert not module.body[0].weight.any()
    again = Plain()
    run = trainer(
        tmp_path, Sparsify("body", penalties, input_shape=[4]), checkpoints(tmp_path), epochs=4
    )
    run.fit(again, batches(2, 4), ckpt_path=tmp_path / "epoch=2.ckpt")
    with pytest.raises(MisconfigurationException, match="Sparsify: expected a LightningModule"):
        trainer(tmp_path, Sparsify("body")).fit(BoringModel())
    with pytest.raises(MisconfigurationException, match="Plain was not sparsified"):
        trainer(tmp_path).fit(Plain(), batches(2, 4))


def test_mistakes_are_named():
    module = Whole.__new__(Whole)
    pl.LightningModule.__init__(module)
    module.body = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"Whole.sparsify: .* got 'bodi'. Submodules: body"):
        module.sparsify("bodi")
    with pytest.raises(ValueError, match="got both"):
        module.sparsify("body", example_input=torch.zeros(1, 2), input_shape=(2,))
    with pytest.raises(ValueError, match="unknown kind 'filtre'"):
        module.sparsify("body", [{"kind": "filtre", "strength": 1.0}])
    module.sparsify("body", [{"kind": "neuron_out", "strength": 1.0}])
    with pytest.raises(ValueError, match="expected one call"):
        module.sparsify("body")


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    module = Whole()
    trainer(tmp_path, checkpoints(tmp_path), epochs=1).fit(module, Whole.loader())
    content = torch.load(tmp_path / "epoch=0.ckpt")
    other = UNetModule()
    other.configure_model()
    with pytest.raises(ValueError, match=r"sparse network is ''.* here it is 'net'"):
        other.on_load_checkpoint(content)


def test_hooks_of_every_base_are_called_once(tmp_path):
    calls = []

    class Other(pl.LightningModule):
        def setup(self, stage):
            calls.append("other")

    class Base(StructuredSparsity):
        pass

    class Both(Base, Other):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.sparsify("layer", [{"kind": "neuron_out", "strength": 1e-3}])

        def on_train_batch_start(self, batch, batch_idx):
            calls.append("batch")
            super().on_train_batch_start(batch, batch_idx)

        def training_step(self, batch, batch_idx):
            return self.layer(batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer(tmp_path, epochs=1).fit(Both(), batches(1, 2))
    assert calls == ["other", "batch"]


@pytest.mark.parametrize("seeded", [True, False])
def test_seeding_of_batches_is_optional(seeded, tmp_path):
    drawn = []

    class Draws(StructuredSparsity):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.sparsify("layer", seed_batches=seeded)

        def training_step(self, batch, batch_idx):
            drawn.append(torch.initial_seed())
            return self.layer(batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    pl.seed_everything(3)
    trainer(tmp_path, epochs=1).fit(Draws(), batches(1, 2, 2))
    assert (len(set(drawn)) == 2) == seeded
    assert (drawn[0] == 3) != seeded


def test_a_module_is_copied_pickled_and_averaged(tmp_path):
    module = Whole()
    trainer(tmp_path, epochs=1).fit(module, Whole.loader())
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.sparsity.module is other
        assert other.sparsity.network.conv1 is other.conv1 is not module.conv1
        assert [s.name for s in other.sparsity.regularizer.group_sets] == [
            s.name for s in module.sparsity.regularizer.group_sets
        ]
    averaged = Whole()
    run = trainer(tmp_path, *sparse_callbacks(), WeightAveraging())
    run.fit(averaged, Whole.loader())
    assert averaged.conv1.out_channels < 8


def test_a_checkpoint_from_before_the_compaction_is_loaded_after_it(tmp_path):
    module = Whole()
    run = trainer(tmp_path, *sparse_callbacks(), checkpoints(tmp_path))
    run.fit(module, Whole.loader())
    small = module.conv1.out_channels
    trainer(tmp_path, *sparse_callbacks(), checkpoints(tmp_path), epochs=4).fit(
        module, Whole.loader(), ckpt_path=tmp_path / "epoch=0.ckpt"
    )
    assert module.conv1.out_channels == small
    assert not any(p.isnan().any() for p in module.parameters())


def test_our_module_is_one_of_them():
    assert issubclass(SSLLightningModule, StructuredSparsity)
    module = SSLLightningModule("lenet", penalties=[{"kind": "filter", "strength": 1e-3}])
    for name in ("regularizer", "locks", "plans"):
        assert getattr(module, name) is getattr(module.sparsity, name)


def test_the_zoo_also_has_the_names_of_publishing():
    from ssl_lightning import publishing, zoo

    for name in zoo.PUBLISHING:
        assert getattr(zoo, name) is getattr(publishing, name)
    assert set(zoo.PUBLISHING) <= set(publishing.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zoo.nothing


class Steer(pl.Callback):
    """Doubles the scale of the first penalty at every epoch, as a controller would."""

    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.sparsity.regularizer.scales = [2.0**trainer.current_epoch]


def test_scales_of_strengths_are_in_checkpoints_and_survive_compaction(tmp_path):
    module = Whole()
    run = trainer(tmp_path, Steer(), *sparse_callbacks(), checkpoints(tmp_path))
    run.fit(module, Whole.loader())
    assert list(module.sparsity.regularizer.scales) == [4.0]
    again = Whole()
    again.on_load_checkpoint(torch.load(tmp_path / "epoch=1.ckpt"))
    assert list(again.sparsity.regularizer.scales) == [2.0]
    strength = module.sparsity.regularizer.strengths(0)["conv1:coupled"]
    assert strength == pytest.approx(2 * again.sparsity.regularizer.strengths(0)["conv1:coupled"])
    broken = torch.load(tmp_path / "epoch=1.ckpt")
    broken["ssl_lightning"]["regularizer"] = {"scales": [-1.0]}
    other = Whole()
    assert other.sparsity.regularizer is not None
    with pytest.raises(ValueError, match="scale"):
        other.on_load_checkpoint(broken)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("step", [1, 4, 5])  # batches of epochs of three; 3 ends one
def test_plain_loaders_are_resumed_in_the_middle_of_an_epoch(shuffle, step, tmp_path):
    images = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    rows = [(x, i % 3) for i, x in enumerate(images)]

    def fit(module, seed, **settings):
        every = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
        pl.seed_everything(seed)
        loader = DataLoader(rows, batch_size=8, shuffle=shuffle)
        trainer(tmp_path, *sparse_callbacks(), every).fit(module, loader, **settings)

    torch.manual_seed(0)
    whole = Whole()
    fit(whole, 7)
    again = Whole()
    fit(again, 99, ckpt_path=tmp_path / f"step={step}.ckpt")
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
