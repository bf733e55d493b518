"""LowRank: layers become low rank factors, before training or in the middle of it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info

from ssl_lightning.callbacks.during_fit import (
    common_plan,
    refuse_compiled,
    refuse_strategies,
    replace_in_place_,
)
from ssl_lightning.callbacks.other_uses import refuse_other_uses
from ssl_lightning.callbacks.when import EpochStartCallback, LastModule, Occasions, example_of
from ssl_lightning.compaction import Plan, check_sliceable
from ssl_lightning.compaction.factor_layers import METHODS
from ssl_lightning.low_rank import Factorised, LowRankReport, factorise, factorised
from ssl_lightning.low_rank.decomposing import require_tensorly
from ssl_lightning.low_rank.factorising import check_choice
from ssl_lightning.module import Sparsity, sparsity_of
from ssl_lightning.suggest import pick


class LowRank(EpochStartCallback):
    """At the start of an epoch, replace layers by low rank factors, and train those.

    See :func:`~ssl_lightning.factorise` for what the factors are and how their ranks are chosen.
    At epoch 0 that happens before the optimizers are made and the penalties are bound, so
    penalties may name factors, such as ``{kind: filter, layers: "conv2.0"}``: its groups are the
    ranks, and what becomes zero is removed as all else. Later (and with ``init_from``, whose
    weights are read when the fit starts), penalties must match before and after (``"conv2*"``);
    the factors get the optimizer's settings of the layer that they replace and begin without
    state, and so do averages of weights. All else goes on as it was. Layers with locked groups
    remain as they are. Checkpoints hold the ranks.

    ``Budget`` after it counts in shares of the network that it finds at the start of training: of
    the factorised one, if this is at epoch 0.

    Args:
        macs: multiply-adds that the network may have: a share of at most 1, or an absolute number.
        energy: share in (0, 1] of the squared singular values that is retained, instead.
        ranks: layer -> rank (tucker: or outputs and inputs of the core), instead.
        method: one of ``svd``, ``tucker``, ``cp``; the last two need the extra ``low-rank``.
        layers: glob or globs on names of layers.
        at: epoch, counted from 0.

    Raises:
        ValueError: as :func:`~ssl_lightning.factorise`, here or at the start of training; for an
            epoch that the run does not reach; penalties that do not match the factorised network;
            or, at a later epoch, an optimizer whose state cannot be sliced.
        MisconfigurationException: as :class:`CompactDuringFit`; and for a run that is resumed after
            that epoch from a checkpoint without the factors.

    Example:
        >>> LowRank(macs=0.5, method="svd", layers="conv*", at=2).occasions.at(2)
        True
    """

    def __init__(
        self,
        macs: float | None = None,
        energy: float | None = None,
        ranks: dict[str, int | list[int]] | None = None,
        method: str = "tucker",
        layers: str | list[str] = "*",
        at: int = 0,
    ) -> None:
        check_choice("LowRank", macs, energy, ranks)
        pick("method of factors", method, METHODS)
        self.settings: dict[str, Any] = {"macs": macs, "energy": energy, "ranks": ranks}
        self.settings |= {"method": method, "layers": layers}
        self.occasions = Occasions("LowRank", at)
        self.at = at
        self.plan: Plan | None = None
        self.report: LowRankReport | None = None
        self._last = LastModule()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what would hold the old parameters."""
        if stage != "fit":
            return
        refuse_strategies(trainer.strategy, "LowRank")
        refuse_compiled(pl_module, "LowRank")
        if METHODS[self.settings["method"]].spatial:
            require_tensorly("LowRank")
        self.occasions.check(trainer)
        if self._last.replaced_by(pl_module):
            self.plan = self.report = None

    def before_penalties(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Factorise, if this is at epoch 0; called before the penalties are bound.

        Where weights are read only when the fit starts (``init_from``), that is too early.
        """
        unread = getattr(pl_module, "init_from", None) and not pl_module.initialised_from
        if self.at == 0 and self.plan is None and not unread:
            sparsity = sparsity_of(pl_module, "LowRank")
            refuse_other_uses(sparsity, "LowRank")
            self.replace_layers(trainer, sparsity)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a run in which it would fail later."""
        if self.plan is not None:
            return
        sparsity = sparsity_of(pl_module, "LowRank")
        for optimizer in trainer.optimizers:
            check_sliceable(optimizer)
        refuse_other_uses(sparsity, "LowRank")
        sparsity.sets_of(self.found(sparsity).network)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a run that is resumed too late."""
        super().on_train_start(trainer, pl_module)
        done, plans = self.plan, sparsity_of(pl_module, "LowRank").plans
        late = done is None and trainer.current_epoch > self.at
        if late or (done is not None and done.factors and done not in plans):
            raise MisconfigurationException(
                f"LowRank: the run is resumed in epoch {trainer.current_epoch} from a checkpoint "
                f"without the factors that it makes at={self.at}. Give a checkpoint of a run with "
                "this callback, or a later `at`."
            )

    def at_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Factorise, if this is the epoch to do so."""
        if trainer.current_epoch == self.at and self.plan is None:
            self.replace_layers(trainer, sparsity_of(pl_module, "LowRank"))

    def found(self, sparsity: Sparsity) -> Factorised:
        """Return the factorised network; layers with locked groups remain as they are."""
        network, example = sparsity.network, example_of(sparsity, "LowRank")
        marks = sparsity.locks.marks(sparsity.parameters())
        locked = {name.rpartition(".")[0]: "it has locked groups" for name in marks}
        return factorise(network, example, **self.settings, excluded=locked)

    def replace_layers(self, trainer: pl.Trainer, sparsity: Sparsity) -> None:
        """Factorise the network that is trained; ranks are those of the first process."""
        small, plan, self.report = self.found(sparsity)
        self.plan = common_plan(trainer.strategy, plan)
        if self.plan != plan:
            small = factorised(sparsity.network, self.plan)
        if self.plan.factors:
            replace_in_place_(trainer, sparsity, self.plan, small)
        rank_zero_info(f"LowRank, epoch {trainer.current_epoch}:\n{self.report}")

    def state_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`load_state_dict` reads."""
        return {"plan": None if self.plan is None else self.plan.to_json()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        text = state_dict["plan"]
        self.plan = None if text is None else Plan.from_json(text)
