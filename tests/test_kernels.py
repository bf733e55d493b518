"""Column-sparse convolution: every implementation equals dense convolution with zeros."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.flop_counter import FlopCounterMode

from conftest import ROOT
from ssl_lightning import ColumnSparseConv2d, column_sparse_conv2d, count_macs
from ssl_lightning.kernels import compiled, gpu, instruction_set
from ssl_lightning.kernels.geometry import Geometry

needs_compiled = pytest.mark.skipif(
    not any((ROOT / "src/ssl_lightning/kernels").glob("_column_sparse*.so")),
    reason="the compiled kernel was not built",
)
needs_triton = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1",
    reason="no GPU, and not in Triton's interpreter",
)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dataclass
class Case:
    """One convolution with its dense equal."""

    x: Tensor
    weight: Tensor  # dense, with zeros
    bias: Tensor | None
    rows: Tensor
    columns: Tensor
    values: Tensor
    geometry: Geometry
    relu: bool = False

    def dense(self) -> Tensor:
        """Compute in float64 what is expected."""
        g = self.geometry
        bias = None if self.bias is None else self.bias.double()
        output = F.conv2d(
            self.x.double(), self.weight.double(), bias, g.stride, g.padding, g.dilation, g.groups
        )
        return output.relu() if self.relu else output

    def sparse(self, implementation: str = "auto") -> Tensor:
        g = self.geometry
        return column_sparse_conv2d(
            self.x,
            self.values,
            self.bias,
            self.rows,
            self.columns,
            out_channels=g.out_channels,
            kernel_size=g.kernel_size,
            stride=g.stride,
            padding=g.padding,
            dilation=g.dilation,
            groups=g.groups,
            relu=self.relu,
            implementation=implementation,
        )

    def conv(self) -> nn.Conv2d:
        """Return the masked layer."""
        g = self.geometry
        conv = nn.Conv2d(
            g.in_channels,
            g.out_channels,
            g.kernel_size,
            g.stride,
            g.padding,
            g.dilation,
            g.groups,
            self.bias is not None,
            dtype=self.x.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(self.weight)
            if conv.bias is not None:
                conv.bias.copy_(self.bias)
        return conv


def make_case(
    geometry: Geometry,
    shape: tuple[int, int, int],
    *,
    density: tuple[float, float] = (0.6, 0.4),
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    bias: bool = True,
    relu: bool = False,
    seed: int = 0,
) -> Case:
    """Draw which rows and columns are kept, each conv-group its own, and all numbers."""
    generator = torch.Generator().manual_seed(seed)
    g = geometry
    rows = (torch.rand(g.out_channels, generator=generator) < density[0]).nonzero().flatten()
    columns = (torch.rand(g.num_columns, generator=generator) < density[1]).nonzero().flatten()
    weight = torch.zeros(g.out_channels, g.columns_per_group, dtype=dtype)
    blocks = []
    for i in range(g.groups):
        r = rows[rows // g.filters_per_group == i]
        c = columns[columns // g.columns_per_group == i] % g.columns_per_group
        block = torch.randn(len(r), len(c), generator=generator).to(dtype)
        weight[r[:, None], c] = block
        blocks.append(block.flatten())
    n, h, w = shape
    x = torch.randn(n, g.in_channels, h, w, generator=generator).to(dtype)
    b = torch.randn(g.out_channels, generator=generator).to(dtype) if bias else None
    weight = weight.view(g.out_channels, -1, *g.kernel_size)
    return Case(LAYOUTS[layout](x), weight, b, rows, columns, torch.cat(blocks), g, relu)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every_second": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "expanded": lambda x: x[:, :1].expand_as(x),
}


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare relative to the largest output."""
    assert actual.shape == expected.shape
    assert actual.dtype == dtype
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    error = (actual.double() - expected).abs().max() if expected.numel() else torch.tensor(0.0)
    assert float(error) <= TOLERANCE[dtype] * max(scale, 1.0)


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...]) -> Case:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    geometry = Geometry(
        groups * draw(st.integers(1, 5)),
        groups * draw(st.integers(1, 11)),
        draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        draw(pair),
        draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        draw(pair),
        groups,
    )
    least = [max(1, r - 2 * p) for r, p in zip(geometry.reach, geometry.padding, strict=True)]
    height, width = (draw(st.integers(size, size + 20)) for size in least)
    fraction = st.sampled_from([0.0, 0.1, 0.5, 1.0])
    return make_case(
        geometry,
        (draw(st.sampled_from([0, 1, 1, 3, 9])), height, width),
        density=(draw(fraction), draw(fraction)),
        dtype=draw(st.sampled_from(dtypes)),
        layout=draw(st.sampled_from(sorted(LAYOUTS))),
        bias=draw(st.booleans()),
        relu=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


GEOMETRIES = {
    "alexnet_conv2": (Geometry(12, 20, (5, 5), padding=(2, 2), groups=2), (1, 27, 27)),
    "alexnet_conv1": (Geometry(3, 13, (11, 11), (4, 4)), (1, 51, 51)),
    "pointwise": (Geometry(40, 30, (1, 1)), (2, 7, 9)),
    "pointwise_stride": (Geometry(20, 17, (1, 1), (2, 2)), (2, 13, 14)),
    "depthwise": (Geometry(9, 18, (3, 3), padding=(1, 1), groups=9), (1, 10, 10)),
    "dilated": (Geometry(4, 6, (3, 2), (1, 3), (4, 1), (3, 2)), (2, 19, 20)),
    "every_second": (Geometry(3, 9, (3, 3), (2, 2), (1, 1)), (2, 75, 71)),
    "no_input_left": (Geometry(2, 3, (2, 2), padding=(3, 3)), (1, 1, 1)),
    "many_rows": (Geometry(5, 133, (3, 3), padding=(1, 1)), (1, 25, 17)),
}


@settings(max_examples=150, deadline=None)
@given(cases((torch.float64, torch.float32, torch.bfloat16)))
def test_reference_equals_dense(case):
    assert_near(case.sparse("reference"), case.dense(), case.x.dtype)


@needs_compiled
@settings(max_examples=300, deadline=None)
@given(cases((torch.float32, torch.bfloat16)), st.sampled_from(sorted(compiled.LEVELS.values())))
def test_compiled_equals_dense(case, level):
    arguments = (case.x, case.values, case.bias, case.rows, case.columns, case.geometry)
    arguments = (*arguments, case.relu)
    assert_near(compiled.convolve(*arguments, level=level), case.dense(), case.x.dtype)


@settings(max_examples=100, deadline=None)
@given(cases((torch.float64, torch.float32, torch.bfloat16)))
def test_layer_equals_masked_convolution(case):
    conv = case.conv()
    layer = ColumnSparseConv2d.from_conv(conv)
    layer.relu = case.relu
    assert torch.equal(layer.dense_weight(), conv.weight)
    assert_near(layer(case.x).detach(), case.dense(), case.x.dtype)
    assert_near(layer.reference(case.x).detach(), case.dense(), case.x.dtype)


@needs_compiled
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_change_nothing(name, threads):
    geometry, shape = GEOMETRIES[name]
    case = make_case(geometry, shape)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        many = case.sparse("compiled")
        torch.set_num_threads(1)
        assert torch.equal(many, case.sparse("compiled"))
    finally:
        torch.set_num_threads(before)
    assert_near(many, case.dense(), torch.float32)


@needs_compiled
def test_several_callers_at_once():
    geometry, shape = GEOMETRIES["many_rows"]
    some = [make_case(geometry, shape, seed=i) for i in range(4)]
    wrong = []

    def work(case: Case) -> None:
        expected = case.sparse("compiled")
        wrong.extend(1 for _ in range(50) if not torch.equal(case.sparse("compiled"), expected))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threads = [threading.Thread(target=work, args=(case,)) for case in some]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert not wrong


@needs_compiled
def test_workers_survive_a_fork():
    code = (
        "import os, torch\n"
        "from ssl_lightning import ColumnSparseConv2d\n"
        "torch.set_num_threads(2)\n"
        "layer, x = ColumnSparseConv2d(8, 8, 3), torch.ones(1, 8, 20, 20)\n"
        "with torch.inference_mode():\n"
        "    expected = layer(x)\n"
        "    child = os.fork()\n"
        "    same = torch.equal(layer(x), expected)\n"
        "if child == 0: os._exit(0 if same else 1)\n"
        "assert same and os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


@needs_compiled
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc that shows threads")
def test_threads_sleep_when_there_is_no_work():
    code = (
        "import os, time, torch\n"
        "from pathlib import Path\n"
        "from ssl_lightning import ColumnSparseConv2d\n"
        "def states():\n"
        "    tasks = Path('/proc/self/task').iterdir()\n"
        "    others = [task for task in tasks if int(task.name) != os.getpid()]\n"
        "    return {(t / 'stat').read_text().rpartition(')')[2].split()[0] for t in others}\n"
        "torch.set_num_threads(3)\n"
        "layer = ColumnSparseConv2d(8, 8, 3)\n"
        "with torch.inference_mode(): layer(torch.ones(1, 8, 20, 20))\n"
        "while states() != {'S'}: time.sleep(0.01)\n"
        "for _ in range(50):\n"
        "    time.sleep(0.01)\n"
        "    assert states() == {'S'}, states()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@needs_compiled
@pytest.mark.parametrize("level", compiled.LEVELS)
def test_instruction_set_is_at_most_the_one_asked_for(level):
    found = instruction_set(torch.bfloat16, compiled.LEVELS[level])
    assert compiled.LEVELS[found] <= compiled.LEVELS[level]


TRITON = """
import torch
from test_kernels import GEOMETRIES, assert_near, make_case
for name, (geometry, shape) in GEOMETRIES.items():
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("contiguous", "channels_last"):
            for relu in (False, True):
                case = make_case(geometry, shape, dtype=dtype, layout=layout, relu=relu)
                assert_near(case.sparse("triton"), case.dense(), dtype)
for density in ((0, 1), (1, 0), (1, 1)):
    for relu in (False, True):
        case = make_case(geometry, shape, density=density, bias=relu, relu=relu)
        assert_near(case.sparse("triton"), case.dense(), torch.float32)
case = make_case(geometry, (0, *shape[1:]))
assert_near(case.sparse("triton"), case.dense(), torch.float32)
"""


def test_triton_equals_dense_in_its_interpreter():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT / "tests")}
    subprocess.run([sys.executable, "-c", TRITON], check=True, env=environment, timeout=500)


@needs_triton
@settings(max_examples=50, deadline=None)
@given(cases((torch.float32, torch.bfloat16)))
def test_triton_equals_dense(case):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in ("x", "values", "bias", "rows", "columns"):
        tensor = getattr(case, name)
        setattr(case, name, None if tensor is None else tensor.to(device))
    assert_near(case.sparse("triton").cpu(), case.dense().cpu(), case.x.dtype)


def test_triton_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(gpu, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        make_case(*GEOMETRIES["pointwise"]).sparse("triton")


@needs_compiled
@pytest.mark.parametrize("level", sorted(compiled.LEVELS.values()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relu_keeps_nan(level, dtype):
    case = make_case(*GEOMETRIES["alexnet_conv1"], dtype=dtype, relu=True, density=(0.7, 1))
    case.x[0, 1, 20, 30] = torch.nan
    case.bias[1:4] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    arguments = (case.x, case.values, case.bias, case.rows, case.columns, case.geometry, True)
    output = compiled.convolve(*arguments, level=level)
    expected = case.sparse("reference")
    assert output.isnan().any()
    tolerance = 10 * TOLERANCE[dtype]
    torch.testing.assert_close(
        output, expected, rtol=tolerance, atol=10 * tolerance, equal_nan=True
    )


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_gradients_equal_those_of_dense(name, relu):
    geometry, shape = GEOMETRIES[name]
    case = make_case(geometry, shape, dtype=torch.float64, relu=relu)
    layer = ColumnSparseConv2d.from_conv(case.conv())
    layer.relu = relu
    dense = nn.Sequential(case.conv(), nn.ReLU() if relu else nn.Identity())
    inputs = [case.x.clone().requires_grad_() for _ in range(3)]
    upstream = torch.randn(case.dense().shape, dtype=torch.float64)
    grads = []
    for run, x in zip((dense, layer, layer.reference), inputs, strict=True):
        layer.zero_grad()
        run(x).backward(upstream)
        grads.append(layer.values.grad)
    dense = dense[0]
    kept = [
        dense.weight.grad.flatten(1)[layer.rows[r]][
            :, layer.columns[c] % geometry.columns_per_group
        ].flatten()
        for r, c, _ in geometry.blocks(layer.rows, layer.columns)
    ]
    for x in inputs[1:]:
        torch.testing.assert_close(x.grad, inputs[0].grad)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, torch.cat(kept))
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


def test_reference_is_differentiable_twice():
    case = make_case(Geometry(2, 2, (2, 2), (2, 1), (1, 0)), (1, 3, 4), dtype=torch.float64)
    tensors = [t.requires_grad_() for t in (case.x, case.values, case.bias)]

    def run(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        other = Case(x, case.weight, bias, case.rows, case.columns, values, case.geometry)
        return other.sparse("reference")

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


def test_training_moves_only_kept_weights():
    case = make_case(*GEOMETRIES["alexnet_conv2"])
    layer = ColumnSparseConv2d.from_conv(case.conv())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(case.x).square().mean().backward()
    optimizer.step()
    weight = layer.dense_weight()
    assert not torch.equal(weight, case.weight)
    assert not weight[case.weight == 0].any()
    g = case.geometry
    expected = F.conv2d(case.x, weight, layer.bias, g.stride, g.padding, g.dilation, g.groups)
    torch.testing.assert_close(layer(case.x), expected)


def test_a_changed_weight_counts_at_once_however_it_was_changed():
    case = make_case(*GEOMETRIES["many_rows"], bias=False)
    layer = ColumnSparseConv2d.from_conv(case.conv())
    with torch.inference_mode():
        before = layer(case.x)
        layer.values.data.mul_(2)
        torch.testing.assert_close(layer(case.x), 2 * before)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own
def test_operator_passes_torchs_own_checks():
    case = make_case(*GEOMETRIES["dilated"])
    g = case.geometry
    sizes = (g.out_channels, g.kernel_size, g.stride, g.padding, g.dilation, g.groups)
    for relu in ((), (True,)):
        tensors = [t.clone().requires_grad_() for t in (case.x, case.values, case.bias)]
        torch.library.opcheck(
            torch.ops.ssl_lightning.column_sparse_conv2d.default,
            (*tensors, case.rows, case.columns, *sizes, *relu),
        )


@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_compile_captures_it_whole():
    case = make_case(*GEOMETRIES["alexnet_conv2"])
    layer = ColumnSparseConv2d.from_conv(case.conv())
    fast = torch.compile(nn.Sequential(layer, nn.ReLU()), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(case.x), layer(case.x).relu())
    fast(case.x).sum().backward()
    through = layer.values.grad.clone()
    layer.zero_grad()
    layer(case.x).relu().sum().backward()
    torch.testing.assert_close(through, layer.values.grad)


def test_export_keeps_it_as_one_operator():
    case = make_case(*GEOMETRIES["alexnet_conv2"])
    layer = ColumnSparseConv2d.from_conv(case.conv()).eval()
    batch = torch.export.Dim.DYNAMIC
    program = torch.export.export(layer, (case.x.repeat(2, 1, 1, 1),), dynamic_shapes=({0: batch},))
    targets = [str(node.target) for node in program.graph.nodes]
    assert "ssl_lightning.column_sparse_conv2d.default" in targets
    torch.testing.assert_close(program.module()(case.x), layer(case.x))


def test_macs_count_what_is_computed():
    case = make_case(*GEOMETRIES["alexnet_conv2"])
    layer = ColumnSparseConv2d.from_conv(case.conv())
    pixels = case.dense().shape[2] * case.dense().shape[3]
    assert count_macs(nn.Sequential(layer), case.x) == case.values.numel() * pixels


def test_autocast_runs_in_bfloat16():
    case = make_case(*GEOMETRIES["alexnet_conv2"])
    layer = ColumnSparseConv2d.from_conv(case.conv())
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(case.x)
    assert_near(output.detach(), case.dense(), torch.bfloat16)


def test_state_dict_rebuilds_the_layer_from_sizes_alone(tmp_path):
    case = make_case(*GEOMETRIES["alexnet_conv2"])
    layer = ColumnSparseConv2d.from_conv(case.conv())
    save_model(layer, tmp_path / "layer.safetensors")
    again = ColumnSparseConv2d(12, 20, 5, padding=2, groups=2)
    load_model(again, tmp_path / "layer.safetensors")
    assert torch.equal(again(case.x), layer(case.x))
    assert str(again) == str(layer)
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    values = again.values
    again.load_state_dict(layer.state_dict())  # the same pattern: parameters stay the same objects
    assert again.values is values
    assert optimizer.param_groups[0]["params"][0] is values


def test_state_dict_with_a_broken_pattern_is_refused():
    layer = ColumnSparseConv2d(2, 3, 2)
    state = layer.state_dict()
    state["rows"] = torch.tensor([0, 5])
    with pytest.raises(ValueError, match="`rows` as ascending int64 numbers from 0 to 2"):
        layer.load_state_dict(state)


@pytest.mark.parametrize("through", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same_and_are_independent(through):
    case = make_case(*GEOMETRIES["dilated"])
    layer = ColumnSparseConv2d.from_conv(case.conv())
    twin = through(layer)
    before = layer(case.x)
    assert torch.equal(twin(case.x), before)
    with torch.no_grad():
        twin.values.zero_()
    assert torch.equal(layer(case.x), before)


def test_layer_draws_fresh_weights_like_a_smaller_convolution():
    layer = ColumnSparseConv2d(64, 32, 3, rows=range(0, 32, 2), columns=range(0, 576, 4))
    bound = 144**-0.5
    assert bound * 0.9 < layer.values.abs().max() <= bound
    assert layer.values.numel() == 16 * 144


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_paddings(padding):
    conv = nn.Conv2d(2, 3, (3, 5), padding=padding, dilation=2)
    x = torch.randn(1, 2, 12, 12)
    torch.testing.assert_close(ColumnSparseConv2d.from_conv(conv)(x), conv(x))


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (nn.Conv2d(1, 1, 3, padding_mode="reflect"), "padding_mode='reflect'"),
        (nn.Conv2d(1, 1, 2, padding="same"), "pads one side more"),
    ],
)
def test_unusual_convolutions_are_refused(conv, message):
    with pytest.raises(ValueError, match=message):
        ColumnSparseConv2d.from_conv(conv)


def test_a_layer_with_relu_is_no_convolution():
    layer = ColumnSparseConv2d(1, 2, 3, relu=True)
    assert "relu=True" in str(layer)
    with pytest.raises(ValueError, match="without ReLU"):
        layer.to_conv()


def test_weights_outside_the_pattern_are_not_dropped_silently():
    conv = nn.Conv2d(2, 3, 3)
    with pytest.raises(ValueError, match="only zeros outside"):
        ColumnSparseConv2d.from_conv(conv, rows=[0, 1])


BROKEN = {
    "descending": ({"rows": torch.tensor([2, 1])}, "ascending"),
    "repeated": ({"columns": torch.tensor([1, 1, 2])}, "ascending"),
    "negative": ({"rows": torch.tensor([-1, 2])}, "ascending"),
    "too_large": ({"columns": torch.tensor([0, 1, 99])}, "ascending"),
    "too_few_values": ({"values": torch.zeros(5)}, "flat `values`"),
    "three_dimensions": ({"x": torch.zeros(2, 5, 5)}, r"expected an input \(N"),
    "small_image": ({"x": torch.zeros(1, 2, 1, 5)}, "larger image or padding"),
    "bias_of_kept_rows": ({"bias": torch.zeros(2)}, r"`bias` of shape \(3,\)"),
    "groups": ({"groups": 2}, "`groups` to divide"),
    "stride": ({"stride": 0}, "`stride` >= 1"),
    "implementation": ({"implementation": "compild"}, "Did you mean compiled"),
}


@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("name", BROKEN)
def test_wrong_arguments(name, implementation):
    good = {
        "x": torch.zeros(1, 2, 5, 5),
        "values": torch.zeros(6),
        "bias": None,
        "rows": torch.tensor([0, 2]),
        "columns": torch.tensor([0, 3, 7]),
        "out_channels": 3,
        "kernel_size": 2,
        "implementation": implementation,
    }
    broken, message = BROKEN[name]
    column_sparse_conv2d(**good)
    with pytest.raises(ValueError, match=message):
        column_sparse_conv2d(**{**good, **broken})


@needs_compiled
def test_mixed_types_are_refused():
    case = make_case(*GEOMETRIES["pointwise"])
    case.values = case.values.bfloat16()
    with pytest.raises(ValueError, match="all in float32 or all in bfloat16"):
        case.sparse()


@pytest.fixture
def without_compiled(monkeypatch, tmp_path):
    """Pretend that the library was not built."""
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
    compiled.library.cache_clear()
    yield tmp_path
    compiled.library.cache_clear()


def test_without_a_compiler_everything_works_and_it_is_said_once(without_compiled, caplog):
    case = make_case(*GEOMETRIES["alexnet_conv2"])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert_near(case.sparse(), case.dense(), torch.float32)
    assert len(caplog.records) == 1
    assert "install a C compiler" in caplog.text.replace("Install", "install")
    assert instruction_set() == "none"
    with pytest.raises(RuntimeError, match="was not built"):
        case.sparse("compiled")


def test_a_library_of_other_sources_is_not_used(without_compiled, caplog):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    source = without_compiled / "other.c"
    source.write_text("long long ssl_interface(void) { return -1; }\n")
    target = without_compiled / "_column_sparse.abi3.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", target, source], check=True)
    case = make_case(*GEOMETRIES["pointwise"])
    assert_near(case.sparse(), case.dense(), torch.float32)
    assert "built from other sources" in caplog.text


def test_counters_see_the_layer_in_inference_mode_too():
    case = make_case(*GEOMETRIES["alexnet_conv2"])
    layer = ColumnSparseConv2d.from_conv(case.conv())
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        layer(case.x)
    assert counter.get_total_flops() == 2 * case.values.numel() * 27 * 27
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert layer(case.x).dtype == torch.bfloat16


def test_swapped_and_parametrised_tensors_are_used():
    case = make_case(*GEOMETRIES["alexnet_conv2"])
    layer = ColumnSparseConv2d.from_conv(case.conv())

    class Zero(nn.Module):
        def forward(self, bias: Tensor) -> Tensor:
            return 0 * bias

    before = layer(case.x)
    swapped = torch.func.functional_call(
        layer, {"values": -case.values, "bias": -case.bias}, case.x
    )
    torch.testing.assert_close(swapped, -before)
    register_parametrization(layer, "bias", Zero())
    torch.testing.assert_close(layer(case.x), before - case.bias[:, None, None])
