"""Files in int8 are opened by their engines once more, and compared with bounds made by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import openvino
import pytest
import torch
from torch import nn

from conftest import ROOT
from ssl_lightning import (
    Inputs,
    compare_precisions,
    create_backbone,
    export_int8,
    export_model,
    zoo,
)
from ssl_lightning.cli import main
from ssl_lightning.export.int8 import int8_engines, int8_formats
from ssl_lightning.export.int8_files import FileNetwork
from ssl_lightning.measure.engines import ENGINES as TABLE
from ssl_lightning.measure.int8 import quantized
from ssl_lightning.measure.openvino_core import only_this_core, openvino_core
from ssl_lightning.measure.precision_record import PrecisionRecord
from ssl_lightning.publishing.measuring import measure_error
from ssl_lightning.report import precision_chart, precision_reasons, precision_table
from test_export import ENGINES as RUN
from toy import Fn

FORMATS = int8_formats()
SUFFIX = {name: engine.suffix for name, engine in FORMATS.items()}


@pytest.fixture(scope="module")
def digits():
    from ssl_lightning import MNISTDataModule

    data = MNISTDataModule(source="bundled", augment=False)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def images(digits):
    return next(iter(digits.train_dataloader()))[0][:128]


def test_the_formats_that_have_int8():
    assert set(FORMATS) == {"onnx", "openvino"}
    assert set(int8_engines()) == {"onnxruntime", "openvino"}


@pytest.mark.parametrize("kind", FORMATS)
def test_an_entry_of_the_zoo_in_int8_classifies_as_well(kind, digits, images, tmp_path):
    net = zoo.load("lenet_mnist_filter_channel")
    held_out = list(digits.val_dataloader())
    evaluate = partial(measure_error, batches=held_out)
    file = tmp_path / f"m{SUFFIX[kind]}"
    result = export_int8(net, images[:1], file, kind, calibration=[images], evaluate=evaluate)
    full = export_model(net, images[:1], tmp_path / f"f{SUFFIX[kind]}", kind)
    assert result.examples == 128
    assert result.before == measure_error(net, held_out)
    # opened once more, by hand
    wrong = sum(int((RUN[kind](file, x.numpy()).argmax(1) != y.numpy()).sum()) for x, y in held_out)
    total = sum(len(y) for _, y in held_out)
    assert result.after == pytest.approx(100 * wrong / total, abs=1e-9)
    assert result.after <= result.before + 0.3
    assert result.size < 0.6 * result.float_size
    assert result.size == sum(p.stat().st_size for p in tmp_path.glob("m.*"))
    assert result.float_size == pytest.approx(
        sum(p.stat().st_size for p in tmp_path.glob("f.*")), rel=0.01
    )
    assert full.difference < 1e-5


@pytest.mark.parametrize("kind", FORMATS)
def test_outputs_are_within_the_steps_of_eight_bits(kind, tmp_path):
    """One linear layer: its error is bounded by half a step of each input and of each weight."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 5).eval()
    x = torch.rand(256, 32) * 2 - 1  # the whole range is seen
    file = tmp_path / f"m{SUFFIX[kind]}"
    export_int8(layer, x[:1], file, kind, calibration=[x], evaluate=lambda net: 0.0)
    weight = layer.weight.detach().double().numpy()
    step_x = 2.0 / 254  # at least 255 levels over [-1, 1]
    step_w = np.abs(weight).max(1, keepdims=True) / 127
    bound = (np.abs(weight) + step_w).sum(1) * step_x + (step_w * np.ones_like(weight)).sum(1)
    found = RUN[kind](file, x.numpy())
    with torch.no_grad():
        exact = layer.double()(x.double()).numpy()
    error = np.abs(found - exact).max(0)
    assert (error <= bound).all()
    assert error.max() > 1e-5, "it is not in float32"


