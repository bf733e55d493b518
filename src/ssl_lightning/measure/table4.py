"""The paper's Table 4 as data. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

LAYERS = {"conv1": 227, "conv2": 27, "conv3": 13, "conv4": 13, "conv5": 13}
"""Convolution of AlexNet (CaffeNet geometry) -> width of its input."""


@dataclass(frozen=True)
class Configuration:
    """One row of the paper's Table 4: sparsities in percent and CPU speed-ups, conv1 .. conv5."""

    form: str
    rows: tuple[float, ...]
    columns: tuple[float, ...]  # of single weights for "csr"
    speedups: tuple[float, ...]


_NONE = (0.0,) * 5
TABLE4 = {
    1: Configuration("csr", _NONE, (67.6, 92.4, 97.2, 96.6, 94.3), (0.80, 2.91, 4.84, 3.83, 2.76)),
    2: Configuration(
        "columns",
        (9.4, 12.9, 40.6, 46.9, 0.0),
        (0.0, 63.2, 76.9, 84.7, 80.7),
        (1.05, 3.37, 6.27, 9.73, 4.93),
    ),
    4: Configuration("csr", _NONE, (14.7, 76.2, 85.3, 81.5, 76.3), (0.34, 0.99, 1.30, 1.10, 0.93)),
    5: Configuration(
        "columns", _NONE, (0.0, 20.9, 39.7, 39.7, 24.6), (1.00, 1.27, 1.64, 1.68, 1.32)
    ),
}
"""Wen et al., NIPS 2016, Table 4: 1 and 4 are l1, 2 and 5 are SSL; 3, a pruning, has no timings."""
