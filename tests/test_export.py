"""Exported files are opened by their engines here once more, and compared with torch by hand."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ssl_lightning
import toy
from conftest import ROOT
from ssl_lightning import (
    Inputs,
    compact,
    create_backbone,
    export_model,
    load_backbone,
    load_compact,
    make_plan,
    save_compact,
)
from ssl_lightning.callbacks.depth import skip_branch
from ssl_lightning.cli import main
from ssl_lightning.compaction.equality import tensors_of
from ssl_lightning.compaction.modules import SubsetLayer, ZeroConv, ZeroLike
from ssl_lightning.compaction.store import read_recipe
from ssl_lightning.graph import residual_branches, trace
from ssl_lightning.measure.engines import ENGINES as TABLE
from ssl_lightning.measure.engines import file_formats
from toy import Fn, make_toy

FORMATS = file_formats()
NAMES = ["lenet", "mlp", "convnet", "resnet20", "alexnet"]


def run_onnx(path, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["input"]
    assert [o.name for o in session.get_outputs()] == ["output"]
    return session.run(["output"], {"input": x})[0]


def run_openvino(path, x):
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(x)[0]


def run_torch(path, x):
    return torch.export.load(path).module()(torch.from_numpy(x)).detach().numpy()


ENGINES = {"onnx": run_onnx, "openvino": run_openvino, "torch_export": run_torch}
FILES = {"onnx": ["m.onnx"], "openvino": ["m.bin", "m.xml"], "torch_export": ["m.pt2"]}


def assert_engine_agrees(net, path, kind, batch):
    x = torch.randn(batch, *net.input_shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = net.eval()(x).numpy()
    found = ENGINES[kind](path, x.numpy())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@cache
def small_network(name):
    """A compact network of each of the backbones.

    ResNet-20's lost a branch, has constants in borders, and layers that compute a part of a trunk.
    """
    torch.manual_seed(1)
    net = create_backbone(name)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.normal_(std=0.3)
        if name == "resnet20":
            for layer in (net.layer1[1].bn2, net.layer2[1].conv1, net.layer2[1].bn1):
                for parameter in layer.parameters():
                    parameter.zero_()
            for layer in [m for m in net.layer3.modules() if isinstance(m, nn.Conv2d)]:
                layer.weight[torch.randperm(64)[:26]] = 0
        layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        for layer in layers[:-1] if name != "resnet20" else []:
            keep = max(2, len(layer.weight) // 16) if name == "alexnet" else len(layer.weight) // 2
            layer.weight[keep:] = 0
            if layer.bias is not None:
                layer.bias[keep:] = 0
    example = torch.zeros(1, *net.input_shape)
    return compact(net.eval(), make_plan(net, example)).eval()


def test_the_compact_networks_have_all_kinds_of_layers():
    modules = list(small_network("resnet20").modules())
    assert {SubsetLayer, ZeroConv, ZeroLike} <= {type(m) for m in modules}
    assert any(m.border is not None for m in modules if isinstance(m, SubsetLayer))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_backbone_in_every_format(name, kind, tmp_path):
    net = small_network(name)
    path = tmp_path / f"m{FORMATS[kind].suffix}"
    result = export_model(net, torch.zeros(1, *net.input_shape), path, kind)
    assert result.batch_sizes == (1, 2, 5)
    assert 0 <= result.difference <= 2e-5
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES[kind]
    for batch in (1, 3):
        assert_engine_agrees(net, path, kind, batch)


@pytest.mark.parametrize("kind", FORMATS)
def test_masked_and_collapsed_networks_export_as_they_are(kind, tmp_path):
    """Zeros, and a branch whose layers have a shorter forward; the mode comes back."""
    net = make_toy()
    with torch.no_grad():
        net.conv1.weight[:3] = 0
        for layer in (net.conv2, net.bn2):
            for parameter in layer.parameters():
                parameter.zero_()
    (branch,) = residual_branches(trace(net, torch.zeros(1, 1, 8, 8)))
    skip_branch(net, branch)
    net.train()
    net.fc.eval()
    path = tmp_path / f"m{FORMATS[kind].suffix}"
    export_model(net, torch.zeros(1, 1, 8, 8), path, kind)
    assert net.training
    assert not net.fc.training
    assert_engine_agrees(net, path, kind, 2)


def everything_in(folder):
    """The bytes of all files, and of what is in archives."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        yield path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from map(archive.read, archive.namelist())


