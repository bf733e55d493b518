"""The GPU kernel beside its equality in test_kernels.py: tiles, patterns, autocast.

Kernels run in Triton's interpreter, in a process of its own because it is chosen at import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from conftest import ROOT
from ssl_lightning import ColumnSparseConv2d
from ssl_lightning.kernels import tiles
from ssl_lightning.kernels.geometry import Geometry
from ssl_lightning.kernels.pattern import pattern_of
from ssl_lightning.kernels.tiles import Problem, Tile
from test_kernels import LAYOUTS, make_case

TILES = """
import random, torch
from ssl_lightning.kernels import gpu
from ssl_lightning.kernels.tiles import Tile
from test_kernels import GEOMETRIES, LAYOUTS, assert_near, make_case
random.seed(0)
def check(case, tile):
    arguments = (case.x, case.values, case.bias, case.rows, case.columns, case.geometry, case.relu)
    assert_near(gpu.convolve(*arguments, tile=tile), case.dense(), case.x.dtype)
for name, (geometry, shape) in GEOMETRIES.items():
    for layout in random.sample(sorted(LAYOUTS), 2):
        some = {n: random.choice(v) for n, v in {
            "rows": (16, 32, 64), "pixels": (16, 64, 128), "depth": (16, 32),
            "splits": (1, 2, 3, 8)}.items()}
        density = random.choice(((0.6, 0.4), (1, 1), (0.1, 0.9), (0, 1), (1, 0)))
        flags = {"bias": random.random() < 0.5, "relu": random.random() < 0.5}
        dtype = random.choice((torch.float32, torch.bfloat16))
        case = make_case(geometry, shape, density=density, layout=layout, dtype=dtype, **flags)
        check(case, Tile(**some))
case = make_case(geometry, (3, *shape[1:]))
case.values = case.values.repeat_interleave(2)[::2]  # strided, as are these
case.bias = case.bias.repeat_interleave(2)[::2]
case.columns = case.columns.repeat_interleave(2)[::2]
check(case, Tile(16, 16, splits=2))
case.x[0] = float("nan")
got = gpu.convolve(case.x, case.values, case.bias, case.rows, case.columns, case.geometry)
assert got[0].isnan().any() and not got[1:].isnan().any()
gpu.INT32 = 0  # as if sizes needed 64 bits
case.x[0] = 1
for splits in (1, 2):
    check(case, Tile(16, 16, splits=splits))
