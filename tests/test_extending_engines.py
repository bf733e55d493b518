"""An engine of the user's own, from public names: measured, exported to and compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ssl_lightning import Inputs, benchmark, compact, create_backbone, export_model, make_plan
from ssl_lightning.measure import ENGINES, Engine, register_engine

QUICK = {"repeats": 2, "warmup": 0, "min_run_time": 0.0, "threads": 1, "per_layer": False}

# The engine: numpy computes stacks of linear layers with ReLU between them, from .npz files.


def write_arrays(captured, path):
    """Write the weights in the order in which the program uses them."""
    weights = captured.program.state_dict
    layers = dict.fromkeys(name.rpartition(".")[0] for name in weights)
    if any(weights[f"{layer}.weight"].dim() != 2 for layer in layers):
        raise ValueError("numpy here knows linear layers alone")
    with path.open("wb") as file:
        np.savez(file, *(weights[f"{n}.{k}"].detach() for n in layers for k in ("weight", "bias")))


def load_arrays(path):
    """Open a file; return what binds inputs to a call."""
    with np.load(path) as file:
        arrays = [file[name] for name in file.files]
    pairs = list(zip(arrays[::2], arrays[1::2], strict=True))

    def bind(inputs: Inputs):
        x = inputs.tensors()[0].flatten(1).numpy()

        def run():
            y = x
            for i, (weight, bias) in enumerate(pairs):
                y = y @ weight.T + bias
                y = np.maximum(y, 0) if i < len(pairs) - 1 else y
            return torch.from_numpy(y)

        return run

    return bind


NUMPY = Engine("numpy", export=write_arrays, load=load_arrays, suffix=".npz", packages=("numpy",))


@pytest.fixture(autouse=True)
def table():
    """Put the table back as it was."""
    before = dict(ENGINES)
    yield
    ENGINES.clear()
    ENGINES.update(before)


def networks():
    torch.manual_seed(0)
    dense = create_backbone("mlp").eval()
    with torch.no_grad():
        dense.fc1.weight[50:] = 0
        dense.fc1.bias[50:] = 0
    return dense, compact(dense, make_plan(dense, torch.zeros(1, 1, 28, 28)))


def test_it_is_measured_beside_the_others():
    register_engine(NUMPY)
    dense, small = networks()
    x = torch.randn(3, 1, 28, 28)
    run = benchmark({"dense": dense, "compact": small}, x, engines=["numpy"], **QUICK).run()
    assert not run.left_out
    assert {name: list(found) for name, found in run.engines.items()} == {
        "eager": ["dense", "compact"],
        "numpy": ["dense", "compact"],
    }
    assert "numpy" in benchmark({"net": dense}, x, engines="all", **QUICK).run().engines


def test_what_it_cannot_run_is_left_out_with_its_own_words():
    register_engine(NUMPY)
    run = benchmark(
        {"lenet": create_backbone("lenet")}, torch.zeros(1, 1, 28, 28), engines="numpy", **QUICK
    ).run()
    assert run.left_out == {"lenet, numpy": "numpy here knows linear layers alone"}


def test_it_is_exported_to_and_compared(tmp_path):
    register_engine(NUMPY)
    dense, small = networks()
    path, x = tmp_path / "small.npz", torch.randn(4, 1, 28, 28)
    result = export_model(small, x, path, "numpy")
    assert (result.engine, result.batch_sizes) == ("numpy", (1, 2, 5))
    found = load_arrays(path)(Inputs(x))()
    torch.testing.assert_close(found, dense(x).detach(), rtol=1e-4, atol=1e-5)
    wrong = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))  # no ReLU between
    with pytest.raises(ValueError, match="numpy computes something else than torch"):
        export_model(wrong, torch.zeros(1, 4), tmp_path / "wrong.npz", "numpy")
    assert [p.name for p in tmp_path.iterdir()] == ["small.npz"]


def test_an_engine_without_files_is_a_function():
    register_engine(Engine("traced", prepare=lambda model, inputs: lambda: inputs.run(model)))
    run = benchmark({"net": networks()[0]}, torch.zeros(2, 1, 28, 28), engines="traced", **QUICK)
    assert list(run.run().engines) == ["eager", "traced"]
    with pytest.raises(ValueError, match="Unknown export format 'traced'"):
        export_model(nn.Linear(2, 2), torch.zeros(1, 2), "x.traced", "traced")


def test_names_and_formats_are_taken_once():
    for engine, message in (
        (Engine("eager", prepare=lambda *_: None), "the name 'eager' already means"),
        (
            Engine("mine", export=write_arrays, load=load_arrays, suffix=".onnx", format="onnx"),
            "the format 'onnx' of 'mine' is already that of the engine 'onnxruntime'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            register_engine(engine)
    assert "mine" not in ENGINES


@pytest.mark.parametrize(
    "given", [{}, {"export": write_arrays}, {"load": load_arrays, "suffix": ".x"}]
)
def test_half_an_engine_is_refused(given):
    with pytest.raises(ValueError, match="'half': expected `prepare`, or `export`, `load` and"):
        Engine("half", **given)


def test_a_missing_package_is_named():
    register_engine(Engine("far", prepare=lambda *_: None, packages=("no_such_package",)))
    with pytest.raises(ValueError, match=r"needs no_such_package, .*`pip install no_such_package`"):
        benchmark({"net": nn.Linear(2, 2)}, torch.zeros(1, 2), engines="far", **QUICK)
    assert (
        "far"
        not in benchmark({"net": nn.Linear(2, 2)}, torch.zeros(1, 2), engines="all", **QUICK)
        .run()
        .engines
    )
