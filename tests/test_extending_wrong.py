"""Extensions of the user's own that are wrong: refused in a sentence before they train anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_lightning import (
    SCAD,
    ArrayDataModule,
    Engine,
    GroupKind,
    GroupLasso,
    Inputs,
    LabelledImages,
    MNISTDataModule,
    Penalty,
    PenaltyFunction,
    Ramp,
    Regularizer,
    Schedule,
    benchmark,
    compact,
    make_plan,
    register_engine,
    register_kind,
    register_shrinker,
    resolve_groups,
)
from ssl_lightning.publishing.runs import data_class
from ssl_lightning.publishing.timing import create_optimizer

# --- penalty functions ----------------------------------------------------------------------------


def function(**methods: Callable[..., Any]) -> PenaltyFunction:
    """Return group lasso with some methods replaced."""

    class Own(PenaltyFunction):
        def value(self, norms: Tensor, strength: float) -> Tensor:
            return strength * norms.sum()

        def slope(self, norms: Tensor, strength: float) -> Tensor | float:
            return strength

        def shrink(self, norms: Tensor, step: Any, strength: float) -> Tensor:
            return (norms - step * strength).clamp_min(0.0)

    own = {name: lambda self, *a, call=call: call(*a) for name, call in methods.items()}
    made: PenaltyFunction = dataclass(frozen=True)(type("Own", (Own,), own))()
    return made


def bind(given: PenaltyFunction, mode: str = "proximal") -> Regularizer:
    return Regularizer(
        nn.Linear(3, 4), [Penalty(0.1, kind="neuron_out", mode=mode, function=given)]
    )


WRONG_FUNCTIONS: list[tuple[str, str, Callable[..., Any]]] = [
    ("proximal", "shrink", lambda n, step, s: n * math.nan),
    ("proximal", "shrink", lambda n, step, s: n - 1e3),
    ("proximal", "shrink", lambda n, step, s: n * 2),
    ("proximal", "shrink", lambda n, step, s: n.sum()),
    ("proximal", "shrink", lambda n, step, s: n[:1]),
    ("proximal", "shrink", lambda n, step, s: None),
    ("proximal", "shrink", lambda n, step, s: 0.0),
    ("proximal", "shrink", lambda n, step, s: n.sub_(step * s).clamp_min_(0.0)),
    ("proximal", "shrink", lambda n, step, s: 1 / 0),
    ("proximal", "value", lambda n, s: n * s),
    ("proximal", "value", lambda n, s: None),
    ("subgradient", "value", lambda n, s: n.sum() * math.nan),
    ("subgradient", "slope", lambda n, s: s * n.rsqrt()),  # infinite at 0, where it is multiplied
    ("subgradient", "slope", lambda n, s: n[:1]),
    ("subgradient", "slope", lambda n, s: None),
]


@pytest.mark.parametrize(("mode", "name", "method"), WRONG_FUNCTIONS)
def test_a_wrong_penalty_function_is_refused(
    mode: str, name: str, method: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match=rf"penalties\[0\] .*`{name}` of .*: expected .*, got"):
        bind(function(**{name: method}), mode)


def test_an_undefined_method_is_named_and_an_unused_one_is_not_needed() -> None:
    @dataclass(frozen=True)
    class Slope(PenaltyFunction):
        def value(self, norms: Tensor, strength: float) -> Tensor:
            return strength * norms.sum()

        def slope(self, norms: Tensor, strength: float) -> float:
            return strength

    bind(Slope(), "subgradient")
    with pytest.raises(ValueError, match="does not define `shrink`"):
        bind(Slope())


def test_a_function_with_a_list_trains() -> None:
    """YAML and checkpoints make lists, which have no hash."""

    @dataclass(frozen=True)
    class Listed(GroupLasso):
        weights: Any = ()

    net = nn.Linear(3, 4)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    penalties = [
        Penalty(99.0, kind=kind, function=Listed(weights=[1.0])) for kind in ("neuron_out", "l1")
    ]
    Regularizer(net, penalties).attach(sgd)
    net(torch.ones(1, 3)).sum().backward()
    sgd.step()
    assert not net.weight.any()


@pytest.mark.parametrize("base", [GroupLasso, SCAD])
def test_a_derived_function_shrinks_as_it_says(base: type[PenaltyFunction]) -> None:
    class Keen(base):  # type: ignore[valid-type,misc]
        def shrink(self, norms: Tensor, step: Any, strength: float) -> Tensor:
            return norms * 0.0

    net = nn.Linear(3, 4)
    keen = dataclass(frozen=True)(Keen)()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    Regularizer(net, [Penalty(1e-9, kind="neuron_out", function=keen)]).attach(sgd)
    net(torch.ones(1, 3)).sum().backward()
    sgd.step()
    assert not net.weight.any()


@pytest.mark.parametrize(("part", "given"), [("function", SCAD), ("schedule", Ramp)])
def test_a_class_in_place_of_an_object_is_named(part: str, given: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"{part}: expected an object, got the class {given.__name__}"
    ):
        Penalty(1.0, kind="filter", **{part: given})


def test_a_schedule_of_numpy_numbers_counts() -> None:
    @dataclass(frozen=True)
    class Third(Schedule):
        def __call__(self, epoch: float) -> float:
            return np.float32(0.25)  # type: ignore[return-value]

    penalty = Penalty(1.0, kind="neuron_in", schedule=Third(), scaling="none")
    assert Regularizer(nn.Linear(2, 2), [penalty]).strengths(1.0) == {":neuron_in": 0.25}


# --- kinds of groups ------------------------------------------------------------------------------

CONV = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


@pytest.fixture
def found() -> Callable[[GroupKind], list[str]]:
    def resolve(kind: GroupKind) -> list[str]:
        with register_kind("mine", kind):
            return [s.name for s in resolve_groups(CONV, [{"kind": "mine"}])]

    return resolve


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axes": ("outs",)}, "of 'out', 'in', 'space', 'group', got"),
        ({"axes": "out"}, "a tuple"),
        ({"axes": ("out",), "layers": "convs"}, "'conv', 'linear' or 'any', got 'convs'"),
    ],
)
def test_a_kind_with_unknown_words_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"GroupKind: expected .*{message}"):
        GroupKind(**arguments)


def test_layers_without_the_axes_of_a_kind_have_no_such_groups(found: Any) -> None:
    assert found(GroupKind(axes=("space",))) == ["0:mine"]  # not the linear layer as a whole
    with pytest.raises(ValueError, match="matches no layer that has them"):
        found(GroupKind(axes=("space",), layers="linear"))


VIEWS: list[Any] = [
    ((3, 5), (0,)),  # another number of elements
    ((-1, 2, 3, 3), (0,)),
    ((4, 2, 3, 3), (9,)),
    ((4, 2, 3, 3), (-1,)),
    ((4, 2, 3, 3), (0, 0)),
    ((4, 2, 3, 3), (1, 0)),
    ((2, 4, 3, 3), (0,)),  # as many elements, but not of the weight's dimensions
    (4, 2),
    "x",
]


@pytest.mark.parametrize("view", VIEWS)
def test_a_wrong_view_is_refused(found: Any, view: Any) -> None:
    class Own(GroupKind):
        def view(self, module: nn.Module) -> Any:
            return view if isinstance(module, nn.Conv2d) else None

    with pytest.raises(ValueError, match=r"The view that `Own` gives of `0\.weight`: expected"):
        found(Own())


def test_a_view_is_asked_for_layers_with_a_weight_only(found: Any) -> None:
    class Rows(GroupKind):
        def view(self, module: nn.Module) -> Any:
            return tuple(module.weight.shape), (0,)  # type: ignore[union-attr,operator,arg-type]

    assert found(Rows()) == ["0:mine", "1:mine", "3:mine"]


# --- layers ---------------------------------------------------------------------------------------


class Own(nn.Module):
    """A linear layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weight = nn.Parameter(torch.rand(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


RIGHT: dict[str, Any] = {
    "outputs": {"weight": 0},
    "inputs": {"weight": 1},
    "counts": {"inputs": "inputs", "outputs": "outputs"},
    "channel_dim": -1,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"outputs": {"weigth": 0}}, "weigth"),
        ({"outputs": {"weight": 5}}, "expected the output dimensions"),
        ({"counts": {"widht": "outputs"}}, "widht"),
        ({"counts": {"inputs": "outputs", "outputs": "inputs"}}, "`inputs` of Own to be 8"),
        ({"channel_dim": 7}, "7"),
    ],
)
def test_a_description_that_does_not_fit_is_named(wrong: Any, message: str) -> None:
    net = nn.Sequential(nn.Linear(4, 6), Own(6, 8), nn.Linear(8, 2))
    with torch.no_grad():
        net[1].weight[:3], net[0].weight[:2], net[0].bias[:2] = 0, 0, 0
    x = torch.zeros(1, 4)
    with register_shrinker(Own, **RIGHT):
        assert compact(net, make_plan(net, x))[1].outputs == 5
    with register_shrinker(Own, **{**RIGHT, **wrong}):
        explained = make_plan(net, x).explain()
    assert "rule failed" in explained
    assert message in explained


