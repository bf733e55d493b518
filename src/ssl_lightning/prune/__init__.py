"""Zeroing groups of a network in place, without training."""

from ssl_lightning.prune.budget import search
from ssl_lightning.prune.importance import IMPORTANCES
from ssl_lightning.prune.like import prune_like_
from ssl_lightning.prune.one_shot import PruneReport, prune_

__all__ = ["IMPORTANCES", "PruneReport", "prune_", "prune_like_", "search"]