"""


def test_every_tile_computes_the_same():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT / "tests")}
    subprocess.run([sys.executable, "-c", TILES], check=True, env=environment, timeout=500)


def test_pattern_puts_retained_filters_first_in_each_conv_group():
    rows, columns = torch.tensor([1, 4, 5]), torch.tensor([0, 2, 3])
    pattern = pattern_of(rows, columns, Geometry(4, 6, (1, 1), groups=2))
    assert pattern.order.tolist() == [1, 0, 2, 4, 5, 3]
    assert pattern.bounds.tolist() == [[1, 1, 0, 0], [2, 2, 1, 1]]
    assert pattern.most == (2, 2)


def test_pattern_is_worked_out_again_when_indices_change(monkeypatch):
    geometry, rows, columns = Geometry(4, 6, (1, 1)), torch.tensor([1, 3]), torch.tensor([0, 2])
    first = pattern_of(rows, columns, geometry)
    rows[0] = 0
    changed = pattern_of(rows, columns, geometry)
    assert changed.order.tolist() == [0, 3, 1, 2, 4, 5]
    others = pattern_of(rows, torch.tensor([1, 3]), geometry)
    assert others.columns.tolist() == [1, 3]
    assert first.order.tolist() == [1, 3, 0, 2, 4, 5]
    with torch.inference_mode():  # changes of such tensors are not counted
        rows = torch.tensor([1, 3])
        pattern_of(rows, columns, geometry)
        rows[0] = 0
        assert pattern_of(rows, columns, geometry).order.tolist() == [0, 3, 1, 2, 4, 5]


def test_indices_of_a_layer_are_read_once(monkeypatch):
    layer, reads = ColumnSparseConv2d(4, 6, 3, rows=[1, 2], columns=range(9)), []
    read = Geometry.blocks
    monkeypatch.setattr(Geometry, "blocks", lambda *args: reads.append(1) or read(*args))
    found = [pattern_of(layer.rows, layer.columns, layer.geometry) for _ in range(3)]
    assert len(reads) == 1
    assert all(one is found[0] for one in found)


SAMPLE = Problem("float32", True, 729, 111, 442, 2)
MEASURED = {"a GPU": {SAMPLE: Tile(32, 64, splits=4)}}


@pytest.fixture
def _measured():
    tiles.use(MEASURED)
    yield
    tiles.use(None)


@pytest.mark.usefixtures("_measured")
def test_measured_tiles_serve_similar_problems_of_the_same_device():
    near = Problem("float32", True, 800, 90, 600, 2)
    for problem in (SAMPLE, near):
        assert tiles.choose(problem, "a GPU", 132) == Tile(32, 64, splits=4)
    far = Problem("float32", True, 729 * 16, 111, 442, 2)
    other = Problem("bfloat16", False, 729, 111, 442, 2)
    for problem in (far, other):
        assert tiles.choose(problem, "a GPU", 132) == tiles.default_tile(problem, 132)
    assert tiles.choose(SAMPLE, "another", 132) == tiles.default_tile(SAMPLE, 132)


def test_tiles_survive_the_file(tmp_path):
    tiles.write_tiles(MEASURED, tmp_path / "tiles.json")
    assert tiles.read_tiles(tmp_path / "tiles.json") == MEASURED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", 48),
        ("splits", 0),
        ("warps", True),
        ("stages", 3.0),
        ("precision", "tf32"),
        ("depth", "32"),
        ("speed", 1),
    ],
)
def test_tiles_that_the_kernel_cannot_use_are_rejected(tmp_path, name, value):
    data = tiles.to_json(MEASURED)
    data["a GPU"][0]["tile"][name] = value
    (tmp_path / "tiles.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"tiles\.json.*measure again"):
        tiles.read_tiles(tmp_path / "tiles.json")


@pytest.mark.parametrize("text", ["", "[]", '{"a GPU": [1]}', '{"a GPU": {}}'])
def test_damaged_tiles_are_rejected(tmp_path, text):
    (tmp_path / "tiles.json").write_text(text)
    with pytest.raises(ValueError, match="Cannot read the tile sizes"):
        tiles.read_tiles(tmp_path / "tiles.json")


def test_default_tiles_are_ones_the_kernel_can_use():
    for rows in (0, 1, 17, 384):
        for columns in (0, 1, 442, 100_000):
            for pixels in (1, 169, 128 * 3025):
                problem = Problem("float32", True, pixels, rows, columns, 2)
                tile = tiles.default_tile(problem, 132)
                assert tiles.from_json(tiles.to_json({"x": {problem: tile}}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_the_type_it_was_given(dtype):
    case = make_case(Geometry(4, 6, (3, 3)), (2, 8, 8))
    layer = ColumnSparseConv2d.from_conv(case.conv())
    conv = case.conv()

    def both(call) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype):
            output = call(case.x)
        return output, torch.autograd.grad(output.float().sum(), list(call.parameters())[-1])[0]

    for mine, expected in zip(both(layer), both(conv), strict=True):
        assert mine.dtype == expected.dtype
    with torch.autocast("cpu", dtype):
        compiled = torch.compile(layer, backend="aot_eager")(case.x)
    assert compiled.dtype == dtype
    torch.testing.assert_close(compiled.double(), case.dense(), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_reach_inputs_of_any_strides(layout):
    case = make_case(Geometry(4, 6, (3, 3), padding=(1, 1)), (2, 8, 8), layout=layout)
    x = case.x.detach().clone().requires_grad_()  # keeps the strides, where no element is shared
    case.x = x
    (found,) = torch.autograd.grad(case.sparse().square().sum(), x)
    (expected,) = torch.autograd.grad(case.dense().square().sum(), x)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


POINTERS = {"order": "*i64", "columns": "*i64", "bounds": "*i64"}


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("wide", [False, True])
def test_kernels_compile_for_a_gpu_that_is_not_here(splits, wide, tmp_path, monkeypatch):
    """Triton's interpreter takes more Python than its compiler, which needs no GPU."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ssl_lightning.kernels.triton_kernel import add_parts, multiply_columns

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {
        "KERNEL_WIDTH": 3, "AREA": 9, "GROUPS": splits, "ROWS": 16, "PIXELS": 16, "DEPTH": 16,
        "SPLITS": splits, "PRECISION": "tf32", "PADDED": wide, "WIDE": wide, "WIDEN": False,
        "HAS_BIAS": True, "RELU": wide,
    }  # fmt: skip
    floats = dict.fromkeys(("x", "weight", "bias", "parts", "output"), "*fp32")
    for kernel in (multiply_columns, add_parts):
        types = dict.fromkeys(kernel.arg_names, "i32") | POINTERS | floats
        types |= dict.fromkeys(constants, "constexpr")
        given = {(i,): constants[n] for i, n in enumerate(kernel.arg_names) if n in constants}
        source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, given)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert kernel.__name__ in compiled.asm["ptx"]