def rising(model):
    """Return a measure that is five points worse for anything but the network itself."""
    return lambda net: 1.0 if net is model else 6.0


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_does_its_task_worse_is_not_written(kind, tmp_path):
    net, x = nn.Linear(8, 2), torch.randn(32, 8)
    file = tmp_path / f"m{SUFFIX[kind]}"
    file.write_text("what was there before")
    with pytest.raises(
        ValueError, match=r"a rise of at most 1 by int8, got 5\.00: from 1\.00"
    ) as e:
        export_int8(net, x[:1], file, kind, calibration=[x], evaluate=rising(net))
    assert "was not written. Calibrate on more than 32 examples" in str(e.value)
    assert file.read_text() == "what was there before"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    result = export_int8(
        net, x[:1], file, kind, calibration=[x], evaluate=rising(net), max_rise=5.0
    )
    assert (result.before, result.after) == (1.0, 6.0)
    assert net.training, "the mode was put back"


def test_a_measure_that_is_no_number_is_refused(tmp_path):
    net, x = nn.Linear(8, 2), torch.randn(32, 8)
    with pytest.raises(ValueError, match="got nan"):
        export_int8(
            net, x[:1], tmp_path / "m.xml", calibration=[x], evaluate=lambda net: float("nan")
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "torch_export"}, "Unknown format with int8 'torch_export'. Known: onnx, open"),
        ({"format": "onnx"}, "expected a path ending in .onnx for onnx"),
        ({"calibration": []}, "expected calibration inputs, got none. Give some hundred"),
        ({"max_rise": -1}, "expected max_rise >= 0, got -1"),
        ({"max_rise": float("nan")}, "expected max_rise >= 0, got nan"),
        ({"batch": 0}, "batch 'dynamic' or a number of at least 1, got 0"),
        ({"size": "any"}, "expected size 'dynamic' or 'fixed', got 'any'"),
    ],
)
def test_mistakes_are_named(settings, message, tmp_path):
    x = torch.randn(8, 8)
    given = {"calibration": [x], "evaluate": lambda net: 0.0} | settings
    with pytest.raises(ValueError, match=message):
        export_int8(nn.Linear(8, 2), x[:1], tmp_path / "m.xml", **given)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    x = torch.randn(8, 8)
    monkeypatch.setattr("ssl_lightning.export.int8.PACKAGES", ("no_such_package",))
    with pytest.raises(ValueError, match=r"needs no_such_package, .* 'ssl-lightning\[int8\]'"):
        export_int8(nn.Linear(8, 2), x, tmp_path / "m.xml", calibration=[x], evaluate=len)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_fixed_batch_is_calibrated_and_evaluated_in_pieces(kind, tmp_path):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(10, 8)
    seen = []

    def evaluate(network):
        seen.append(network(x).detach())
        return 0.0

    file = tmp_path / f"m{SUFFIX[kind]}"
    result = export_int8(net, x[:1], file, kind, calibration=[x], evaluate=evaluate, batch=4)
    assert result.examples == 10
    assert seen[1].shape == (10, 3)
    assert float((seen[1] - seen[0]).abs().max()) < 0.05 * float(seen[0].abs().max())
    for start in (0, 4):
        found = RUN[kind](file, x[start : start + 4].numpy())
        np.testing.assert_allclose(found, seen[1][start : start + 4].numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
def test_several_inputs_and_outputs(kind, tmp_path):
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(6, 4)

        def forward(self, x, y):
            h = self.a(x) + self.b(y)
            return h, h.relu()

    net, x, y = Two(), torch.randn(64, 8), torch.randn(64, 6)
    seen = []

    def evaluate(network):
        seen.append([t.detach().clone() for t in network(x, y)])
        return 0.0

    file = tmp_path / f"m{SUFFIX[kind]}"
    export_int8(net, (x[:1], y[:1]), file, kind, calibration=[(x, y)], evaluate=evaluate)
    for exact, found in zip(*seen, strict=True):
        assert float((found - exact).abs().max()) < 0.05 * float(exact.abs().max())


@pytest.mark.parametrize("kind", FORMATS)
def test_attention_is_known_and_transformers_retain_their_outputs(kind, tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = create_backbone("timm:vit_tiny_patch16_224", img_size=64, depth=2, num_classes=10).eval()
    x = torch.randn(16, 3, *net.input_shape[1:])
    seen, types = [], []

    def spy(model, items, operations):
        from ssl_lightning.measure.int8 import ATTENTION

        types.append(bool(operations & ATTENTION))
        return quantized(model, items, operations)

    monkeypatch.setattr("ssl_lightning.measure.int8.quantized", spy)

    def evaluate(network):
        seen.append(network(x).detach())
        return 0.0

    file = tmp_path / f"m{SUFFIX[kind]}"
    export_int8(net, x[:1], file, kind, calibration=[x], evaluate=evaluate, size="fixed")
    assert types == [True]
    exact, found = seen
    assert float((found - exact).norm() / exact.norm()) < 0.1


def test_networks_of_convolutions_are_not_taken_for_transformers(tmp_path, monkeypatch):
    types = []
    monkeypatch.setattr(
        "ssl_lightning.measure.int8.quantized",
        lambda model, items, operations: (
            types.append(operations) or quantized(model, items, operations)
        ),
    )
    x = torch.randn(8, 3, 16, 16)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    export_int8(net, x[:1], tmp_path / "m.xml", calibration=[x], evaluate=lambda net: 0.0)
    assert not types[0] & {"ScaledDotProductAttention", "Softmax"}


def test_only_one_core_is_made_and_openvino_is_put_back():
    before = openvino.Core

    def fail():
        assert openvino.Core() is openvino_core()
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), only_this_core():
        fail()
    assert openvino.Core is before


def test_loggers_of_others_are_left_alone():
    """NNCF puts a class of its own in the place of all loggers that are made after its import."""
    code = (
        "import logging, pathlib, tempfile, torch; from ssl_lightning import export_int8; "
        "x = torch.randn(8, 4); path = pathlib.Path(tempfile.mkdtemp(), 'm.xml'); "
        "export_int8(torch.nn.Linear(4, 2), x, path, calibration=[x], evaluate=lambda n: 0.0); "
        "print(type(logging.getLogger('made afterwards')).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == "Logger"


def test_an_engine_of_ones_own_with_quantize(tmp_path, monkeypatch):
    called = []

    def quantize(path, to, inputs):
        called.append(len(inputs))
        FORMATS["openvino"].quantize(path, to, inputs)

    own = replace(FORMATS["openvino"], name="mine", format="mine", quantize=quantize)
    monkeypatch.setitem(TABLE, "mine", own)
    x = torch.randn(32, 8)
    result = export_int8(
        nn.Linear(8, 2), x[:1], tmp_path / "m.xml", "mine", calibration=[x], evaluate=lambda n: 0.0
    )
    assert called == [32]
    assert result.format == "mine"


def test_what_nncf_cannot_do_is_said(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such operation")

    monkeypatch.setitem(TABLE, "openvino", replace(FORMATS["openvino"], quantize=fails))
    x = torch.randn(32, 8)
    message = "NNCF cannot bring this Linear to int8: RuntimeError: no such operation"
    with pytest.raises(ValueError, match=message):
        export_int8(
            nn.Linear(8, 2), x[:1], tmp_path / "m.xml", calibration=[x], evaluate=lambda n: 0.0
        )
    assert not list(tmp_path.iterdir())


# The comparison


@pytest.fixture(scope="module")
def record():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 4))
    narrow = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    x = torch.randn(64, 32)
    return compare_precisions(
        {"dense": wide, "compact": narrow},
        x[:1],
        [x],
        lambda net: 3.0 if isinstance(net, FileNetwork) else 100.0,
        batch_size=8,
        repeats=3,
        min_run_time=1e-4,
        measure="percent of made-up examples",
    )


def test_a_row_for_each_network_engine_and_precision(record):
    precisions = {(row.network, row.engine, row.precision) for row in record.rows}
    assert precisions >= {
        (network, engine, precision)
        for network in ("dense", "compact")
        for engine in ("openvino", "onnxruntime")
        for precision in ("float32", "int8")
    }
    assert {row.error for row in record.rows} == {3.0}, "errors are those of the files"
    for engine in int8_engines():
        assert record.row("dense", engine, "float32").timing.ratio == 1.0
        sizes = [record.row("dense", engine, kind).num_bytes for kind in ("float32", "int8")]
        assert sizes[1] < 0.7 * sizes[0]
    assert record.examples == 64
    assert "nncf" in record.versions
    assert record.batch_size == 8


def test_the_record_is_read_again(record, tmp_path):
    record.save(tmp_path / "a.json")
    assert PrecisionRecord.load(tmp_path / "a.json") == record
    content = json.loads((tmp_path / "a.json").read_text()) | {"schema": 9}
    with pytest.raises(ValueError, match="comparison of precisions"):
        PrecisionRecord.from_dict(content)
    with pytest.raises(KeyError):
        record.row("dense", "openvino", "int4")


@pytest.mark.parametrize(
    ("machine", "has", "largest"),
    [
        ("x86_64", (), 64),  # sums of pairs of products are cut off at 16 bits
        ("x86_64", ("avx512_bf16",), 64),
        ("x86_64", ("avx512_vnni",), 127),
        ("aarch64", (), 127),
    ],
)
def test_weights_take_half_of_their_range_where_sums_are_cut_off(
    tmp_path, monkeypatch, machine, has, largest
):
    import openvino

    monkeypatch.setattr("ssl_lightning.measure.int8.instructions", lambda: has)
    monkeypatch.setattr("ssl_lightning.measure.int8.platform.machine", lambda: machine)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    x = torch.randn(64, 16)
    path = tmp_path / "a.xml"
    export_int8(net, x[:1], path, "openvino", calibration=[x], evaluate=lambda _: 0.0)
    found = [
        int(abs(node.get_data().astype(int)).max())
        for node in openvino.Core().read_model(path).get_ops()
        if node.get_type_name() == "Constant" and str(node.get_element_type()) == "<Type: 'int8_t'>"
    ]
    assert found
    assert all(largest - 1 <= value <= largest for value in found)


def test_bfloat16_is_measured_where_the_processor_has_it(monkeypatch):
    x = torch.randn(16, 8)
    module = "ssl_lightning.export.precisions.instructions"
    for has, expected in (
        ((), {"float32", "int8"}),
        (("amx_bf16",), {"float32", "bfloat16", "int8"}),
    ):
        monkeypatch.setattr(module, lambda has=has: has)
        found = compare_precisions(
            {"net": nn.Linear(8, 2)},
            x[:1],
            [x],
            lambda net: 0.0,
            engines="openvino",
            repeats=1,
            min_run_time=1e-4,
        )
        assert {row.precision for row in found.rows} == expected


def test_what_cannot_be_written_is_left_out_with_its_reason():
    unknown = Fn(lambda net, x: torch.linalg.matrix_exp(net.layer(x)), layer=nn.Linear(4, 4))
    x = torch.randn(4, 4, 4)
    settings = {"engines": "onnxruntime", "repeats": 1, "min_run_time": 1e-4}
    networks = {"known": nn.Linear(4, 4), "unknown": unknown}
    found = compare_precisions(networks, x[:1], [x], lambda net: 0.0, **settings)
    assert {row.network for row in found.rows} == {"known"}
    assert "onnx cannot hold this Fn" in found.left_out["unknown, onnxruntime"]
    assert precision_reasons(found)[0].startswith("Left out: unknown, onnxruntime.")
    with pytest.raises(ValueError, match=r"compare_precisions: .*onnx cannot hold this Fn"):
        compare_precisions({"unknown": unknown}, x[:1], [x], lambda net: 0.0, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"networks": {}}, "at least one network, got none"),
        ({"batch_size": 0}, "batch_size >= 1, got 0"),
        ({"repeats": 0}, "repeats >= 1, got 0"),
        ({"engines": "eager"}, "Unknown engine with int8 'eager'. Known: onnxruntime, openvino"),
    ],
)
def test_mistakes_in_comparisons_are_named(settings, message):
    x = torch.randn(8, 8)
    given = {"networks": {"net": nn.Linear(8, 2)}, "example_input": x, "calibration": [x]}
    with pytest.raises(ValueError, match=message):
        compare_precisions(**given | {"evaluate": lambda net: 0.0} | settings)


