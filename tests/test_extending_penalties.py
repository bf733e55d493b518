"""What a user adds to the penalties, in one file each and with public names only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.optim import SGD

from ssl_lightning import (
    GroupKind,
    GroupLasso,
    Penalty,
    PenaltyFunction,
    Regularizer,
    Schedule,
    SSLLightningModule,
    register_kind,
    register_penalty_function,
    register_schedule,
)
from ssl_lightning.groups import KINDS
from ssl_lightning.penalties import parse_penalty
from ssl_lightning.penalties.functions import FUNCTIONS
from ssl_lightning.registry import ADMITTED
from ssl_lightning.schedules import SCHEDULES
from toy import make_toy, toy_loader

INPUT = torch.zeros(1, 1, 8, 8)

# --- a penalty function ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Capped(PenaltyFunction):
    """Norms cost ``strength * min(n, knee)``: above the knee a group is not shrunk."""

    knee: float = 1.0

    def value(self, norms: Tensor, strength: float) -> Tensor:
        return strength * norms.clamp_max(self.knee).sum()

    def slope(self, norms: Tensor, strength: float) -> Tensor:
        return strength * (norms < self.knee)

    def shrink(self, norms: Tensor, step: Any, strength: float) -> Tensor:
        soft = (norms - step * strength).clamp(0.0, self.knee)
        outer = norms.clamp_min(self.knee)

        def cost(v: Tensor) -> Tensor:
            return (v - norms).square() / (2 * step) + strength * v.clamp_max(self.knee)

        return torch.where(cost(outer) < cost(soft), outer, soft)


# --- a schedule -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps(Schedule):
    """The strength doubles at each of some epochs."""

    at: tuple[float, ...] = ()

    def __call__(self, epoch: float) -> float:
        return 2.0 ** sum(epoch >= each for each in self.at)


# --- kinds of groups ------------------------------------------------------------------------------

POSITIONS = GroupKind(axes=("space",), layers="conv")
"""The same position of all kernels of a layer."""


@dataclass(frozen=True)
class Blocks(GroupKind):
    """Filters that follow each other, ``size`` at a time, such as a processor's vectors hold."""

    size: int = 2

    def view(self, module: nn.Module) -> Any:
        if not isinstance(module, nn.Conv2d) or module.out_channels % self.size:
            return None
        count = module.out_channels // self.size
        return (count, self.size, *module.weight.shape[1:]), (0,)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = [(table, dict(table)) for table in (FUNCTIONS, SCHEDULES, KINDS, ADMITTED)]
    register_kind("position", POSITIONS)
    register_kind("block", Blocks(outputs=True))
    yield
    for table, rows in before:
        table.clear()
        table.update(rows)


OWN: list[Any] = [
    Penalty(0.02, "conv1", kind="filter", function=Capped(knee=0.8)),
    {
        "kind": "block",
        "layers": "conv2",
        "strength": 0.01,
        "schedule": Steps(at=(0.5, 1.0)),
        "function": Capped(),
    },
    {"kind": "position", "layers": "conv2", "strength": 0.005, "schedule": Steps(at=(1.0,))},
]


def make_optimizer(parameters: Any) -> SGD:
    return SGD(parameters, lr=0.05, momentum=0.9)


def plain_loop(penalties: list[Any], epochs: int = 2) -> Any:
    torch.manual_seed(0)
    net, steps = make_toy(), 0
    optimizer, loader = make_optimizer(net.parameters()), toy_loader()
    regularizer = Regularizer(net, penalties, INPUT)
    regularizer.attach(optimizer, epoch=lambda: steps / len(loader))
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            steps += 1
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_own_penalties_train_alike_in_a_plain_loop_and_in_a_module(trainer: Any) -> None:
    torch.manual_seed(0)
    module = SSLLightningModule(make_toy(), penalties=OWN, optimizer=make_optimizer)
    trainer(max_epochs=2).fit(module, toy_loader(), toy_loader())
    net = plain_loop(OWN)
    assert same(module.backbone, net)
    assert not same(net, plain_loop([replace(parse_penalty(p), **DEFAULT) for p in OWN]))
    assert math.isfinite(float(module.sparsity.regularizer.values(1.0)["block"]))


DEFAULT: Any = {"function": GroupLasso(), "schedule": None}


