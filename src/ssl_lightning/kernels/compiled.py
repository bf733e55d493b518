"""The compiled CPU kernel: a plain C library, found beside this file and called through ctypes."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path
from struct import Struct

import torch
from torch import Tensor

from ssl_lightning.kernels.geometry import Geometry, count_problem, index_problem
from ssl_lightning.suggest import pick

DTYPES = (torch.float32, torch.bfloat16)
LEVELS = {"base": 0, "avx2": 1, "avx512": 2, "avx512_bf16": 3}
"""Instruction sets, by the most that may be used; what the processor lacks is never used."""

_INTERFACE = 1  # as in native/column_sparse.c
_PROBLEM = Struct("24q")  # the fields of Problem in native/column_sparse.h
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
    *,
    level: int | None = None,
) -> Tensor:
    """Lower tile by tile and multiply at once, on ``torch.get_num_threads()`` threads.

    Args:
        x: ``(N, C, H, W)`` on the CPU, of any strides.
        values: as in :func:`ssl_lightning.kernels.column_sparse_conv2d`, like all others.
        bias: of the same type.
        rows: kept filters.
        columns: kept columns.
        geometry: sizes and steps.
        level: the most of :data:`LEVELS` that may be used; None takes the best.

    Raises:
        ValueError: if the indices or the number of values are wrong, or the types are.
        MemoryError: if there is no memory for the panels.
        RuntimeError: without the compiled kernel.
    """
    native = library()
    if native is None:
        raise RuntimeError(
            "column_sparse_conv2d: the compiled kernel was not built. Use "
            'implementation="reference", or install a C compiler and install ssl-lightning again.'
        )
    _check_types(x, values, bias)
    output = x.new_empty(
        (x.shape[0], geometry.out_channels, *geometry.output_size(x.shape[2], x.shape[3]))
    )
    if not output.numel():
        return output
    values, rows, columns = values.contiguous(), rows.contiguous(), columns.contiguous()
    bias = None if bias is None else bias.contiguous()
    problem = _problem(x, values, rows, columns, geometry, _level() if level is None else level)
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


def workspace_bytes(x: Tensor, values: Tensor, rows: Tensor, columns: Tensor, g: Geometry) -> int:
    """Return the bytes that one call holds beside input, weights and output, on all its threads."""
    native = library()
    if native is None:
        return 0
    rows, columns = rows.contiguous(), columns.contiguous()
    problem = _problem(x, values, rows, columns, g, _level())
    return int(native.ssl_workspace_bytes(problem, rows.data_ptr(), columns.data_ptr()))


def _problem(
    x: Tensor, values: Tensor, rows: Tensor, columns: Tensor, g: Geometry, level: int
) -> bytes:
    return _PROBLEM.pack(
        *x.shape,
        *x.stride(),
        *g.sizes,
        rows.numel(),
        columns.numel(),
        values.numel(),
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
        level,
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
