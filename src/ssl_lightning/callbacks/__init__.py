"""Callbacks: when to prune, to collapse, to report and to compact."""

from lightning.pytorch.callbacks import Callback

from ssl_lightning.callbacks.budget import Budget
from ssl_lightning.callbacks.compact import SaveCompact
from ssl_lightning.callbacks.control import PruneLike
from ssl_lightning.callbacks.depth import DepthCollapse
from ssl_lightning.callbacks.distill import Distill
from ssl_lightning.callbacks.during_fit import CompactDuringFit
from ssl_lightning.callbacks.low_rank import LowRank
from ssl_lightning.callbacks.monitor import FilterPictures, SparsityMonitor
from ssl_lightning.callbacks.norms import NormPictures
from ssl_lightning.callbacks.pruning import ThresholdPruning
from ssl_lightning.callbacks.sparsify import Sparsify

CALLBACKS: dict[str, type[Callback]] = {
    cls.__name__: cls
    for cls in (
        Budget,
        ThresholdPruning,
        DepthCollapse,
        CompactDuringFit,
        LowRank,
        PruneLike,
        SparsityMonitor,
        FilterPictures,
        NormPictures,
        SaveCompact,
        Sparsify,
        Distill,
    )
}

__all__ = [
    "CALLBACKS",
    "Budget",
    "CompactDuringFit",
    "DepthCollapse",
    "Distill",
    "FilterPictures",
    "LowRank",
    "NormPictures",
    "PruneLike",
    "SaveCompact",
    "Sparsify",
    "SparsityMonitor",
    "ThresholdPruning",
]
