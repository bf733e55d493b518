"""Penalties and locks on the optimizer: in plain loops and in LightningModules, never silent."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from functools import partial
from typing import Any

import pytest
import timm.optim
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_lightning import SSLLightningModule, create_backbone, steps
from ssl_lightning.locks import GroupLocks
from ssl_lightning.penalties import Regularizer
from toy import make_toy, toy_loader

ROWS = {"kind": "filter", "layers": "conv1", "strength": 0.05, "members": "weight"}
COLUMNS = {"kind": "shape", "layers": "conv2", "strength": 0.02}
SUBGRADIENT = {**COLUMNS, "mode": "subgradient"}
L1 = {"kind": "l1", "layers": "fc", "strength": 1e-3}
MIXED = [ROWS, SUBGRADIENT, L1]
INPUT = torch.zeros(1, 1, 8, 8)
MAKE: Any = partial(SGD, lr=0.05, momentum=0.9)


def backward(net: nn.Module, optimizer: Optimizer | None = None) -> None:
    x, y = next(iter(toy_loader()))
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def pair(penalties: list[Any]) -> tuple[Any, Any, Regularizer, Regularizer]:
    torch.manual_seed(0)
    one = make_toy()
    two = copy.deepcopy(one)
    return one, two, Regularizer(one, penalties, INPUT), Regularizer(two, penalties, INPUT)


# --- plain loops ---------------------------------------------------------------------------------


@pytest.mark.parametrize("penalties", [MIXED, [SUBGRADIENT], [ROWS]])
def test_attached_equals_calling_by_hand(penalties: list[Any]) -> None:
    one, two, first, second = pair(penalties)
    attached, by_hand = MAKE(one.parameters()), MAKE(two.parameters())
    first.attach(attached)
    first.attach(attached)  # replaces, does not add
    for _ in range(3):
        backward(one)
        attached.step()
        backward(two)
        second.add_subgradient_()
        by_hand.step()
        second.proximal_step_(by_hand)
    assert same(one, two)


@pytest.mark.parametrize("penalties", [MIXED, [SUBGRADIENT]])
def test_several_optimizers_act_as_one(penalties: list[Any]) -> None:
    one, two, first, second = pair(penalties)
    parts = [MAKE(p) for p in ([*one.conv1.parameters(), *one.bn1.parameters()],)]
    held = {id(p) for o in parts for g in o.param_groups for p in g["params"]}
    parts.append(MAKE([p for p in one.parameters() if id(p) not in held]))
    whole = MAKE(two.parameters())
    first.attach(parts)
    second.attach(whole)
    for _ in range(3):
        backward(one)
        backward(two)
        for optimizer in (*parts, whole):
            optimizer.step()
    assert same(one, two)


def test_closures_get_subgradients_at_each_evaluation() -> None:
    one, two, first, second = pair([SUBGRADIENT])
    one.double(), two.double()
    x, y = next(iter(toy_loader(dtype=torch.float64)))
    calls = []

    def closure(net: nn.Module, regularizer: Regularizer | None) -> torch.Tensor:
        net.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        if regularizer is not None:
            regularizer.add_subgradient_()
        calls.append(1)
        return loss

    attached, by_hand = LBFGS(one.parameters(), lr=0.1), LBFGS(two.parameters(), lr=0.1)
    first.attach(attached)
    for _ in range(2):
        attached.step(partial(closure, one, None))
        by_hand.step(partial(closure, two, second))
    assert len(calls) > 8
    assert same(one, two)


@pytest.mark.parametrize("by_name", [True, False])
def test_a_gradient_computed_in_the_closure(by_name: bool) -> None:
    one, two, first, second = pair(MIXED)
    attached, by_hand = MAKE(one.parameters()), MAKE(two.parameters())
    first.attach(attached)
    for _ in range(2):
        closure = partial(backward, one)
        attached.step(closure=closure) if by_name else attached.step(closure)
        backward(two)
        second.add_subgradient_()
        by_hand.step()
        second.proximal_step_(by_hand)
    assert same(one, two)


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_scales_no_subgradient(fused: bool) -> None:
    one, two, first, second = pair([SUBGRADIENT])
    attached, by_hand = MAKE(one.parameters(), fused=fused), MAKE(two.parameters())
    first.attach(attached)
    second.attach(by_hand)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = next(iter(toy_loader()))
    for _ in range(3):
        one.zero_grad()
        scaler.scale(F.cross_entropy(one(x), y)).backward()
        scaler.step(attached)
        scaler.update()
        backward(two)
        by_hand.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("cls", [partial(SGD, momentum=0.9), Adam])
def test_nothing_shrinks_where_a_fused_step_was_skipped(
    cls: Any, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_device:
        monkeypatch.setattr(steps, "HOST_DEVICES", frozenset())
    net = make_toy()
    optimizer = cls(net.parameters(), lr=0.01, fused=True)
    Regularizer(net, [ROWS, COLUMNS, L1], INPUT).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    x, y = next(iter(toy_loader()))
    first = isinstance(optimizer, Adam)  # torch leaves a buffer of SGD unset if this is skipped
    for bad in (first, not first, first):
        before = copy.deepcopy(net)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(net(x), y)).backward()
        if bad:
            net.fc.weight.grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
        assert same(net, before) == bad
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())


def test_locks_hold_in_a_plain_loop_until_detached() -> None:
    net, locks = make_toy(), GroupLocks()
    regularizer = Regularizer(net, [{**ROWS, "strength": 1e-9, "members": "all"}], INPUT)
    optimizer = MAKE(net.parameters())
    attachment = regularizer.attach(optimizer, locks=locks)
    locks.lock(regularizer.group_sets[0], torch.arange(6) < 2)
    for _ in range(2):
        backward(net)
        optimizer.step()
        assert not net.conv1.weight[:2].any()
        assert net.conv1.weight[2:].any()
    attachment.detach()
    backward(net)
    optimizer.step()
    assert net.conv1.weight[:2].any()


def test_a_copy_of_a_module_is_attached_to_nothing() -> None:
    net = make_toy()
    net.attachment = Regularizer(net, [ROWS], INPUT).attach(MAKE(net.parameters()))
    assert copy.deepcopy(net).attachment is None


# --- what cannot act is refused ------------------------------------------------------------------


class Swapping(SGD):
    def train(self) -> None: ...

    def eval(self) -> None: ...


class Deaf(Optimizer):
    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Ignore the closure."""


