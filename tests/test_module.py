"""SSLLightningModule against hand-written loops, under all the Trainer's modes."""

from __future__ import annotations

import copy
import hashlib
import math
from functools import partial

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from ssl_lightning import Budget, SSLLightningModule, create_backbone, zoo
from ssl_lightning.groups import group_norms
from toy import make_toy, toy_loader

pytestmark = [
    # many of these runs need no validation data
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    # toy loaders have fewer batches than log_every_n_steps
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
FILTERS = {"kind": "filter", "layers": "conv1", "strength": 0.08}


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def shrink_filters_by_hand(net: nn.Module, threshold: float) -> None:
    """Proximal step on conv1's filters (weight, bias, batch norm), one filter at a time."""
    parts = [net.conv1.weight, net.conv1.bias, net.bn1.weight, net.bn1.bias]
    with torch.no_grad():
        for i in range(len(net.conv1.weight)):
            norm = sum(float(p[i].double().square().sum()) for p in parts) ** 0.5
            for p in parts:
                p[i] *= max(0.0, 1.0 - threshold / norm) if norm else 0.0


def train_by_hand(net, loader, epochs, *, threshold=0.0, accumulate=1, clip=None, extra=None):
    """The plain loop that the module must equal."""
    net.train()
    optimizer = SGD(net.parameters())
    for _ in range(epochs):
        batches = list(loader)
        for i in range(0, len(batches), accumulate):
            optimizer.zero_grad()
            for x, y in batches[i : i + accumulate]:
                (F.cross_entropy(net(x), y) / accumulate).backward()
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            if extra:
                extra(net)
            optimizer.step()
            if threshold:
                shrink_filters_by_hand(net, threshold)
    return net


def fitted_in_float64(trainer, net, penalties=(), **settings):
    """Train in float64, so that differences of rounding do not grow."""
    loader = toy_loader(dtype=torch.float64)
    return fitted(trainer, net.double(), penalties, loader=loader, precision="64-true", **settings)


def fitted(trainer, net, penalties=(), epochs=2, optimizer=SGD, loader=None, **settings):
    module = SSLLightningModule(net, penalties=list(penalties), optimizer=optimizer)
    trainer(max_epochs=epochs, **settings).fit(module, loader or toy_loader())
    return module


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_training_without_penalties_equals_the_plain_loop(trainer, accumulate, clip):
    net = make_toy()
    expected = train_by_hand(copy.deepcopy(net), toy_loader(), 2, accumulate=accumulate, clip=clip)
    module = fitted(trainer, net, accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    assert_same(weights(module.backbone), weights(expected), rtol=0, atol=0)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_proximal_step_follows_every_optimizer_step(trainer, accumulate, clip):
    net = make_toy()
    size = 9 + 3  # weight, bias, scale and shift of one filter
    threshold = 0.08 * size**0.5 * 0.05 / (1 - 0.9)
    expected = train_by_hand(
        copy.deepcopy(net).double(),
        toy_loader(dtype=torch.float64),
        4,
        threshold=threshold,
        accumulate=accumulate,
        clip=clip,
    )
    module = fitted_in_float64(
        trainer,
        net,
        [FILTERS],
        epochs=4,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
    )
    assert_same(weights(module.backbone), weights(expected), rtol=1e-7, atol=1e-9)
    norms = group_norms(
        module.sparsity.regularizer.group_sets[0], dict(module.backbone.named_parameters())
    )
    assert (norms == 0).any(), "the strength is chosen so that filters go"


def test_subgradient_is_added_after_clipping(trainer):
    net = make_toy()

    def subgradient(n):
        w = n.conv2.weight
        norms = w.detach().square().sum((1, 2, 3), keepdim=True).sqrt()
        w.grad += 0.3 * 54**0.5 * w.detach() / norms

    expected = train_by_hand(
        copy.deepcopy(net).double(),
        toy_loader(dtype=torch.float64),
        2,
        clip=0.1,
        extra=subgradient,
    )
    penalty = {
        "kind": "filter",
        "layers": "conv2",
        "strength": 0.3,
        "mode": "subgradient",
        "members": "weight",
    }
    module = fitted_in_float64(trainer, net, [penalty], gradient_clip_val=0.1)
    assert_same(weights(module.backbone), weights(expected), rtol=1e-7, atol=1e-9)


def test_proximal_step_uses_the_learning_rate_of_the_parameters_own_group(trainer):
    penalties = [
        {"kind": "filter", "layers": layer, "strength": 1e-3, "members": "weight"}
        for layer in ("conv1", "conv2")
    ]
    net = make_toy()
    module = SSLLightningModule(
        net,
        penalties=penalties,
        optimizer=partial(torch.optim.SGD, lr=0.5),
        parameter_groups=[{"parameters": "conv2.*", "lr": 0.1}],
    )
    optimizer = module.configure_optimizers()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    before = {
        n: p.detach().flatten(1).norm(dim=1) for n, p in net.named_parameters() if p.dim() == 4
    }
    module.sparsity.regularizer.proximal_step_(optimizer)
    for name, lr in (("conv1.weight", 0.5), ("conv2.weight", 0.1)):
        weight = dict(net.named_parameters())[name]
        shrunk = before[name] - weight.detach().flatten(1).norm(dim=1)
        expected = torch.full_like(shrunk, lr * 1e-3 * weight[0].numel() ** 0.5)
        torch.testing.assert_close(shrunk, expected, rtol=1e-3, atol=1e-7)


def test_no_proximal_step_where_the_scaler_skipped_the_optimizer_step():
    net = make_toy()
    module = SSLLightningModule(net, penalties=[FILTERS], optimizer=SGD)
    steps = []
    module.sparsity.regularizer.proximal_step_ = lambda *_: steps.append(1)
    module._trainer = type(
        "T", (), {"num_training_batches": 1, "accumulate_grad_batches": 1, "global_step": 0}
    )()
    optimizer = module.configure_optimizers()
    module.sparsity.regularizer.attach(optimizer, locks=module.sparsity.locks)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    x, y = next(iter(toy_loader()))
    for bad in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(net(x), y)).backward()
        if bad:
            net.conv1.weight.grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
    assert len(steps) == 2


def test_a_fused_optimizer_that_skipped_inside_is_not_followed_by_a_proximal_step():
    from ssl_lightning.steps import has_stepped

    optimizer = SGD(make_toy().parameters())
    assert has_stepped(optimizer)
    optimizer.found_inf = torch.tensor(1.0)
    assert not has_stepped(optimizer)
    optimizer.found_inf = torch.tensor(0.0)
    assert has_stepped(optimizer)


@pytest.mark.filterwarnings("ignore:.*rounds away shrinking")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_penalties_reach_zero_in_other_precisions(trainer, precision):
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision)
    loader = toy_loader(dtype=dtype)
    module = fitted(trainer, make_toy(), [FILTERS], epochs=3, precision=precision, loader=loader)
    group_set = module.sparsity.regularizer.group_sets[0]
    norms = group_norms(group_set, dict(module.backbone.named_parameters()))
    assert (norms == 0).any()
    assert torch.isfinite(norms).all()


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_of_fused_optimizers_are_clipped_where_nothing_is_scaled(trainer, algorithm):
    """Under bf16 there is no gradient scaler, so that clipping is as right as anywhere."""
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        module = SSLLightningModule(
            make_toy(), optimizer=partial(torch.optim.SGD, lr=0.05, fused=fused)
        )
        start = copy.deepcopy(weights(module))
        trainer(max_epochs=1, precision="bf16-mixed", gradient_clip_val=1e-4,
                gradient_clip_algorithm=algorithm).fit(module, toy_loader())  # fmt: skip
        found.append(weights(module))
        moved = max(
            float((found[-1][k] - v).abs().max()) for k, v in start.items() if "weight" in k
        )
        assert 0 < moved < 1e-3
    assert_same(*found, rtol=1e-5, atol=1e-8)