@pytest.mark.parametrize("kind", FORMATS)
def test_files_name_no_folder_of_this_machine(kind, tmp_path):
    path = tmp_path / f"m{FORMATS[kind].suffix}"
    export_model(make_toy(), torch.zeros(1, 1, 8, 8), path, kind)
    files = [toy.__file__, torch.__file__, ssl_lightning.__file__]
    folders = [str(Path(file).parent).encode() for file in files]
    found = list(everything_in(tmp_path))
    assert len(found) >= len(FILES[kind])
    assert not any(folder in data for data in found for folder in folders)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_fixed_batch_size(kind, tmp_path):
    net = make_toy()
    path = tmp_path / f"m{FORMATS[kind].suffix}"
    assert export_model(net, torch.zeros(1, 1, 8, 8), path, kind, batch=3).batch_sizes == (3,)
    assert_engine_agrees(net, path, kind, 3)
    with pytest.raises(Exception):  # noqa: B017, PT011 - each engine has its own
        ENGINES[kind](path, np.zeros((2, 1, 8, 8), dtype=np.float32))


@pytest.mark.parametrize("kind", FORMATS)
def test_several_inputs_and_outputs(kind, tmp_path):
    net = Fn(lambda self, x, y: (self.a(x) + y, y.flatten(1).sum(1)), a=nn.Linear(4, 3))
    path = tmp_path / f"m{FORMATS[kind].suffix}"
    result = export_model(net, (torch.zeros(1, 4), torch.zeros(1, 3)), path, kind)
    assert result.difference < 1e-5


def fake(kind, monkeypatch, change):
    """Let the engine of a format return something else."""
    real = FORMATS[kind]

    def load(path):
        bind = real.load(path)
        return lambda inputs: lambda: change(tensors_of(bind(inputs)()))

    monkeypatch.setitem(TABLE, real.name, replace(real, load=load))


WRONG = {
    "values": lambda outputs: [t * 1.01 for t in outputs],
    "nan": lambda outputs: [t * float("nan") for t in outputs],
    "shape": lambda outputs: [t[:, :-1] for t in outputs],
    "number": lambda outputs: [*outputs, *outputs],
}


@pytest.mark.parametrize(
    ("kind", "change"),
    [("onnx", "values"), ("openvino", "values"), *(("torch_export", change) for change in WRONG)],
)
def test_what_does_not_match_is_not_written(kind, change, tmp_path, monkeypatch):
    fake(kind, monkeypatch, WRONG[change])
    path = tmp_path / "runs" / f"m{FORMATS[kind].suffix}"
    path.parent.mkdir()
    path.write_text("an older file")
    with pytest.raises(ValueError, match=r"outputs differ by .* than the tolerance 0\.0001"):
        export_model(make_toy(), torch.zeros(1, 1, 8, 8), path, kind)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_text() == "an older file"


def test_a_larger_tolerance_accepts_it(tmp_path, monkeypatch):
    fake("torch_export", monkeypatch, WRONG["values"])
    x = torch.zeros(1, 1, 8, 8)
    result = export_model(make_toy(), x, tmp_path / "m.pt2", "torch_export", tolerance=0.02)
    assert result.difference == pytest.approx(0.01, rel=0.01)
    assert result.tolerance == 0.02


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x.view(2, 3)) if len(x) == 2 else self.fc(x.view(4, 3))


