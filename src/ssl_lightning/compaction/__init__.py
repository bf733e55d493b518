"""From a network with zero groups to a smaller one that computes the same function."""

from ssl_lightning.compaction.expanding import expand
from ssl_lightning.compaction.factors import Factors
from ssl_lightning.compaction.inference import for_inference
from ssl_lightning.compaction.modules import zero_like_layer
from ssl_lightning.compaction.plan import Plan
from ssl_lightning.compaction.planning import (
    apply_plan,
    carried_out,
    compact,
    make_plan,
    plan_and_compact,
)
from ssl_lightning.compaction.sparse import choose_layers
from ssl_lightning.compaction.state import check_sliceable, slice_optimizer_, slice_tensors
from ssl_lightning.compaction.store import load_compact, save_compact

__all__ = [
    "Factors",
    "Plan",
    "apply_plan",
    "carried_out",
    "check_sliceable",
    "choose_layers",
    "compact",
    "expand",
    "for_inference",
    "load_compact",
    "make_plan",
    "plan_and_compact",
    "save_compact",
    "slice_optimizer_",
    "slice_tensors",
    "zero_like_layer",
]