class Twice(SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Unhooked:
    def __init__(self, parameters: Any) -> None:
        self.param_groups = [{"params": list(parameters)}]


def test_what_cannot_act_is_refused() -> None:
    net = make_toy()

    def attach(penalty: Any, optimizer: Any, **kwargs: Any) -> None:
        Regularizer(net, [penalty], INPUT).attach(optimizer, **kwargs)

    every = list(net.parameters())
    with pytest.raises(ValueError, match="No proximal step is known for Adamax"):
        attach(ROWS, torch.optim.Adamax(every))
    whole = {**ROWS, "members": "all"}
    halves = [MAKE([net.conv1.weight]), MAKE([p for p in every if p is not net.conv1.weight])]
    regularizer = Regularizer(net, [whole], INPUT)
    with pytest.raises(ValueError, match="need one optimizer for all their members"):
        regularizer.attach(halves)
    for nothing in ([], MAKE(net.fc.parameters())):
        with pytest.raises(ValueError, match="an optimizer that holds a penalised parameter"):
            attach(ROWS, nothing)
    with pytest.raises(ValueError, match="whose step calls hooks, got Unhooked"):
        attach(SUBGRADIENT, Unhooked(every))
    with pytest.raises(ValueError, match="maximises"):
        attach(SUBGRADIENT, SGD(every, lr=0.1, maximize=True))
    with pytest.raises(ValueError, match="line search"):
        attach(SUBGRADIENT, LBFGS(every, line_search_fn="strong_wolfe"))
    with pytest.raises(ValueError, match="Twice overrides the step of SGD"):
        attach(SUBGRADIENT, Twice(every, lr=0.1))
    late = {**ROWS, "schedule": {"kind": "ramp"}}
    with pytest.raises(ValueError, match=r"follows the epoch\. Pass `epoch`"):
        attach(late, MAKE(every))
    attach(late, MAKE(every), epoch=lambda: 0.5)


def test_a_term_that_no_optimizer_holds_is_said() -> None:
    net = make_toy()
    with pytest.warns(UserWarning, match=r"in no optimizer, such as fc:l1 \(fc.weight\)"):
        Regularizer(net, [ROWS, L1], INPUT).attach(MAKE(net.conv1.parameters()))


def test_locks_are_refused_where_weights_are_swapped() -> None:
    net, locks = make_toy(), GroupLocks()
    regularizer, optimizer = Regularizer(net, [SUBGRADIENT]), Swapping(net.parameters(), lr=0.1)
    attachment = regularizer.attach(optimizer, locks=locks)
    every = torch.ones(regularizer.group_sets[0].num_groups) > 0
    with pytest.raises(ValueError, match="Swapping swaps the weights"):
        locks.lock(regularizer.group_sets[0], every)
    assert not locks
    attachment.detach()
    assert locks.lock(regularizer.group_sets[0], every) == len(every)
    with pytest.raises(ValueError, match="Swapping swaps the weights"):
        regularizer.attach(optimizer, locks=locks)
    again = GroupLocks()
    regularizer.attach(optimizer, locks=again)
    attachment = regularizer.attach(optimizer, locks=again)
    with pytest.raises(ValueError, match="Swapping swaps the weights"):
        again.load_state_dict(locks.state_dict())
    assert not again
    assert copy.deepcopy(again).lock(regularizer.group_sets[0], every)
    attachment.detach()
    regularizer.attach(MAKE(net.parameters()), locks=again)
    assert again.lock(regularizer.group_sets[0], every)


@pytest.mark.parametrize("name", ["lion", "adamp", "lamb", "nadamw", "madgrad", "swapping"])
def test_optimizers_of_others_get_subgradients_and_refuse_proximal_maps(name: str) -> None:
    one, two, first, second = pair([SUBGRADIENT])

    def make(net: nn.Module) -> Any:
        if name == "swapping":
            return Swapping(net.parameters(), lr=0.05)
        return timm.optim.create_optimizer_v2(net, name, lr=0.01)

    attached, by_hand = make(one), make(two)
    first.attach(attached)
    for _ in range(3):
        backward(one)
        attached.step()
        backward(two)
        second.add_subgradient_()
        by_hand.step()
    assert same(one, two)
    with pytest.raises(ValueError, match="No proximal step is known"):
        Regularizer(one, [ROWS], INPUT).attach(attached)


def test_lookahead_is_refused_as_a_whole_and_in_parts() -> None:
    net = make_toy()
    inner = MAKE(net.parameters())
    outer = timm.optim.Lookahead(inner)
    with pytest.raises(ValueError, match="whose step calls hooks, got Lookahead"):
        Regularizer(net, [ROWS], INPUT).attach(outer)
    with pytest.raises(ValueError, match="Lookahead moves the weights of this SGD"):
        Regularizer(net, [ROWS], INPUT).attach(inner)


@pytest.mark.parametrize("penalties", [MIXED, [ROWS]])
def test_accumulated_gradients_are_penalised_once(penalties: list[Any]) -> None:
    one, two, first, second = pair(penalties)
    attached, by_hand = MAKE(one.parameters()), MAKE(two.parameters())
    first.attach(attached)
    x, y = next(iter(toy_loader()))
    for _ in range(2):
        for net, optimizer in ((one, attached), (two, by_hand)):
            optimizer.zero_grad()
            for part in (slice(0, 4), slice(4, 8)):
                F.cross_entropy(net(x[part]), y[part]).backward()
        attached.step()
        second.add_subgradient_()
        by_hand.step()
        second.proximal_step_(by_hand)
    assert same(one, two)


PLAIN_LOOP = """
import sys, torch
from ssl_lightning import Regularizer, create_backbone

net = create_backbone("lenet")
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
epoch = 0.0
penalties = [{"kind": "coupled", "strength": 1e-3, "function": "mcp"}]
regularizer = Regularizer(net, penalties, torch.zeros(1, 1, 28, 28))
regularizer.attach(optimizer, epoch=lambda: epoch)
for _ in range(2):
    optimizer.zero_grad()
    net(torch.randn(4, 1, 28, 28)).square().sum().backward()
    optimizer.step()
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"lightning", "pytorch_lightning", "torchmetrics", "jsonargparse"}))
"""


def test_a_plain_loop_imports_no_lightning() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PLAIN_LOOP], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_a_closure_that_is_not_called_is_refused() -> None:
    net = make_toy()
    optimizer = Deaf(net.parameters())
    Regularizer(net, [SUBGRADIENT]).attach(optimizer)
    with pytest.raises(ValueError, match="Deaf did not call the closure"):
        optimizer.step(partial(backward, net))


