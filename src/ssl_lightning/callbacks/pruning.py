"""ThresholdPruning: zero the groups whose norm is small, and keep them at zero."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from ssl_lightning.callbacks.when import EpochStartCallback, Occasions, require_module
from ssl_lightning.groups import GroupSet, group_norms


class ThresholdPruning(EpochStartCallback):
    """At the start of chosen epochs, zero every penalised group whose norm is at most a threshold.

    With ``lock`` the groups stay exactly zero from then on: this is the step between the paper's
    sparse stage and its fine-tuning stage. Bias and batch-norm scale and shift of a zeroed filter
    are zeroed too, so that the layer's output is exactly zero.

    Args:
        start: first epoch (counted from 0) at whose start to prune.
        every_n_epochs: prune again every so many epochs; 0 prunes once.
        threshold: largest norm to zero. 0 takes only the groups that are zero already.
        relative: measure the threshold in units of the largest group norm of the same layer and
            kind, instead of absolutely.
        kinds: kinds of group to prune; None takes all that are penalised.
        layers: glob or globs on the layers to prune.
        lock: keep the zeroed groups at zero.

    Raises:
        ValueError: for a negative threshold or occasion, or a start after the last epoch.

    Example:
        >>> ThresholdPruning(start=20, threshold=1e-3, relative=True).occasions.at(20)
        True
    """

    def __init__(
        self,
        start: int,
        every_n_epochs: int = 0,
        threshold: float = 0.0,
        relative: bool = False,
        kinds: list[str] | None = None,
        layers: str | list[str] = "*",
        lock: bool = True,
    ) -> None:
        if not threshold >= 0:
            raise ValueError(
                f"ThresholdPruning: expected a threshold >= 0, got {threshold}. It is a group norm "
                "(or, if relative, a fraction of the largest), not a strength."
            )
        self.occasions = Occasions("ThresholdPruning", start, every_n_epochs)
        self.threshold = threshold
        self.relative = relative
        self.kinds = kinds
        self.layers: Sequence[str] = [layers] if isinstance(layers, str) else layers
        self.lock = lock

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reject settings that would never prune anything."""
        module = require_module(pl_module, self)
        self.occasions.check(trainer)
        if not self.chosen(module.regularizer.group_sets) and not module.plans:
            known = ", ".join(s.name for s in module.regularizer.group_sets) or "none"
            raise ValueError(
                f"ThresholdPruning(kinds={self.kinds}, layers={list(self.layers)}) matches none of "
                f"the penalised groups: {known}."
            )

    def at_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prune, if this is one of the epochs to do so."""
        if not self.occasions.at(trainer.current_epoch):
            return
        module = require_module(pl_module, self)
        parameters = dict(module.backbone.named_parameters())
        total = 0
        for group_set in self.chosen(module.regularizer.group_sets):
            mask = self.under_threshold(group_norms(group_set, parameters))
            if bool(mask.all()) and group_set.kind != "depth":
                rank_zero_warn(
                    f"ThresholdPruning zeroes all groups of {group_set.name}: unless a shortcut "
                    "leads around this layer, the network is cut. Lower the strength or the "
                    "threshold."
                )
            total += module.prune_groups_(group_set, mask, lock=self.lock)
        rank_zero_info(
            f"ThresholdPruning: {total} groups newly zeroed in epoch {trainer.current_epoch}."
        )

    def chosen(self, group_sets: Sequence[GroupSet]) -> list[GroupSet]:
        """Return the group sets that this callback prunes."""
        return [
            s
            for s in group_sets
            if (self.kinds is None or s.kind in self.kinds)
            and any(fnmatchcase(s.layer, pattern) for pattern in self.layers)
        ]

    def under_threshold(self, norms: Tensor) -> Tensor:
        """Return which groups have a norm at most the threshold."""
        limit = self.threshold * norms.max() if self.relative else self.threshold
        return norms <= limit
