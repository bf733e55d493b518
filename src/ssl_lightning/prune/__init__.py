"""Zeroing groups of a network in place, without training."""

from ssl_lightning.prune.like import prune_like_
from ssl_lightning.prune.one_shot import IMPORTANCES, PruneReport, prune_, search

__all__ = ["IMPORTANCES", "PruneReport", "prune_", "prune_like_", "search"]