# --- LightningModules ----------------------------------------------------------------------------


class OwnOptimizer(SSLLightningModule):
    def configure_optimizers(self) -> Any:
        return MAKE(self.parameters())


class OwnHooks(OwnOptimizer):
    def on_fit_start(self) -> None:
        self._batches_checked.clear()
        self.run_seed = 1

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None: ...


class OwnClipping(OwnOptimizer):
    def configure_gradient_clipping(self, optimizer: Any, **_: Any) -> None:  # type: ignore[override]
        self.clip_gradients(optimizer, 0.5, "norm")


class Manual(OwnOptimizer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        for optimizer in optimizers:
            optimizer.step()
        self.metrics["fit"].update(self(batch[0]).detach(), batch[1])


class TwoOptimizers(Manual):
    def configure_optimizers(self) -> Any:
        net = self.backbone
        first = [*net.conv1.parameters(), *net.bn1.parameters()]
        return [MAKE(first), MAKE([p for p in net.parameters() if all(p is not q for q in first)])]


class NoOptimizer(Manual):
    def configure_optimizers(self) -> Any:
        return None


def fit(cls: Any, trainer: Any, penalties: Any = MIXED, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    module = cls(make_toy(), penalties=penalties, optimizer=MAKE)
    trainer(max_epochs=2, **kwargs).fit(module, toy_loader(), toy_loader())
    return module


def plain_loop(clip: float | None = None) -> nn.Module:
    torch.manual_seed(0)
    net = make_toy()
    optimizer = MAKE(net.parameters())
    Regularizer(net, MIXED, INPUT).attach(optimizer)
    for _ in range(2):
        for x, y in toy_loader():
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
    return net


@pytest.mark.parametrize("cls", [SSLLightningModule, OwnOptimizer, OwnHooks, TwoOptimizers])
def test_every_module_trains_like_the_plain_loop(cls: Any, trainer: Any) -> None:
    assert same(fit(cls, trainer).backbone, plain_loop())


def test_own_clipping_loses_nothing(trainer: Any) -> None:
    assert same(fit(OwnClipping, trainer).backbone, plain_loop(clip=0.5))


class OwnStep(OwnOptimizer):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        optimizer, closure = args[2], args[3]
        closure()
        with torch.no_grad():
            for p in self.parameters():
                p.sub_(0.1 * p.grad)
        optimizer.zero_grad()


def test_a_loop_that_never_steps_its_optimizer_is_refused(trainer: Any) -> None:
    torch.manual_seed(0)
    module = OwnStep(make_toy(), penalties=MIXED, optimizer=MAKE)
    with pytest.raises(ValueError, match="in 20 training steps SGD did not"):
        trainer(max_epochs=30).fit(module, toy_loader(), toy_loader())


def test_a_resumed_run_counts_its_own_steps(trainer: Any, tmp_path: Any) -> None:
    def run(epochs: int, path: Any = None) -> Any:
        torch.manual_seed(0)
        made = trainer(max_epochs=epochs)
        module = SSLLightningModule(make_toy(), penalties=MIXED, optimizer=MAKE)
        made.fit(module, toy_loader(256), toy_loader(), ckpt_path=path)
        return made

    run(1).save_checkpoint(tmp_path / "32 steps.ckpt")
    assert run(2, tmp_path / "32 steps.ckpt").global_step == 64


def test_a_run_without_optimizers_is_refused(trainer: Any) -> None:
    with (
        pytest.warns(UserWarning, match="returned `None`"),
        pytest.raises(ValueError, match="holds a penalised parameter"),
    ):
        fit(NoOptimizer, trainer)


def test_hooks_are_not_doubled_by_a_second_fit(trainer: Any) -> None:
    module = fit(SSLLightningModule, trainer)
    module.sparsity.attach_penalties()
    (optimizer,) = module.sparsity._attachment.optimizers
    assert len(optimizer._optimizer_step_post_hooks) == 1
    assert len(optimizer._optimizer_step_pre_hooks) == 1


# --- nothing is read on the host -----------------------------------------------------------------

READS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "lift_fresh")
KINDS = [
    ROWS,
    {"kind": "channel", "strength": 0.01},
    COLUMNS,
    {"kind": "kernel", "strength": 0.01},
    L1,
    {"kind": "neuron_in", "strength": 0.01},
]
OPTIMIZERS: dict[str, Any] = {
    "sgd": MAKE,
    "sgd tensor lr": lambda p: SGD(p, lr=torch.tensor(0.05), momentum=0.9),
    "adam": partial(Adam, lr=0.01),
    "adam amsgrad": partial(Adam, lr=0.01, amsgrad=True),
    "adamw fused": partial(AdamW, lr=0.01, fused=True),
    "rmsprop": partial(RMSprop, lr=0.001, momentum=0.5, centered=True),
    "adagrad": partial(Adagrad, lr=0.01, lr_decay=1e-3),
}


class NoReads(TorchDispatchMode):
    """Fails where a tensor would be read by the host, or made of numbers of the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        masked = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in READS or masked:
            raise AssertionError(f"reads on the host: {name}")
        return func(*args, **(kwargs or {}))


def after_step(
    name: str, mode: str, guarded: bool, function: str = "group_lasso", kinds: Any = KINDS
) -> nn.Module:
    torch.manual_seed(0)
    net, locks = make_toy(), GroupLocks()
    optimizer = OPTIMIZERS[name](net.parameters())
    given = [{**kind, "mode": mode, "function": function} for kind in kinds]
    regularizer = Regularizer(net, given, INPUT)
    locks.lock(regularizer.group_sets[0], torch.arange(regularizer.group_sets[0].num_groups) == 1)
    for step in range(3):
        backward(net)
        with NoReads() if guarded and step else warnings.catch_warnings():
            regularizer.add_subgradient_(0.0, optimizer)
        optimizer.step()
        optimizer.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
        with NoReads() if guarded and step else warnings.catch_warnings():
            regularizer.proximal_step_(optimizer)
            locks.enforce_(regularizer.parameters())
        del optimizer.found_inf  # type: ignore[attr-defined]
    return net


@pytest.mark.parametrize("mode", ["proximal", "subgradient"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_reads_nothing_on_the_host(
    name: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = after_step(name, mode, guarded=False)
    monkeypatch.setattr(steps, "HOST_DEVICES", frozenset())
    found = after_step(name, mode, guarded=True)
    others = dict(expected.named_parameters())
    for key, parameter in found.named_parameters():
        if key != "conv1.bias":  # in front of a batch norm: its gradient is rounding error
            torch.testing.assert_close(parameter, others[key], rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("mode", ["proximal", "subgradient"])
@pytest.mark.parametrize("function", ["mcp", "scad"])
@pytest.mark.parametrize("name", ["sgd", "sgd tensor lr", "adam"])
def test_other_functions_read_nothing_on_the_host(
    name: str, function: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [L1] if name == "adam" else KINDS
    expected = after_step(name, mode, False, function, kinds)
    monkeypatch.setattr(steps, "HOST_DEVICES", frozenset())
    found = after_step(name, mode, True, function, kinds)
    for key, parameter in expected.named_parameters():
        if key != "conv1.bias":  # in front of a batch norm: its gradient is rounding error
            torch.testing.assert_close(found.get_parameter(key), parameter, rtol=2e-4, atol=2e-6)


def test_the_guard_notices_reads() -> None:
    x = torch.ones(3)
    reads: list[Any] = [x.sum().item, x.nonzero, lambda: bool(x.any()), lambda: x[x > 0]]
    for read in (*reads, lambda: torch.tensor(1.0)):
        with NoReads(), pytest.raises(AssertionError, match="reads on the host"):
            read()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_waits_for_no_gpu(name: str) -> None:
    net, locks = make_toy().cuda(), GroupLocks()
    optimizer = OPTIMIZERS[name](net.parameters())
    regularizer = Regularizer(net, KINDS, INPUT.cuda())
    locks.lock(regularizer.group_sets[0], torch.arange(regularizer.group_sets[0].num_groups) == 1)
    regularizer.attach(optimizer, locks=locks)
    x, y = (t.cuda() for t in next(iter(toy_loader())))
    for step in range(3):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


# --- overlapping kinds ---------------------------------------------------------------------------


def test_coupled_leaves_heads_and_hidden_neurons_to_their_own_kinds(caplog: Any) -> None:
    net = create_backbone(
        "timm:vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=10
    )
    kinds = [{"kind": kind, "strength": 1e-3} for kind in ("coupled", "head", "ffn")]
    regularizer = Regularizer(net, kinds, torch.zeros(1, 3, 32, 32))
    covered = {n: torch.zeros(p.shape) for n, p in net.named_parameters()}
    for group_set in regularizer.group_sets:
        for member in group_set.members:
            part = member.view(covered[member.parameter]).add_(1)
            member.store_(covered[member.parameter], part)
    assert max(float(c.max()) for c in covered.values()) == 1
    assert {s.kind for s in regularizer.group_sets} == {"coupled", "head", "ffn"}
    assert len(regularizer.left_out) == 2
    assert set(regularizer.left_out).isdisjoint(t.name for t in regularizer.terms)
    assert "belong to more specific penalties" in caplog.text


def test_coupled_that_would_repeat_all_its_groups_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    kinds = [{"kind": "coupled", "strength": 1.0}, {"kind": "neuron_out", "strength": 1.0}]
    with pytest.raises(ValueError, match="have all of its groups"):
        Regularizer(net, kinds, torch.zeros(1, 4))


def test_a_penalty_without_strength_is_refused_unless_something_steers_it():
    net = torch.nn.Linear(3, 4)
    sgd = SGD(net.parameters(), lr=0.1)
    regularizer = Regularizer(net, [{"kind": "neuron_out"}])
    assert regularizer.strengths() == {":neuron_out": 0.0}
    with pytest.raises(ValueError, match=r"penalties\[0\] .*has no strength, and nothing"):
        regularizer.attach(sgd)
    regularizer.scales = [2.0]
    attachment = regularizer.attach(sgd)
    assert regularizer.strengths() == {":neuron_out": 4.0}  # times the root of the group size
    attachment.detach()
    regularizer.scales, regularizer.steered = [0.0], True
    regularizer.attach(sgd)
    before = net.weight.detach().clone()
    net(torch.zeros(1, 3)).sum().backward()
    sgd.step()
    assert torch.equal(net.weight, before)
