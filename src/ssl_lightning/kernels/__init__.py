"""Column-sparse convolution: plain torch, a compiled CPU kernel and Triton, with one signature."""

from ssl_lightning.kernels.compiled import instruction_set
from ssl_lightning.kernels.functional import IMPLEMENTATIONS, column_sparse_conv2d
from ssl_lightning.kernels.geometry import Geometry
from ssl_lightning.kernels.layer import ColumnSparseConv2d, workspace_bytes

__all__ = [
    "IMPLEMENTATIONS",
    "ColumnSparseConv2d",
    "Geometry",
    "column_sparse_conv2d",
    "instruction_set",
    "workspace_bytes",
]