def test_a_network_that_fixes_its_batch_size_says_so(tmp_path):
    net, x = FixedBatch(), torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"Cannot run FixedBatch .*one batch size only, give that"):
        export_model(net, x, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="FixedBatch cannot be captured with a dynamic batch"):
        export_model(net, torch.zeros(4, 3), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    assert export_model(net, x, tmp_path / "m.onnx", batch=4).batch_sizes == (4,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "onxx"}, "onxx.*Did you mean onnx"),
        ({"format": "openvino"}, r"ending in \.xml for openvino, got 'm\.onnx'"),
        ({"batch": 0}, "batch 'dynamic' or a number of at least 1, got 0"),
        ({"batch": "all"}, "got 'all'"),
        ({"tolerance": -1.0}, "tolerance >= 0, got -1"),
    ],
)
def test_mistakes_are_named(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(make_toy(), torch.zeros(1, 1, 8, 8), tmp_path / "m.onnx", **settings)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_their_extra(tmp_path, monkeypatch):
    lost = replace(FORMATS["onnx"], packages=("onnx", "no_such_package"))
    monkeypatch.setitem(TABLE, "onnxruntime", lost)
    with pytest.raises(ValueError, match=r"needs no_such_package, .* 'ssl-lightning\[engines\]'"):
        export_model(make_toy(), torch.zeros(1, 1, 8, 8), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


SIZES = [(96, 96), (33, 65), (50, 20), (101, 127)]


def at_sizes(net, path, kind, channels=3, sizes=SIZES):
    """Compare a file with the network at other heights and widths."""
    for height, width in sizes:
        x = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            expected = net.eval()(x).numpy()
        found = ENGINES[kind](path, x.numpy())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


class PadsOddHeights(nn.Module):
    """Pads odd heights with ones: what holds on one path is wrong on the other."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        if x.shape[2] % 2:
            x = nn.functional.pad(x, (0, 0, 0, 1), value=1.0)
        return self.conv(x).mean((2, 3))


class NeedsEvenSizes(nn.Module):
    """As a U-Net: what goes down must come up again with the same size."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Upsample(scale_factor=2)

    def forward(self, x):
        return torch.cat([x, self.up(self.down(x))], 1)


@pytest.mark.parametrize("kind", FORMATS)
def test_height_and_width_are_dynamic_where_the_network_allows_it(kind, tmp_path):
    path = tmp_path / f"m{FORMATS[kind].suffix}"
    net = small_network("resnet20")
    result = export_model(net, torch.zeros(1, 3, 32, 32), path, kind)
    assert (64, 32) in result.sizes
    assert result.why_fixed == ""
    assert result.refused == ()
    at_sizes(net, path, kind)
    fixed = export_model(net, torch.zeros(1, 3, 32, 32), path, kind, size="fixed")
    assert fixed.sizes == ()
    assert fixed.why_fixed == "as asked"
    with pytest.raises(Exception):  # noqa: B017, PT011 - each engine has its own
        at_sizes(net, path, kind)
    only_even = NeedsEvenSizes()
    assert (64, 32) in export_model(only_even, torch.zeros(1, 3, 32, 32), path, kind).sizes
    at_sizes(only_even, path, kind, sizes=[(16, 20)])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_never_computes_something_else_at_another_size(kind, tmp_path):
    """A path that only holds for even heights must not be in a file that takes odd ones."""
    path = tmp_path / f"m{FORMATS[kind].suffix}"
    net, x = PadsOddHeights().eval(), torch.zeros(1, 3, 32, 32)
    result = export_model(net, x, path, kind)
    for height in (32, 64, 33):
        x = torch.randn(1, 3, height, 32)
        try:
            found = ENGINES[kind](path, x.numpy())
        except Exception:
            continue  # it says so
        np.testing.assert_allclose(found, net(x).detach().numpy(), atol=1e-5)
    assert result.why_fixed or result.refused


@pytest.mark.parametrize("name", ["lenet", "mlp"])
def test_what_fixes_the_size_is_said(name, tmp_path):
    net = create_backbone(name)
    result = export_model(net, torch.zeros(1, 1, 28, 28), tmp_path / "m.pt2", "torch_export")
    assert result.sizes == ()
    assert "itself refuses (1, 1, 56, 28) (RuntimeError: mat1 and mat2 shapes" in result.why_fixed


class ManyInputs(nn.Module):
    """Takes tensors by position and by name, nested, beside None and a number."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x, bias=None, scale=1.0, *, mask=None, more=None):
        y = self.conv(x) * scale
        y = y if mask is None else y * mask
        return y.mean((2, 3)) + more["a"][0]


@pytest.mark.parametrize("kind", FORMATS)
def test_inputs_that_are_not_tensors(kind, tmp_path):
    net, x, a = ManyInputs().eval(), torch.randn(2, 3, 8, 8), torch.randn(2, 4)
    mask = torch.randn(2, 1, 8, 8)
    inputs = Inputs(x, None, 2.0, mask=mask, more={"a": [a], "b": None})
    path = tmp_path / f"m{FORMATS[kind].suffix}"
    result = export_model(net, inputs, path, kind)
    assert result.difference < 1e-5
    assert (16, 8) in result.sizes
    expected = inputs.run(net).detach().numpy()
    if kind == "torch_export":
        found = inputs.run(torch.export.load(path).module()).detach().numpy()
    elif kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [i.name for i in session.get_inputs()] == ["input_0", "mask", "more_a_0"]
        given = {"input_0": x.numpy(), "mask": mask.numpy(), "more_a_0": a.numpy()}
        (found,) = session.run(None, given)
    else:
        import openvino

        model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = model([t.numpy() for t in (x, mask, a)])[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_no_tensor_at_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected tensors as example input"):
        export_model(nn.Identity(), (None, 3), tmp_path / "m.onnx")


@pytest.fixture
def checkpoint(tmp_path):
    """What `fit` writes, of a LeNet with zeros."""
    torch.manual_seed(0)
    net = create_backbone("lenet")
    with torch.no_grad():
        for parameter in net.conv2.parameters():
            parameter[10:] = 0
    content = {
        "state_dict": {f"backbone.{name}": t for name, t in net.state_dict().items()},
        "hyper_parameters": {"backbone": "lenet", "backbone_args": {}},
    }
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    return net, path


def onnx_shapes(path):
    import onnx

    graph = onnx.load(path).graph
    dims = graph.input[0].type.tensor_type.shape.dim
    return [d.dim_param or d.dim_value for d in dims], [list(t.dims) for t in graph.initializer]


def test_the_command_on_a_checkpoint(checkpoint, capsys):
    net, path = checkpoint
    assert main(["export", str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "onnxruntime against torch on random inputs, batch size 1, 2, 5" in out
    assert "(tolerance 0.0001)" in out
    file = path.parent.parent / "model.onnx"
    assert_engine_agrees(net, file, "onnx", 4)
    shape, weights = onnx_shapes(file)
    assert shape == ["batch", 1, 28, 28]
    assert "height and width: fixed at 28x28: LeNet itself refuses (1, 1, 56, 28)" in out
    assert [10, 20, 5, 5] in weights
    masked = path.with_name("masked.onnx")
    assert main(["export", str(path), "--masked=true", "--batch=3", f"--output={masked}"]) == 0
    shape, weights = onnx_shapes(masked)
    assert shape == [3, 1, 28, 28]
    assert [50, 20, 5, 5] in weights


def test_the_command_on_folders(checkpoint, tmp_path):
    net, _ = checkpoint
    plan = make_plan(net, torch.zeros(1, 1, 28, 28))
    save_compact(tmp_path / "small", compact(net, plan), plan, "lenet", {})
    assert main(["export", str(tmp_path / "small"), "--format=openvino"]) == 0
    assert_engine_agrees(net, tmp_path / "small.xml", "openvino", 4)
    entry = ROOT / "zoo" / "lenet_mnist_shape"
    file = tmp_path / "zoo.pt2"
    assert main(["export", str(entry), "--format=torch_export", f"--output={file}"]) == 0
    from ssl_lightning import zoo

    assert_engine_agrees(zoo.load("lenet_mnist_shape"), file, "torch_export", 4)


def test_the_command_names_mistakes(checkpoint, tmp_path, capsys, monkeypatch):
    _, path = checkpoint
    assert main(["export", str(tmp_path / "nothing.ckpt")]) == 1
    assert "No checkpoint at" in capsys.readouterr().err
    assert main(["export", str(tmp_path)]) == 1
    assert "a compact network is a folder with" in capsys.readouterr().err
    run = path.parent.parent
    assert path.name == "last.ckpt", "the fixture's"
    assert main(["export", str(run)]) == 1
    assert f"{run} is the folder of a run. Give {path}." in capsys.readouterr().err
    assert main(["export", "lenet_mnist_shape"]) == 1
    entry = ROOT / "zoo" / "lenet_mnist_shape"
    assert f"The zoo's entry of this name is {entry}." in capsys.readouterr().err
    assert main(["export", str(entry), "--model=torch.nn.Linear"]) == 1
    assert "made by its name. Leave --model out." in capsys.readouterr().err
    assert main(["export", str(path), "--format=onxx"]) == 1
    assert "Unknown export format 'onxx'. Did you mean onnx" in capsys.readouterr().err
    fake("onnx", monkeypatch, WRONG["values"])
    assert main(["export", str(path)]) == 1
    assert "model.onnx was not written" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoints"]


def test_a_size_of_ones_own_is_measured_and_exported(tmp_path, capsys):
    """Made for 224 pixels, trained at 96: compact folder, figures and file are of 96."""
    net = create_backbone("timm:mobilenetv3_small_050", num_classes=3)
    with torch.no_grad():
        net.conv_head.weight[100:] = 0
        net.conv_head.bias[100:] = 0
    content = {
        "state_dict": {f"backbone.{name}": t for name, t in net.state_dict().items()},
        "hyper_parameters": {
            "backbone": "timm:mobilenetv3_small_050",
            "backbone_args": {"num_classes": 3},
            "input_shape": [3, 96, 96],
        },
    }
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    assert main(["compact", str(path)]) == 0
    small = tmp_path / "run" / "compact"
    assert load_compact(small).input_shape == (3, 96, 96)
    trained, recipe = load_backbone(path), read_recipe(small, str(small))
    for made in (trained.original(), trained.masked(), recipe.create_dense(), recipe.create()):
        assert made.input_shape == (3, 96, 96)
    arguments = ["--compacted", str(small), "--repeats=1", "--per_layer=false"]
    assert main(["benchmark", str(path), *arguments]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["benchmark"]["input_shape"] == [3, 96, 96]
    assert main(["export", str(small), "--size=fixed"]) == 0
    assert onnx_shapes(small.with_suffix(".onnx"))[0] == ["batch", 3, 96, 96]
    capsys.readouterr()
    assert main(["export", str(path)]) == 0
    file = tmp_path / "run" / "model.onnx"
    assert onnx_shapes(file)[0] == ["batch", 3, "height", "width"]
    assert "height and width: dynamic, compared at 192x96" in capsys.readouterr().out
    at_sizes(net, file, "onnx")