def test_compiled_backbone_trains_like_the_plain_one(trainer):
    plain = fitted(trainer, make_toy(), [FILTERS], epochs=1, limit_train_batches=3)
    module = SSLLightningModule(make_toy(), penalties=[FILTERS], optimizer=SGD, compile=True)
    trainer(max_epochs=1, limit_train_batches=3).fit(module, toy_loader())
    assert_same(weights(module.backbone), weights(plain.backbone), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_adaptive_optimizers_reach_exact_zeros(trainer, optimizer):
    penalty = {**FILTERS, "strength": 0.2}
    module = fitted(trainer, make_toy(), [penalty], epochs=6, optimizer=partial(optimizer, lr=0.01))
    norms = group_norms(
        module.sparsity.regularizer.group_sets[0], dict(module.backbone.named_parameters())
    )
    assert (norms == 0).any()


def test_an_optimizer_without_a_known_proximal_step_is_refused(trainer):
    with pytest.raises(ValueError, match=r"No proximal step is known for Adamax.*subgradient"):
        fitted(trainer, make_toy(), [FILTERS], optimizer=torch.optim.Adamax)
    subgradient = {**FILTERS, "mode": "subgradient"}
    fitted(trainer, make_toy(), [subgradient], optimizer=torch.optim.Adamax, epochs=1)


def test_locked_groups_stay_zero_under_momentum_decay_and_averaging(trainer, tmp_path):
    module = SSLLightningModule(make_toy(), penalties=[FILTERS], optimizer=SGD)
    loader = toy_loader()
    trainer(max_epochs=1).fit(module, loader)
    mask = torch.tensor([True, False, True, False, False, False])
    assert (
        module.sparsity.prune_groups_(module.sparsity.regularizer.group_sets[0], mask, lock=True)
        == 2
    )
    checkpoint = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=3, save_top_k=-1)
    averaging = EMAWeightAveraging(decay=0.99)
    averaged = trainer(max_epochs=2, callbacks=[averaging, checkpoint], enable_checkpointing=True)
    averaged.fit(module, loader, loader)
    net = module.backbone
    for parameter in (net.conv1.weight, net.conv1.bias, net.bn1.weight, net.bn1.bias):
        assert not parameter[mask].any()
        assert parameter[~mask].any()
    for path in tmp_path.glob("*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert not state["backbone.conv1.weight"][mask].any()


def test_checkpoints_load_without_pickle_and_rebuild_the_module(trainer, tmp_path):
    penalties = [{"kind": "filter", "layers": "conv*", "strength": 1e-3}]
    module = SSLLightningModule("lenet", penalties=penalties, num_classes=10)
    run = trainer(max_epochs=1)
    run.fit(module, toy_loader(16, shape=(1, 28, 28)))
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = SSLLightningModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert_same(weights(again), weights(module), rtol=0, atol=0)
    assert again.sparsity.penalties == module.sparsity.penalties


class KilledError(Exception):
    pass


class Killer(SSLLightningModule):
    """Dies at a given step."""

    die_at: int | None = None

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == self.die_at:
            raise KilledError
        return super().training_step(batch, batch_idx)


def resumable_run(trainer, folder, seed=3, die_at=None, resume=False):
    from ssl_lightning import MNISTDataModule, ThresholdPruning

    torch.manual_seed(seed)
    net = make_toy(dropout=0.5)
    net.fc = nn.Linear(6 * 14 * 14, 10)
    module = Killer(
        net,
        penalties=[{"kind": "filter", "layers": "conv1", "strength": 0.05}],
        optimizer=SGD,
        input_shape=[1, 28, 28],
    )
    module.die_at = die_at
    checkpoint = ModelCheckpoint(dirpath=folder, save_last=True, every_n_train_steps=2)
    run = trainer(
        max_epochs=3,
        limit_val_batches=2,
        enable_checkpointing=True,
        callbacks=[
            checkpoint,
            ThresholdPruning(start=1, every_n_epochs=1, threshold=0.7, relative=True),
        ],
    )
    data = MNISTDataModule(batch_size=1400, augment=True)
    run.fit(module, data, ckpt_path=folder / "last.ckpt" if resume else None)
    return module


@pytest.mark.parametrize("die_at", [3, 5, 9, 10, 12])  # an epoch has 5 steps
def test_a_killed_run_resumes_to_the_same_weights(trainer, tmp_path, die_at):
    whole = resumable_run(trainer, tmp_path / "whole")
    with pytest.raises(KilledError):
        resumable_run(trainer, tmp_path / "killed", die_at=die_at)
    torch.manual_seed(99)
    resumed = resumable_run(trainer, tmp_path / "killed", seed=98, resume=True)
    assert_same(weights(resumed), weights(whole), rtol=0, atol=0)
    assert len(resumed.sparsity.locks) == len(whole.sparsity.locks) > 0


def test_nan_loss_names_epoch_batch_and_learning_rate(trainer):
    module = SSLLightningModule(make_toy(), optimizer=partial(torch.optim.SGD, lr=1e20))
    with pytest.raises(
        ValueError, match=r"loss is (nan|inf) in epoch 0, batch \d+ \(learning rate 1e\+20"
    ):
        trainer(max_epochs=1).fit(module, toy_loader())


def test_nan_weights_in_a_checkpoint_are_refused(trainer, tmp_path):
    module = SSLLightningModule(make_toy())
    run = trainer(max_epochs=1)
    run.fit(module, toy_loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    content["state_dict"]["backbone.bn1.weight"][2] = float("nan")
    torch.save(content, tmp_path / "nan.ckpt")
    with pytest.raises(ValueError, match=r"`backbone\.bn1\.weight` .* holds NaN"):
        trainer(max_epochs=2).fit(module, toy_loader(), ckpt_path=tmp_path / "nan.ckpt")


def test_too_few_classes_are_named(trainer):
    module = SSLLightningModule("lenet", num_classes=5)
    with pytest.raises(ValueError, match=r"shape \(8, 5\), but the data has \d+ classes"):
        trainer(max_epochs=1).fit(module, toy_loader(shape=(1, 28, 28)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "lenett"}, "Unknown backbone `lenett`. Did you mean lenet"),
        (
            {"penalties": [{"kind": "filtre", "strength": 1}]},
            "unknown kind 'filtre'. Did you mean filter",
        ),
        ({"penalties": [{"kind": "filter", "strength": -1}]}, "strength >= 0, got -1"),
        (
            {"penalties": [{"kind": "filter", "strenght": 1}]},
            "no argument 'strenght'. Did you mean strength",
        ),
        ({"backbone": nn.Flatten()}, "Pass `num_classes`"),
        ({"backbone": nn.Linear(2, 2), "backbone_args": {"a": 1}}, "given with a module"),
    ],
)
def test_mistakes_are_named_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        SSLLightningModule(**settings)


