"""Max pooling and response normalisation equal torch's, at every instruction set."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_lightning.kernels import compiled, local_response_norm, max_pool2d
from ssl_lightning.kernels.between import _pooled_size
from test_kernels import LAYOUTS, needs_compiled, without_compiled  # noqa: F401 - a fixture

DTYPES = [torch.float32, torch.bfloat16]
ODD = [torch.nan, torch.inf, -torch.inf, -0.0]


def draw_image(draw: st.DrawFn, least: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Draw an image of some layout, with some odd numbers in it."""
    height, width = (
        draw(st.integers(size, size + draw(st.sampled_from([4, 40])))) for size in least
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    shape = (draw(st.sampled_from([0, 1, 1, 3])), draw(st.integers(1, 7)), height, width)
    x = torch.randn(shape, generator=generator).to(dtype)
    if x.numel():
        for value in draw(st.lists(st.sampled_from(ODD), max_size=3)):
            x.view(-1)[draw(st.integers(0, x.numel() - 1))] = value
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](x)


@st.composite
def poolings(draw: st.DrawFn) -> tuple[Tensor, dict]:
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
    kernel, dilation = draw(pair), draw(pair)
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    arguments = {
        "kernel_size": kernel,
        "stride": draw(st.one_of(st.none(), pair, st.sampled_from([1, 2, 3, 4]))),
        "padding": padding,
        "dilation": dilation,
        "ceil_mode": draw(st.booleans()),
    }
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = tuple(max(1, r - 2 * p) for r, p in zip(reach, padding, strict=True))
    return draw_image(draw, least, draw(st.sampled_from(DTYPES))), arguments


def expected_pool(x: Tensor, arguments: dict, relu: bool) -> Tensor:
    pooled = F.max_pool2d(x, **arguments)
    return pooled.relu() if relu else pooled


def pool_at(level: int, x: Tensor, arguments: dict, relu: bool) -> Tensor:
    """Call the compiled kernel itself."""
    pairs = [arguments[name] for name in ("kernel_size", "stride", "padding", "dilation")]
    pairs[1] = pairs[1] or pairs[0]
    window = [n for p in pairs for n in ((p, p) if isinstance(p, int) else p)]
    size = _pooled_size(*x.shape[-2:], *window, arguments["ceil_mode"])
    assert size is not None
    return compiled.max_pool2d(x, size, window, relu, level=level)


@settings(max_examples=300, deadline=None)
@given(poolings(), st.booleans())
def test_pooling_equals_torch(case, relu):
    x, arguments = case
    expected = expected_pool(x, arguments, relu)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output = max_pool2d(x, **arguments, relu=relu)
        assert output.is_contiguous()
        torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)


@needs_compiled
@settings(max_examples=300, deadline=None)
@given(poolings(), st.booleans(), st.sampled_from(sorted(compiled.LEVELS.values())))
def test_compiled_pooling_equals_torch(case, relu, level):
    x, arguments = case
    if x.numel():
        expected = expected_pool(x, arguments, relu)
        output = pool_at(level, x, arguments, relu)
        torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "arguments",
    [{"kernel_size": 3, "padding": 2}, {"kernel_size": 9}, {"kernel_size": 2, "stride": (0, 1)}],
)
def test_pooling_refuses_what_torch_refuses(arguments):
    x = torch.zeros(1, 1, 5, 5)
    with pytest.raises(RuntimeError):
        F.max_pool2d(x, **arguments)
    with torch.inference_mode(), pytest.raises(RuntimeError):
        max_pool2d(x, **arguments)


@st.composite
def normalisations(draw: st.DrawFn) -> tuple[Tensor, tuple]:
    x = draw_image(draw, (4, 4), draw(st.sampled_from(DTYPES)))
    size, alpha = draw(st.integers(1, 9)), draw(st.sampled_from([1e-4, 0.5, 2.0]))
    beta = draw(st.sampled_from([0.75, 0.75, 0.5, 1.0, 0.3]))
    positions = None
    if draw(st.booleans()):  # of channels between which others were removed
        gaps = draw(st.lists(st.integers(1, 4), min_size=x.shape[1], max_size=x.shape[1]))
        positions = torch.tensor(gaps, dtype=torch.int64).cumsum(0) - 1
    return x, (size, alpha, beta, draw(st.sampled_from([0.0, 1.0, 2.0])), positions)