def test_blocks_are_zero_together_with_their_biases_and_norms() -> None:
    net = plain_loop([Penalty(0.8, "conv1", kind="block")])
    dead = (net.conv1.weight == 0).all(dim=(1, 2, 3)).view(-1, 2)
    assert bool(dead.any())
    assert torch.equal(dead[:, 0], dead[:, 1])
    for tensor in (net.bn1.weight, net.bn1.bias):
        assert torch.equal((tensor == 0).view(-1, 2), dead)
    odd = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3))
    assert [t.name for t in Regularizer(odd, [Penalty(1.0, kind="block")]).terms] == ["1:block"]


# --- stored and loaded again ----------------------------------------------------------------------


def save(trainer: Any, penalties: list[Any], path: Path) -> SSLLightningModule:
    torch.manual_seed(0)
    module = SSLLightningModule(
        "convnet", input_shape=[3, 32, 32], penalties=penalties, optimizer=make_optimizer
    )
    made = trainer(max_epochs=0)
    made.strategy.connect(module)
    made.save_checkpoint(path)
    return module


GIVEN = [Penalty(1e-3, "conv1", kind="filter", function=Capped(0.8), schedule=Steps((1.0, 2.0)))]


def test_classes_are_stored_by_path_and_never_imported(trainer: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.ckpt"
    save(trainer, GIVEN, path)
    (stored,) = torch.load(path, weights_only=True)["hyper_parameters"]["penalties"]
    home = Capped.__module__
    assert stored["function"] == {"class_path": f"{home}.Capped", "init_args": {"knee": 0.8}}
    assert stored["schedule"] == {"class_path": f"{home}.Steps", "init_args": {"at": [1.0, 2.0]}}
    with pytest.raises(ValueError, match="no code is imported because a checkpoint names it"):
        SSLLightningModule.load_from_checkpoint(path)
    loaded = SSLLightningModule.load_from_checkpoint(path, penalties=GIVEN)
    assert loaded.sparsity.penalties == GIVEN
    for part in ("function", "schedule"):
        with pytest.raises(ValueError, match="is given by class, and no code is imported"):
            parse_penalty({"kind": "filter", "strength": 1.0, part: stored[part]})


def test_registered_names_are_stored_and_found_without_an_import(
    trainer: Any, tmp_path: Path
) -> None:
    register_penalty_function("capped-own", Capped)
    register_schedule("steps", Steps)
    path = tmp_path / "named.ckpt"
    save(trainer, [*GIVEN, Penalty(1e-3, kind="position")], path)
    stored, _ = torch.load(path, weights_only=True)["hyper_parameters"]["penalties"]
    assert (stored["function"], stored["knee"]) == ("capped-own", 0.8)
    assert stored["schedule"] == {"kind": "steps", "at": [1.0, 2.0]}
    loaded = SSLLightningModule.load_from_checkpoint(path)
    assert loaded.sparsity.penalties[0].function == Capped(0.8)
    assert loaded.sparsity.penalties[0].schedule(1.5) == 2.0
    assert loaded.sparsity.penalties[1].kind == "position"
    by_class = {"class_path": f"{__name__}.Capped", "init_args": {"knee": 0.5}}
    given = {"kind": "filter", "strength": 1.0, "function": by_class}
    assert parse_penalty(given).function == Capped(0.5)  # what is registered needs no import
    del FUNCTIONS["capped-own"]
    hint = (
        "Unknown penalty function 'capped-own'.* `register_penalty_function` was called: .*--import"
    )
    with pytest.raises(ValueError, match=hint):
        SSLLightningModule.load_from_checkpoint(path)


def test_a_run_with_own_penalties_resumes(trainer: Any, tmp_path: Path) -> None:
    def run(epochs: int, path: Path | None = None) -> Any:
        torch.manual_seed(0)
        module = SSLLightningModule(make_toy(), penalties=OWN, optimizer=make_optimizer)
        made = trainer(max_epochs=epochs)
        made.fit(module, toy_loader(), toy_loader(), ckpt_path=path)
        return made, module

    run(1)[0].save_checkpoint(tmp_path / "half.ckpt")
    assert same(run(2, tmp_path / "half.ckpt")[1].backbone, run(2)[1].backbone)


CONFIG: dict[str, Any] = {
    "trainer": {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "logger": False},
    "model": {
        "backbone": "lenet",
        "penalties": [
            {
                "kind": "filter",
                "layers": "conv*",
                "strength": 1e-3,
                "function": {
                    "class_path": f"{__name__}.Capped",
                    "init_args": {"knee": 0.5},
                },
                "schedule": {"class_path": f"{__name__}.Steps", "init_args": {"at": [0.0]}},
            },
            {"kind": "coupled", "strength": 1e-3, "function": "mcp", "gamma": 2.5},
        ],
    },
    "data": {"class_path": "MNISTDataModule"},
}


def test_a_config_on_the_command_line_names_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssl_lightning.cli import main

    monkeypatch.chdir(tmp_path)
    config = {**CONFIG, "trainer": {**CONFIG["trainer"], "default_root_dir": str(tmp_path)}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "run.yaml", "--trainer.enable_progress_bar=false"])
    (path,) = tmp_path.rglob("*.ckpt")
    first, second = torch.load(path, weights_only=True)["hyper_parameters"]["penalties"]
    assert first["function"]["init_args"] == {"knee": 0.5}
    assert first["schedule"]["init_args"] == {"at": [0.0]}
    assert (second["function"], second["gamma"]) == ("mcp", 2.5)