@pytest.mark.parametrize(
    ("penalty", "message"),
    [
        ({"kind": "filter", "layers": "konv*", "strength": 1}, "matches no layer.*conv1, conv2"),
        ({"kind": "filter", "strength": 0}, "strength is 0 everywhere"),
        (
            {"kind": "depth", "layers": "conv1", "strength": 1},
            "Cannot collapse `conv1`: it has no shortcut",
        ),
    ],
)
def test_penalties_that_fit_no_layer_fail_before_training(trainer, penalty, message):
    module = SSLLightningModule("lenet", penalties=[penalty])
    with pytest.raises(ValueError, match=message):
        trainer(max_epochs=1).fit(module, toy_loader(shape=(1, 28, 28)))


def test_sharding_strategies_are_refused():
    from lightning.pytorch.strategies import FSDPStrategy
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from ssl_lightning.module.parts import refuse_sharding

    with pytest.raises(MisconfigurationException, match="FSDPStrategy shards parameters"):
        refuse_sharding(FSDPStrategy())


def test_logged_figures(trainer):
    module = SSLLightningModule(make_toy(), penalties=[FILTERS], optimizer=SGD)
    run = trainer(max_epochs=1, log_every_n_steps=1)
    run.fit(module, toy_loader(), toy_loader())
    logged = run.callback_metrics
    assert {"train/loss", "train/error", "val/loss", "val/error"} <= logged.keys()
    assert logged["strength/filter"] == 0.08
    assert logged["groups/filter"] == int(
        (
            group_norms(
                module.sparsity.regularizer.group_sets[0], dict(module.backbone.named_parameters())
            )
            > 0
        ).sum()
    )
    assert logged["penalty/filter"] > 0
    run.test(module, toy_loader(), verbose=False)
    x, y = (torch.cat(part) for part in zip(*toy_loader(), strict=True))
    module.eval()
    error = 100 * (module(x).argmax(1) != y).float().mean()
    torch.testing.assert_close(run.callback_metrics["test/error"], error, rtol=1e-5, atol=1e-4)