# --- engines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda y: y.numpy(), "got ndarray). Do not use"),
        (lambda y: None, "returns 0 tensors instead of 1"),
        (lambda y: y[:1], "has shape (1, 2) instead of (2, 2)"),
        (lambda y: y * 2, "outputs differ by"),
    ],
)
def test_a_wrong_engine_is_left_out_with_the_reason(
    output: Callable[[Tensor], Any], message: str
) -> None:
    def prepare(model: nn.Module, inputs: Inputs) -> Callable[[], object]:
        return lambda: output(inputs.run(model))  # type: ignore[arg-type]

    with register_engine(Engine("wrong", prepare=prepare)):
        run = benchmark(
            {"net": nn.Linear(4, 2)},
            torch.randn(2, 4),
            engines=["wrong"],
            repeats=1,
            warmup=0,
            min_run_time=0.0,
            per_layer=False,
        ).run()
    assert message in run.left_out["net, wrong"]


# --- classes of the user's own that are called as the library's -----------------------------------


def test_a_class_of_the_same_name_is_not_taken_for_the_librarys() -> None:
    for path in ("mine.MNISTDataModule", "ssl_lightning_of_mine.MNISTDataModule"):
        with pytest.raises(ValueError, match=rf"Cannot publish a run on {path}"):
            data_class({"class_path": path})
    assert data_class({"class_path": "MNISTDataModule"}) is MNISTDataModule
    assert data_class({"class_path": "ssl_lightning.data.MNISTDataModule"}) is MNISTDataModule
    weights = [nn.Parameter(torch.zeros(1))]
    assert isinstance(create_optimizer({"class_path": "torch.optim.SGD"}, weights), torch.optim.SGD)
    with pytest.raises(ValueError, match=r"Unknown optimizer 'mine\.SGD'"):
        create_optimizer({"class_path": "mine.SGD"}, weights)


