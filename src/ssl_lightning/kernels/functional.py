"""One signature over all implementations."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lightning.kernels import compiled, gpu, operator, reference
from ssl_lightning.kernels.geometry import Geometry, check_pattern
from ssl_lightning.suggest import pick

IMPLEMENTATIONS = {
    "reference": reference.convolve,
    "compiled": compiled.convolve,
    "triton": gpu.convolve,
}
"""Name -> function; each takes (x, values, bias, rows, columns, geometry, relu)."""


def column_sparse_conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    *,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    relu: bool = False,
    implementation: str = "auto",
) -> Tensor:
    r"""Convolve with a weight that retains only some filters and filter-shape columns.

    .. math:: y_{n,r,p} = b_r + \sum_{k} v_{r,k} \, \mathrm{lowered}(x)_{n,k,p}

    with the sum over the retained columns of the filter's conv-group; a removed filter gives its
    bias everywhere. It is what ``conv2d`` computes with zeros elsewhere in the weight, except
    that a zero times an infinity or NaN of the input is omitted instead of spreading NaN.

    Args:
        x: ``(N, C, H, W)``, any strides; float32 or bfloat16 for the compiled kernel, any floating
            type for the others.
        values: flat: the ``(retained rows, retained columns)`` blocks of the conv-groups, one
            behind the other.
        bias: ``(out_channels,)`` or None.
        rows: retained filters, ascending, int64; numbered over all conv-groups.
        columns: retained columns, ascending, int64: ``(c * kernel_height + y) * kernel_width + x``
            with ``c`` over all input channels.
        out_channels: filters, retained or removed.
        kernel_size: height and width.
        stride: step between windows.
        padding: zeros at each side.
        dilation: step between kernel positions.
        groups: conv-groups; each may retain other numbers of rows and columns.
        relu: put zero in the place of what is negative in the output.
        implementation: ``"auto"`` calls the operator that torch.compile and torch.export see (the
            compiled kernel on the CPU, Triton on CUDA, plain torch where there is none);
            ``"reference"``, ``"compiled"`` and ``"triton"`` name one. Gradients: "auto" (once) and
            "reference" (to any order).

    Returns:
        ``(N, out_channels, H', W')``, contiguous.

    Raises:
        ValueError: if shapes, indices or types do not fit each other.
        RuntimeError: if the implementation asked for is not there.

    Reference:
        Wen et al., Learning Structured Sparsity in Deep Neural Networks, NIPS 2016: row and column
        sparsity together shrink the lowered product in both dimensions.

    Example:
        >>> import torch
        >>> x = torch.arange(9.0).view(1, 1, 3, 3)
        >>> values, rows, columns = map(torch.tensor, ([1.0, 10.0], [1], [0, 3]))
        >>> column_sparse_conv2d(x, values, None, rows, columns, out_channels=2, kernel_size=2)
        tensor([[[[ 0.,  0.],
                  [ 0.,  0.]],
        <BLANKLINE>
                 [[40., 51.],
                  [73., 84.]]]])
    """
    in_channels = x.shape[1] if x.dim() == 4 else groups
    geometry = Geometry.of(
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups
    )
    geometry.check_input(x.shape)
    check_bias(bias, out_channels)
    if implementation == "auto":
        return call_operator(x, values, bias, rows, columns, geometry, relu)
    convolve = pick("implementation", implementation, IMPLEMENTATIONS)
    if convolve is not compiled.convolve:  # which checks by itself, in no time
        check_pattern(geometry, values, rows, columns)
    return convolve(x, values, bias, rows, columns, geometry, relu)


def call_operator(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    g: Geometry,
    relu: bool = False,
) -> Tensor:
    """Call the registered operator, or what it would call where nobody watches."""
    if is_plain(x):
        return compiled.convolve(x, values, bias, rows, columns, g, relu)
    output: Tensor = operator.column_sparse_conv2d(
        x,
        values,
        bias,
        rows,
        columns,
        g.out_channels,
        g.kernel_size,
        g.stride,
        g.padding,
        g.dilation,
        g.groups,
        relu,
    )
    return output


def is_plain(x: Tensor) -> bool:
    """Whether the dispatcher would do nothing but pass the call on to a compiled kernel.

    So it is in inference mode outside of tracing, autocast, function transforms and dispatch modes
    (which count operations, for example). Passing on takes five microseconds of the eighty that a
    small layer needs.
    """
    return (
        not torch.compiler.is_compiling()
        and torch.is_inference_mode_enabled()
        and type(x) is Tensor
        and x.is_cpu
        and x.dtype in compiled.DTYPES
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and compiled.is_available()
    )


def check_bias(bias: Tensor | None, out_channels: int) -> None:
    """Reject a bias that does not have one number per filter.

    Raises:
        ValueError: naming its shape.
    """
    if bias is not None and bias.shape != (out_channels,):
        raise ValueError(
            f"column_sparse_conv2d: expected a `bias` of shape ({out_channels},), got "
            f"{tuple(bias.shape)}. Give one number per filter, retained or removed."
        )
