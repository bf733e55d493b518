"""From a network with zero groups to a smaller one that computes the same function."""

from ssl_lightning.compaction.modules import zero_like_layer
from ssl_lightning.compaction.plan import Plan
from ssl_lightning.compaction.planning import apply_plan, compact, make_plan
from ssl_lightning.compaction.sparse import choose_layers
from ssl_lightning.compaction.store import load_compact, save_compact

__all__ = [
    "Plan",
    "apply_plan",
    "choose_layers",
    "compact",
    "load_compact",
    "make_plan",
    "save_compact",
    "zero_like_layer",
]