# --- what is refused ------------------------------------------------------------------------------


class Undecorated(PenaltyFunction):
    """Its arguments would be lost in checkpoints."""

    def __init__(self, knee: float) -> None:
        self.knee = knee


@dataclass(frozen=True)
class Clash(PenaltyFunction):
    """An argument that every penalty has."""

    layers: float = 1.0


@dataclass(frozen=True)
class Strange(PenaltyFunction):
    """A field that no checkpoint can hold."""

    inner: Any = None


@dataclass(frozen=True)
class Constant(Schedule):
    """Whatever it is given."""

    factor: Any = 1.0

    def __call__(self, epoch: float) -> float:
        return self.factor  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Needy(Schedule):
    """An argument without a default."""

    every: float

    def __call__(self, epoch: float) -> float:
        return self.every


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Penalty(1.0, kind="filter", function=Undecorated(1.0)), "expected a frozen dataclass"),
    (lambda: Penalty(1.0, kind="filter", function=abs), "derived from PenaltyFunction"),  # type: ignore[arg-type]
    (lambda: Penalty(1.0, kind="filter", schedule=abs), "derived from Schedule"),  # type: ignore[arg-type]
    (lambda: register_penalty_function("x", Undecorated), "expected a frozen dataclass"),
    (lambda: register_penalty_function("x", Clash), "the argument 'layers' of Clash"),
    (lambda: register_penalty_function("mcp", Capped), "the name 'mcp' already means"),
    (lambda: register_penalty_function("my function", Capped), "expected a name of letters"),
    (lambda: register_schedule("ramp", Steps), "the name 'ramp' already means"),
    (lambda: register_schedule("x", Capped), "derived from Schedule"),  # type: ignore[arg-type]
    (lambda: register_kind("filter", POSITIONS), "the name 'filter' already means"),
    (lambda: register_kind("x", "filter"), "expected a GroupKind"),  # type: ignore[arg-type]
    (lambda: Penalty(1.0, kind="l1", function=Strange(abs)).to_dict(), "which checkpoints can"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_cannot_be_stored_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_class_defined_anew_replaces_itself() -> None:
    def define() -> type[PenaltyFunction]:
        @dataclass(frozen=True)
        class Mine(PenaltyFunction):
            """As in a notebook's cell that runs twice."""

        return Mine

    first, second = define(), define()
    for cls in (first, second):
        register_penalty_function("mine", cls)
    assert FUNCTIONS["mine"] is second


@pytest.mark.parametrize("factor", [math.nan, -1.0, math.inf, None, "1"])
def test_factors_of_an_own_schedule_are_checked(factor: Any) -> None:
    regularizer = Regularizer(make_toy(), [Penalty(1.0, kind="l1", schedule=Constant(factor))])
    with pytest.raises(ValueError, match="expected a finite factor >= 0 of its schedule"):
        regularizer.strengths(1.0)


def test_missing_arguments_are_said() -> None:
    register_schedule("needy", Needy)
    with pytest.raises(ValueError, match="'needy' needs the argument `every`"):
        parse_penalty({"kind": "l1", "strength": 1.0, "schedule": {"kind": "needy"}})
