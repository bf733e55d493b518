"""Zeroing groups of a network in place, without training."""

from ssl_lightning.prune.budget import Choice, UnreachableError, choose_groups
from ssl_lightning.prune.importance import IMPORTANCES
from ssl_lightning.prune.like import prune_like_
from ssl_lightning.prune.one_shot import PruneReport, prune_
from ssl_lightning.prune.ranking import ranking, relative

__all__ = [
    "IMPORTANCES",
    "Choice",
    "PruneReport",
    "UnreachableError",
    "choose_groups",
    "prune_",
    "prune_like_",
    "ranking",
    "relative",
]