# --- starting from the weights of another run ---


@pytest.fixture
def dense(trainer, tmp_path):
    """A checkpoint of a run on a small LeNet."""
    torch.manual_seed(1)
    module = SSLLightningModule("lenet", num_classes=10)
    run = trainer(max_epochs=1)
    run.fit(module, toy_loader(16, shape=(1, 28, 28)))
    run.save_checkpoint(tmp_path / "dense.ckpt")
    return module, tmp_path / "dense.ckpt"


STILL = partial(torch.optim.SGD, lr=1e-12)


def test_a_run_starts_from_the_weights_of_another_and_from_nothing_else(trainer, dense, tmp_path):
    first, path = dense
    module = SSLLightningModule("lenet", init_from=str(path), optimizer=STILL)
    run = trainer(max_epochs=1)
    run.fit(module, toy_loader(16, shape=(1, 28, 28)))
    assert_same(weights(module), weights(first), rtol=0, atol=1e-9)
    assert run.global_step == 2  # not that of the other run
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert module.initialised_from == {"source": str(path), "sha256": digest}
    run.save_checkpoint(tmp_path / "second.ckpt")
    path.unlink()  # needed no more
    again = SSLLightningModule.load_from_checkpoint(tmp_path / "second.ckpt", weights_only=True)
    assert_same(weights(again), weights(module), rtol=0, atol=0)
    assert again.initialised_from == module.initialised_from
    resumed = SSLLightningModule("lenet", init_from=str(path), optimizer=SGD)
    trainer(max_epochs=2).fit(
        resumed, toy_loader(16, shape=(1, 28, 28)), ckpt_path=tmp_path / "second.ckpt"
    )
    assert resumed.initialised_from == module.initialised_from


