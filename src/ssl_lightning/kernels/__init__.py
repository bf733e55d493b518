"""Column-sparse convolution, in plain torch, compiled for the CPU and in Triton with one signature.

Beside it, what stands between convolutions: max pooling with ReLU and response normalisation.
"""

from ssl_lightning.kernels.between import local_response_norm, max_pool2d
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
    "local_response_norm",
    "max_pool2d",
    "workspace_bytes",
]
