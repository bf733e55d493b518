"""ThresholdPruning: zero the groups whose norm is small, and keep them at zero."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from ssl_lightning.callbacks.when import EpochStartCallback, Occasions
from ssl_lightning.graph import is_cut
from ssl_lightning.groups import GroupSet, group_norms
from ssl_lightning.module import sparsity_of
from ssl_lightning.penalties import Regularizer
from ssl_lightning.prune.ranking import mask_in_multiples, units


class ThresholdPruning(EpochStartCallback):
    """At the start of chosen epochs, zero the penalised groups whose norms are small.

    Small is at most a threshold, or among the smallest ``fraction`` of a layer's groups of a kind.

    With ``lock`` the groups stay exactly zero from then on: this is the step between the paper's
    sparse stage and its fine-tuning stage. Bias and batch-norm scale and shift of a zeroed filter
    are zeroed too, so that the layer's output is exactly zero.

    Args:
        start: first epoch (counted from 0) at whose start to prune.
        every_n_epochs: prune again every so many epochs; 0 prunes once.
        threshold: largest norm to zero. 0 takes only the groups that are zero already.
        relative: measure the threshold in units of the largest group norm of the same layer and
            kind, instead of absolutely.
        fraction: instead of a threshold, share of the groups of each layer and kind to be zero, at
            least 0 and less than 1, rounded to whole groups; the largest is retained. Groups that
            are zero already count, and so do those that a compaction has removed. Or a mapping from
            globs on layers to shares, such as ``{"conv2": 0.6, "conv[345]": 0.8}``, in place of
            ``layers``; the first that matches a layer holds for it.
        kinds: kinds of group to prune; None takes all that are penalised. The single weights of an
            ``l1`` penalty are pruned only if ``"l1"`` is named here: a threshold that suits the
            norms of groups would take most of them.
        layers: glob or globs on the layers to prune.
        lock: keep the zeroed groups at zero.
        multiple: of channels: in every set that loses any, retain the multiple nearest to the
            number otherwise (of half as many in sets of fewer, and so on). Groups that are zero
            already stay zero, so if too few others are left, it is the multiple below. 8 or 16
            suit most machines, which compute so many channels at a time;
            :func:`~ssl_lightning.preferred_multiple` finds it for an engine.

    Raises:
        ValueError: for a negative threshold or occasion, a fraction out of range or beside a
            threshold, ``layers`` beside a mapping, a multiple below 1, or a start after the last
            epoch; and, when training starts, for a glob that matches none of the penalised groups.

    Example:
        >>> ThresholdPruning(start=20, threshold=1e-3, relative=True).occasions.at(20)
        True
        >>> import torch
        >>> pruning = ThresholdPruning(start=20, fraction={"conv2": 0.5, "conv*": 0.8})
        >>> pruning.to_zero(torch.tensor([3.0, 0.0, 1.0, 2.0]), "conv2")
        tensor([False,  True,  True, False])
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
        fraction: float | dict[str, float] | None = None,
        multiple: int = 1,
    ) -> None:
        if not threshold >= 0:
            raise ValueError(
                f"ThresholdPruning: expected a threshold >= 0, got {threshold}. It is a group norm "
                "(or, if relative, a fraction of the largest), not a strength."
            )
        if isinstance(fraction, Mapping) and layers != "*":
            raise ValueError(
                "ThresholdPruning: expected a mapping from layers as `fraction` without `layers`, "
                f"got fraction={fraction}, layers={layers}. Leave `layers` out."
            )
        globs = [layers] if isinstance(layers, str) else layers
        by_layer = fraction if isinstance(fraction, Mapping) else dict.fromkeys(globs, fraction)
        fractions = {glob: share for glob, share in by_layer.items() if share is not None}
        if fractions and not (
            all(0 <= share < 1 for share in fractions.values()) and threshold == 0 and not relative
        ):
            raise ValueError(
                "ThresholdPruning: expected 0 <= fraction < 1 without `threshold` and `relative`, "
                f"got fraction={fraction}, threshold={threshold}, relative={relative}. Give a "
                "fraction of the groups, such as 0.6, or a threshold."
            )
        if type(multiple) is not int or multiple < 1:
            raise ValueError(
                "ThresholdPruning: expected a whole number >= 1 as multiple, got "
                f"{multiple!r}. Give 8 or 16, say."
            )
        self.occasions = Occasions("ThresholdPruning", start, every_n_epochs)
        self.threshold = threshold
        self.relative = relative
        self.layers = list(by_layer)
        self.fractions = fractions
        self.kinds = kinds
        self.lock = lock
        self.multiple = multiple

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reject settings that would never prune anything."""
        sparsity = sparsity_of(pl_module, type(self).__name__)
        self.occasions.check(trainer)
        chosen = self.chosen(sparsity.regularizer)
        idle = [p for p in self.layers if not any(fnmatchcase(s.layer, p) for s in chosen)]
        if (idle or not chosen) and not sparsity.plans:
            sets = sparsity.regularizer.group_sets
            known = ", ".join(s.name for s in sets) or "none"
            singles = {s.kind: None for s in sets if s.elementwise}
            hint = f" Single weights are pruned only if `kinds` names {', '.join(singles)}."
            hint = hint if singles else ""
            raise ValueError(
                f"ThresholdPruning: got layers {idle or self.layers} and kinds {self.kinds}, which "
                f"match none of the penalised groups: {known}. Correct or leave them out.{hint}"
            )

    def at_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prune, if this is one of the epochs to do so."""
        if not self.occasions.at(trainer.current_epoch):
            return
        sparsity = sparsity_of(pl_module, type(self).__name__)
        parameters = sparsity.parameters()
        dense = {} if sparsity.origin is None else sparsity.origin.counts
        total, retained = 0, {}
        emptied: list[str] = []
        for group_set in self.chosen(sparsity.regularizer):
            norms = group_norms(group_set, parameters).detach()
            full = dense.get(group_set.name, group_set.num_groups)
            mask = self.to_zero(norms, group_set.layer, full)
            if self.multiple > 1 and not bool(mask.all()):
                (unit,) = units([group_set], parameters, self.multiple)
                mask = mask_in_multiples(group_set, norms, mask, unit)
            if bool(mask.all()) and group_set.kind != "depth":
                emptied.append(group_set.name)
            total += sparsity.prune_groups_(group_set, mask, lock=self.lock)
            if not bool(mask.all()):
                retained[group_set.name] = float(norms[~mask].min()), self.limit(norms)
        example = sparsity.example_input()
        if emptied and example is not None and is_cut(sparsity.network, example):
            rank_zero_warn(
                f"ThresholdPruning zeroes all groups of {', '.join(emptied)}: the network is "
                "cut, its output depends on its input no more. Lower the strength or the "
                "threshold."
            )
        rank_zero_info(
            f"ThresholdPruning: {total} groups newly zeroed in epoch {trainer.current_epoch}."
            + self.next_group(retained)
        )

    def next_group(self, retained: Mapping[str, tuple[float, float]]) -> str:
        """Say which group is nearest to its threshold, by which strength and threshold are judged.

        Args:
            retained: group set -> smallest norm that is not zeroed, and its threshold.
        """
        if self.fractions or not retained:
            return ""
        name, (norm, limit) = min(retained.items(), key=lambda item: item[1][0] - item[1][1])
        of = f", {self.threshold:.3g} of the largest" if self.relative else ""
        return f" Next would be one of {name}, with norm {norm:.3g} (threshold {limit:.3g}{of})."

    def chosen(self, regularizer: Regularizer) -> list[GroupSet]:
        """Return the penalised group sets that this callback prunes."""
        sets = [
            s
            for s in regularizer.group_sets
            if (not s.elementwise if self.kinds is None else s.kind in self.kinds)
        ]
        return [s for s in sets if any(fnmatchcase(s.layer, glob) for glob in self.layers)]

    def limit(self, norms: Tensor) -> float:
        """Return the threshold for the norms of a layer's set."""
        return self.threshold * float(norms.max()) if self.relative else self.threshold

    def to_zero(self, norms: Tensor, layer: str, full: int | None = None) -> Tensor:
        """Return which groups to zero.

        Args:
            norms: of all groups of a layer's set.
            layer: its name.
            full: number of groups that the set had before compaction, of which shares are taken.
        """
        if not self.fractions:
            return norms <= self.limit(norms)
        share = next(share for glob, share in self.fractions.items() if fnmatchcase(layer, glob))
        gone = 0 if full is None else full - len(norms)
        count = min(max(round(share * (gone + len(norms))) - gone, 0), len(norms) - 1)
        mask = torch.zeros_like(norms, dtype=torch.bool)
        mask[norms.argsort(stable=True)[:count]] = True
        return mask