def test_a_run_starts_from_an_entry_of_the_zoo(trainer, tmp_path):
    name = "mlp_mnist_neuron"
    module = SSLLightningModule(f"zoo:{name}", {"pretrained": False}, init_from=f"zoo:{name}",
                                optimizer=STILL)  # fmt: skip
    trainer(max_epochs=1).fit(module, toy_loader(16, shape=(1, 28, 28)))
    assert_same(weights(module.backbone), weights(zoo.load(name)), rtol=0, atol=1e-9)
    expected = zoo.card(name).files["model.safetensors"].sha256
    assert module.initialised_from == {"source": f"zoo:{name}", "sha256": expected}


@pytest.mark.parametrize("file", ["net.pt", "timm.pth", "net.safetensors"])
def test_weights_of_a_plain_file_are_where_a_run_begins(trainer, tmp_path, file):
    torch.manual_seed(3)
    state, path = create_backbone("lenet").state_dict(), tmp_path / file
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state} if file == "timm.pth" else state, path)
    module = SSLLightningModule("lenet", init_from=str(path), optimizer=STILL)
    trainer(max_epochs=1).fit(module, toy_loader(16, shape=(1, 28, 28)))
    for name, tensor in module.backbone.state_dict().items():
        torch.testing.assert_close(tensor, state[name], atol=1e-9, rtol=1e-6)
    state["fc2.bias"][0] = math.nan
    torch.save(state, tmp_path / "nan.pt")
    module = SSLLightningModule("lenet", init_from=str(tmp_path / "nan.pt"))
    with pytest.raises(ValueError, match=r"nan.pt: expected finite weights, got fc2.bias"):
        trainer(max_epochs=1).fit(module, toy_loader(16, shape=(1, 28, 28)))


def test_a_budget_of_weights_that_are_trained_is_reached_at_once(trainer):
    for start, end in ((None, 3), ("runs/dense/last.ckpt", 0), ("net.pt", 0)):
        module = SSLLightningModule("lenet", init_from=start)
        assert Budget(macs=0.5).end_of(trainer(max_epochs=9), module) == end


def test_what_cannot_be_started_from_is_named(trainer, dense, tmp_path):
    (tmp_path / "bad.ckpt").write_bytes(dense[1].read_bytes()[:-100])
    torch.save({"state_dict": {}, "hook": print}, tmp_path / "code.ckpt")
    for source, error, message in (
        (tmp_path / "none.ckpt", FileNotFoundError, "No checkpoint at .*none.ckpt"),
        (tmp_path / "bad.ckpt", ValueError, "truncated or damaged"),
        (tmp_path / "code.ckpt", ValueError, "truncated or damaged, or holds objects"),
        ("zoo:lenet_mnist_shap", ValueError, "Did you mean lenet_mnist_shape"),
        ("zoo:lenet_mnist_shape", ValueError, "expected the weights of LeNet, got .* Give the sam"),
    ):
        module = SSLLightningModule("lenet", init_from=str(source))
        with pytest.raises(error, match=message):
            trainer(max_epochs=1).fit(module, toy_loader(16, shape=(1, 28, 28)))
    module = SSLLightningModule("lenet", {"num_classes": 11}, init_from=str(dense[1]))
    with pytest.raises(
        ValueError, match=r"\(10, 500\) instead of \(11, 500\) as `fc2.weight` and 1 m"
    ):
        trainer(max_epochs=1).fit(module, toy_loader(16, shape=(1, 28, 28)))