# --- data sets ------------------------------------------------------------------------------------

IMAGES, TARGETS = np.zeros((8, 1, 4, 4), np.uint8), np.arange(8) % 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((IMAGES, TARGETS), "`read` to return LabelledImages, got a tuple"),
        (LabelledImages(IMAGES.transpose(0, 2, 3, 1), TARGETS, ()), r"\(8, 4, 4, 1\)"),
        (LabelledImages(IMAGES[:, 0], TARGETS, ()), r"uint8 images of the shape \(N, 1, H, W\)"),
        (LabelledImages(IMAGES.astype(np.float32), TARGETS, ()), "got float32"),
        (LabelledImages(torch.zeros(8, 1, 4, 4), TARGETS, ()), "got a Tensor"),  # type: ignore[arg-type]
        (LabelledImages(IMAGES, TARGETS[:5], ()), "a target for each of the 8 images, got 5"),
        (LabelledImages(IMAGES, TARGETS.tolist(), ()), "an array of targets, got a list"),
    ],
)
def test_what_a_data_set_may_not_read_is_refused(given: Any, message: str) -> None:
    class Wrong(ArrayDataModule):
        class_names, input_shape = ("a", "b"), (1, 4, 4)

        def read(self, train: bool) -> LabelledImages:
            return given  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match=f"Wrong: expected .*{message}"):
        next(iter(Wrong(batch_size=2, num_validation=2).train_dataloader()))
