"""The compiled CPU kernels: a plain C library, found beside this file and called through ctypes."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from struct import Struct

import torch
from torch import Tensor

from ssl_lightning.kernels.geometry import (
    Geometry,
    Pair,
    count_problem,
    index_problem,
    positions_problem,
)
from ssl_lightning.suggest import pick

DTYPES = (torch.float32, torch.bfloat16)
LEVELS = {"base": 0, "avx2": 1, "avx512": 2, "avx512_bf16": 3}
"""Instruction sets, by the most that may be used; what the processor lacks is never used."""

_INTERFACE = 3  # as in native/column_sparse.c
_PROBLEM = Struct("25q")  # the fields of Problem in native/column_sparse.h
_POOL = Struct("17q")  # of Pool in native/between.h
_RESPONSE_NORM = Struct("7q3d")  # of ResponseNorm there
MIN_PIXELS = 16
"""Of :func:`local_response_norm`: one vector of the widest kernel."""

_MESSAGE = (
    "ssl_lightning: the compiled convolution kernel is not there (%s). Column-sparse layers run in "
    "plain torch, correct but slow. Install a C compiler (gcc or clang) and install ssl-lightning "
    "again to build it."
)


@cache
def library() -> ctypes.CDLL | None:
    """Return the loaded library; None, saying why once, where there is none."""
    found = sorted(Path(__file__).parent.glob("_column_sparse*.so"))
    if not found:
        logging.getLogger(__name__).warning(_MESSAGE, "it was not built")
        return None
    try:
        native = ctypes.CDLL(str(found[-1]))
        native.ssl_interface.restype = ctypes.c_int64
        if native.ssl_interface() != _INTERFACE:
            raise OSError("it was built from other sources")
    except (OSError, AttributeError) as error:
        logging.getLogger(__name__).warning(_MESSAGE, error)
        return None
    native.ssl_column_sparse_conv2d.argtypes = [ctypes.c_void_p] * 7
    native.ssl_max_pool2d.argtypes = [ctypes.c_void_p] * 3
    native.ssl_response_norm.argtypes = [ctypes.c_void_p] * 4
    native.ssl_workspace_bytes.argtypes = [ctypes.c_void_p] * 3
    native.ssl_workspace_bytes.restype = ctypes.c_int64
    native.ssl_instruction_set.argtypes = [ctypes.c_int64] * 2
    native.ssl_instruction_set.restype = ctypes.c_char_p
    return native


def is_available() -> bool:
    """Whether the compiled kernel can be used."""
    return library() is not None


def instruction_set(dtype: torch.dtype = torch.float32, level: int | None = None) -> str:
    """Return the instruction set that is used, ``"none"`` without the compiled kernel."""
    native = library()
    if native is None:
        return "none"
    name: bytes = native.ssl_instruction_set(
        _level() if level is None else level, dtype == torch.bfloat16
    )
    return name.decode()


@cache
def _level() -> int:
    """Return the most that may be used: ``SSL_INSTRUCTION_SET`` if it is set, else anything."""
    name = os.environ.get("SSL_INSTRUCTION_SET")
    return max(LEVELS.values()) if not name else pick("instruction set", name, LEVELS)


def convolve(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    geometry: Geometry,
    relu: bool = False,
    *,
    level: int | None = None,
) -> Tensor:
    """Lower tile by tile and multiply at once, on ``torch.get_num_threads()`` threads.

    Args:
        x: ``(N, C, H, W)`` on the CPU, of any strides.
        values: as in :func:`ssl_lightning.kernels.column_sparse_conv2d`, like all others.
        bias: of the same type.
        rows: retained filters.
        columns: retained columns.
        geometry: sizes and steps.
        relu: put zero in the place of what is negative.
        level: the most of :data:`LEVELS` that may be used; None takes the best.

    Raises:
        ValueError: if the indices or the number of values are wrong, or the types are.
        MemoryError: if there is no memory for the panels.
        RuntimeError: without the compiled kernel.
    """
    native = _present()
    _check_types(x, values, bias)
    output = x.new_empty(
        (x.shape[0], geometry.out_channels, *geometry.output_size(x.shape[2], x.shape[3]))
    )
    if not output.numel():
        return output
    values, rows, columns = values.contiguous(), rows.contiguous(), columns.contiguous()
    bias = None if bias is None else bias.contiguous()
    problem = _problem(
        x, values, rows, columns, geometry, relu, _level() if level is None else level
    )
    error = native.ssl_column_sparse_conv2d(
        problem,
        x.data_ptr(),
        values.data_ptr(),
        None if bias is None else bias.data_ptr(),
        rows.data_ptr(),
        columns.data_ptr(),
        output.data_ptr(),
    )
    if error:
        _fail(error, values, geometry)
    return output


def max_pool2d(
    x: Tensor, out_size: Pair, window: Sequence[int], relu: bool, *, level: int | None = None
) -> Tensor:
    """Pool the last two dimensions, on ``torch.get_num_threads()`` threads.

    Args:
        x: on the CPU, float32 or bfloat16, not empty.
        out_size: height and width of the output.
        window: kernel, stride, padding and dilation, each for both dimensions.
        relu: put zero in the place of what is negative.
        level: as in :func:`convolve`.

    Raises:
        MemoryError: if there is no memory for two lines.
    """
    native = _present()
    x = x.contiguous()
    height, width = x.shape[-2:]
    output = x.new_empty((*x.shape[:-2], *out_size))
    problem = _POOL.pack(
        x.numel() // (height * width), height, width, *out_size, *window, relu, *_how(x, level)
    )
    if native.ssl_max_pool2d(problem, x.data_ptr(), output.data_ptr()):
        raise MemoryError("max_pool2d: no memory for two lines. Use smaller images.")
    return output


def local_response_norm(
    x: Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    positions: Tensor | None = None,
    *,
    level: int | None = None,
) -> Tensor:
    """Normalise across channels, on ``torch.get_num_threads()`` threads.

    Args:
        x: ``(N, C, ...)`` on the CPU, float32 or bfloat16, not empty, of at least
            :data:`MIN_PIXELS` pixels.
        size: channels of a window.
        alpha: of the mean of the squares.
        beta: exponent.
        k: is added.
        positions: of the channels among those that windows count, int64; None if all are there.
        level: as in :func:`convolve`.

    Raises:
        ValueError: if positions do not ascend.
        RuntimeError: without the compiled kernel.
    """
    native = _present()
    x, positions = x.contiguous(), None if positions is None else positions.contiguous()
    output = torch.empty_like(x)
    batch, channels = x.shape[:2]
    pixels = x.numel() // (batch * channels)
    problem = _RESPONSE_NORM.pack(
        batch, channels, pixels, size, *_how(x, level), alpha / size, beta, k
    )
    where = None if positions is None else positions.data_ptr()
    if native.ssl_response_norm(problem, where, x.data_ptr(), output.data_ptr()):
        raise ValueError(positions_problem(channels))
    return output


def _how(x: Tensor, level: int | None) -> tuple[bool, int, int]:
    """Return the last fields of each problem."""
    level = _level() if level is None else level
    return x.dtype == torch.bfloat16, torch.get_num_threads(), level


def _present() -> ctypes.CDLL:
    """Return the library.

    Raises:
        RuntimeError: if it was not built.
    """
    native = library()
    if native is None:
        raise RuntimeError(
            "column_sparse_conv2d: the compiled kernel was not built. Use "
            'implementation="reference", or install a C compiler and install ssl-lightning again.'
        )
    return native


def workspace_bytes(x: Tensor, values: Tensor, rows: Tensor, columns: Tensor, g: Geometry) -> int:
    """Return the bytes that one call holds beside input, weights and output, on all its threads."""
    native = library()
    if native is None:
        return 0
    rows, columns = rows.contiguous(), columns.contiguous()
    problem = _problem(x, values, rows, columns, g, False, _level())
    return int(native.ssl_workspace_bytes(problem, rows.data_ptr(), columns.data_ptr()))


def _problem(
    x: Tensor, values: Tensor, rows: Tensor, columns: Tensor, g: Geometry, relu: bool, level: int
) -> bytes:
    return _PROBLEM.pack(
        *x.shape,
        *x.stride(),
        *g.sizes,
        rows.numel(),
        columns.numel(),
        values.numel(),
        relu,
        *_how(x, level),
    )


def _check_types(x: Tensor, values: Tensor, bias: Tensor | None) -> None:
    dtype = x.dtype
    same = values.dtype == dtype and (bias is None or bias.dtype == dtype)
    if not same or dtype not in DTYPES:
        types = {t.dtype for t in (x, values, bias) if t is not None}
        raise ValueError(
            "column_sparse_conv2d: expected input, values and bias all in float32 or all in "
            f"bfloat16, got {sorted(map(str, types))}. Convert them with `.to(x.dtype)`."
        )


def _fail(error: int, values: Tensor, geometry: Geometry) -> None:
    """Raise what an error number of the library means."""
    if error == 1:
        raise MemoryError("column_sparse_conv2d: no memory for the panels. Use a smaller batch.")
    if error == 2:
        bound = max(geometry.out_channels, geometry.num_columns)
        raise ValueError(index_problem("rows` and `columns", bound))
    raise ValueError(count_problem(values))
