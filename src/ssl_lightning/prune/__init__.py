"""Zeroing groups of a network in place, without training, and what that would cost."""

from ssl_lightning.measure.sensitivity_record import Rises, Sensitivity, SensitivityRow
from ssl_lightning.prune.budget import Choice, UnreachableError, choose_groups
from ssl_lightning.prune.importance import IMPORTANCES
from ssl_lightning.prune.layerwise import SHARES, measure_rises, sensitivity
from ssl_lightning.prune.like import prune_like_
from ssl_lightning.prune.one_shot import PruneReport, prune_
from ssl_lightning.prune.ranking import ranking, relative
from ssl_lightning.prune.scores import Scores
from ssl_lightning.prune.taylor import taylor

__all__ = [
    "IMPORTANCES",
    "SHARES",
    "Choice",
    "PruneReport",
    "Rises",
    "Scores",
    "Sensitivity",
    "SensitivityRow",
    "UnreachableError",
    "choose_groups",
    "measure_rises",
    "prune_",
    "prune_like_",
    "ranking",
    "relative",
    "sensitivity",
    "taylor",
]