def assert_normalised(output: Tensor, x: Tensor, arguments: tuple) -> None:
    """Compare with torch in float64: torch itself rounds bfloat16 at each step."""
    *settings, positions = arguments
    wide = x.double()
    if positions is not None and len(positions):
        wide = torch.zeros(len(x), int(positions[-1]) + 1, *x.shape[2:], dtype=torch.float64)
        wide[:, positions] = x.double()
    expected = F.local_response_norm(wide, *settings)
    expected = expected if positions is None else expected[:, positions]
    tolerance = 1e-5 if x.dtype == torch.float32 else 1e-2
    assert output.dtype == x.dtype
    torch.testing.assert_close(
        output.double(), expected, rtol=tolerance, atol=tolerance / 10, equal_nan=True
    )


@settings(max_examples=150, deadline=None)
@given(normalisations())
def test_response_norm_equals_torch(case):
    x, arguments = case
    with torch.inference_mode():
        output = local_response_norm(x, *arguments)
    assert output.is_contiguous()
    assert_normalised(output, x, arguments)


@needs_compiled
@settings(max_examples=300, deadline=None)
@given(normalisations(), st.sampled_from(sorted(compiled.LEVELS.values())))
def test_compiled_response_norm_equals_torch(case, level):
    x, arguments = case
    if x.numel():
        assert_normalised(compiled.local_response_norm(x, *arguments, level=level), x, arguments)


@needs_compiled
@pytest.mark.parametrize("threads", [1, 3])
def test_large_images_are_shared_by_threads(threads):
    before = torch.get_num_threads()
    x = torch.randn(2, 96, 57, 55)
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            assert torch.equal(max_pool2d(x, 3, 2), F.max_pool2d(x, 3, 2))
            assert_normalised(local_response_norm(x, 5), x, (5, 1e-4, 0.75, 1.0, None))
    finally:
        torch.set_num_threads(before)


FUNCTIONS = {
    "pool": (lambda x: max_pool2d(x, 3, 2, relu=True), lambda x: F.max_pool2d(x.relu(), 3, 2)),
    "norm": (lambda x: local_response_norm(x, 3), lambda x: F.local_response_norm(x, 3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_types_images_and_gradients_are_torchs(name):
    fast, plain = FUNCTIONS[name]
    for x in (torch.randn(2, 4, 9, 9, dtype=torch.float64), torch.randn(2, 4, 3, 3)):
        with torch.no_grad():
            torch.testing.assert_close(fast(x), plain(x))
    x, y = (torch.ones(2, 4, 9, 9).cumsum(3).requires_grad_() for _ in range(2))
    fast(x).sum().backward()
    plain(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_without_a_compiler_torch_runs(name, without_compiled):  # noqa: F811
    fast, plain = FUNCTIONS[name]
    x = torch.randn(1, 3, 20, 20)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), plain(x))


@pytest.mark.filterwarnings("ignore")  # inductor's own
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compile_and_export_keep_the_operator(name):
    fast, plain = FUNCTIONS[name]

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return fast(x)

    x = torch.randn(2, 4, 9, 12)
    with torch.no_grad():
        compiled_ = torch.compile(Module(), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled_(x), plain(x))
        batch = torch.export.Dim.DYNAMIC
        program = torch.export.export(Module(), (x,), dynamic_shapes=({0: batch},))
    targets = {str(node.target) for node in program.graph.nodes}
    assert targets & {
        "ssl_lightning.max_pool2d.default",
        "ssl_lightning.local_response_norm.default",
    }
    torch.testing.assert_close(
        program.module()(x[:1].repeat(3, 1, 1, 1)), plain(x[:1].repeat(3, 1, 1, 1))
    )


def test_operators_pass_torchs_own_checks():
    x = torch.randn(2, 4, 9, 12)
    for arguments in (
        ((3, 3), (2, 2), (1, 1), (1, 1), True, True),
        ((2, 2), (1, 1), (0, 0), (2, 1), False, False),
    ):
        torch.library.opcheck(torch.ops.ssl_lightning.max_pool2d.default, (x, *arguments))
    torch.library.opcheck(
        torch.ops.ssl_lightning.local_response_norm.default, (x, 5, 1e-4, 0.75, 1.0, None)
    )
    torch.library.opcheck(
        torch.ops.ssl_lightning.local_response_norm.default,
        (x, 5, 1e-4, 0.75, 1.0, torch.tensor([0, 2, 3, 9])),
    )
    for wrong in ([0, 2, 2, 9], [-1, 2, 3, 9], [0, 2, 3], [0.0, 2.0, 3.0, 9.0]):
        with torch.inference_mode(), pytest.raises(ValueError, match="ascending int64 numbers"):
            local_response_norm(x, 5, positions=torch.tensor(wrong))