def test_table_and_picture(record, tmp_path):
    from rich.console import Console

    console = Console(width=100, record=True)
    console.print(precision_table(record))
    text = " ".join(console.export_text().split())
    for cell in ("openvino", "onnxruntime", "dense", "compact", "int8", "1.00x"):
        assert cell in text
    assert "percent of made-up examples" in text
    assert "batch 8, input 32" in text
    precision_chart(record, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


# The commands

ENTRY = "zoo:lenet_mnist_filter_channel"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(
        "data:\n  class_path: ssl_lightning.data.MNISTDataModule\n"
        "  init_args: {source: bundled, num_validation: 500}\n"
    )
    return path


def test_export_int8_on_an_entry(config, tmp_path, capsys):
    file = tmp_path / "m.onnx"
    arguments = ["export", ENTRY, "--int8", f"--output={file}", f"--data={config}", "--images=64"]
    assert main(arguments) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "int8 in onnxruntime, ranges from 64 training images" in out
    assert "percent of 500 validation images of MNIST" in out
    assert f"Wrote {file}" in out.replace("\n", "")
    x = np.zeros((3, 1, 28, 28), np.float32)
    assert RUN["onnx"](file, x).shape == (3, 10)


def test_export_int8_takes_the_runs_own_data_and_names_mistakes(tmp_path, capsys, config):
    file = tmp_path / "m.xml"
    assert main(["export", "lenet", "--int8", "--format=openvino", f"--output={file}"]) == 1
    assert "export --int8: expected data to measure errors on" in capsys.readouterr().err
    assert main(["export", ENTRY, "--int8", "--format=torch_export"]) == 1
    assert "Unknown format with int8 'torch_export'" in capsys.readouterr().err
    arguments = ["export", ENTRY, "--int8", f"--data={config}", f"--output={tmp_path / 'm.onnx'}"]
    assert main([*arguments, "--images=0"]) == 1
    assert "export --int8: expected images >= 1, got 0" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.yaml"]


def test_benchmark_int8(config, tmp_path, capsys):
    file = tmp_path / "a.json"
    assert (ROOT / "zoo" / "lenet_mnist_dense").is_dir()
    arguments = ["benchmark", "int8", ENTRY, "--dense=zoo:lenet_mnist_dense", f"--data={config}"]
    arguments += ["--engines=openvino", "--images=32", "--repeats=2", f"--output={file}"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "lenet_mnist_filter_channel" in out
    found = PrecisionRecord.load(file)
    assert {(row.network, row.precision) for row in found.rows} >= {
        ("dense", "float32"),
        ("dense", "int8"),
        ("compact", "float32"),
        ("compact", "int8"),
    }
    assert found.measure == "percent of 500 validation images of MNIST"
    small, large = (found.row(n, "openvino", "float32").num_bytes for n in ("compact", "dense"))
    assert small < large / 2
    assert file.with_suffix(".png").is_file()


def test_one_network_alone_where_nothing_was_removed(config, tmp_path):
    from ssl_lightning.cli.int8 import beside_dense
    from ssl_lightning.cli.sources import named_network

    assert list(beside_dense(named_network("lenet"), None)) == ["lenet"]


def test_inputs_that_are_not_tensors_are_part_of_the_network(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def forward(self, x, *, factor):
            return self.layer(x) * factor

    x, net, seen = torch.randn(32, 8), Scaled(), []

    def evaluate(network):
        seen.append(network(x, factor=2.0).detach())
        return 0.0

    inputs = Inputs(x, factor=2.0)
    export_int8(
        net, inputs.at_batch(1), tmp_path / "m.xml", calibration=[inputs], evaluate=evaluate
    )
    assert float((seen[1] - seen[0]).abs().max()) < 0.05 * float(seen[0].abs().max())


class TimeFirst(nn.Module):
    """Outputs whose first dimension is not the batch, and one without any."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x):
        y = self.layer(x)
        return y.transpose(0, 1), y.flatten(0, 1), y.mean()


@pytest.mark.parametrize("kind", FORMATS)
def test_outputs_without_a_batch_in_front_are_whole(kind, tmp_path):
    torch.manual_seed(0)
    net, x, seen = TimeFirst(), torch.randn(2, 5, 8), []

    def evaluate(network):
        seen.append([y.detach().clone() for y in network(x)])
        return 0.0

    given = {"calibration": [x], "evaluate": evaluate, "size": "fixed"}
    export_int8(net, x[:1], tmp_path / f"m{SUFFIX[kind]}", kind, **given)
    assert [tuple(y.shape) for y in seen[1]] == [(5, 2, 3), (10, 3), ()]
    for exact, found in zip(*seen, strict=True):
        torch.testing.assert_close(found, exact, rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="one row for each of 1 examples, got the shapes"):
        export_int8(net, x[:1], tmp_path / f"f{SUFFIX[kind]}", kind, **given, batch=1)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (
            [[torch.zeros(4, 8), torch.zeros(4)]],
            r"shapes \[\(8,\)\] .* got \[\(8,\), \(\)\]. Give a list",
        ),
        (torch.zeros(4, 8), r"got \[\(\)\]. Give a list of batches"),
        ([torch.full((4, 8), float("nan"))], "finite calibration inputs, got NaN"),
    ],
    ids=["with targets", "no list", "NaN"],
)
def test_calibration_that_is_none_is_named(calibration, message, tmp_path):
    x = torch.randn(4, 8)
    with pytest.raises(ValueError, match=message):
        export_int8(
            nn.Linear(8, 2), x, tmp_path / "m.xml", calibration=calibration, evaluate=lambda n: 0.0
        )
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file_and_brackets_are(tmp_path):
    x = torch.randn(16, 8)
    given = {"calibration": [x], "evaluate": lambda net: torch.tensor(1.0)}
    (tmp_path / "a.xml").mkdir()
    with pytest.raises(ValueError, match="expected a file to write, got the folder"):
        export_int8(nn.Linear(8, 2), x, tmp_path / "a.xml", **given)
    assert [path.name for path in tmp_path.iterdir()] == ["a.xml"]
    result = export_int8(nn.Linear(8, 2), x, tmp_path / "net[v1].xml", **given)
    assert result.size > 0
    assert type(result.after) is float


def test_calibration_may_be_a_generator():
    x = torch.randn(16, 8)
    networks = {"a": nn.Linear(8, 2), "b": nn.Linear(8, 2, bias=False)}
    found = compare_precisions(
        networks,
        x[:1],
        (batch for batch in x.split(4)),
        lambda net: torch.tensor(1.0),
        engines="openvino",
        repeats=1,
        min_run_time=1e-4,
    )
    assert {row.network for row in found.rows} == {"a", "b"}
    assert not found.left_out
    assert PrecisionRecord.from_dict(found.to_dict()) == found


def test_without_the_first_network_an_engine_has_no_rows():
    unknown = Fn(lambda net, x: torch.linalg.matrix_exp(net.layer(x)), layer=nn.Linear(4, 4))
    x = torch.randn(4, 4, 4)
    networks = {"unknown": unknown, "known": nn.Linear(4, 4)}
    with pytest.raises(ValueError, match="unknown cannot be run there"):
        compare_precisions(networks, x[:1], [x], lambda net: 0.0, engines="onnxruntime", repeats=1)


def test_what_is_for_int8_alone_is_refused_without_it(tmp_path, capsys):
    for option in ("--max_rise=2", "--images=3", "--data=none.yaml"):
        assert main(["export", "lenet", f"--output={tmp_path / 'm.onnx'}", option]) == 1
        assert "are for int8. Add --int8" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
