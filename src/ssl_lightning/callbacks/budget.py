"""Budget: what the network may cost, reached in training."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ssl_lightning.callbacks.during_fit import (
    common_plan,
    compact_in_place_,
    refuse_compiled,
    refuse_strategies,
)
from ssl_lightning.callbacks.methods import METHODS, Method, Window
from ssl_lightning.callbacks.other_uses import refuse_other_uses
from ssl_lightning.callbacks.when import EpochStartCallback, example_of
from ssl_lightning.compaction import check_sliceable, make_plan
from ssl_lightning.costs import Costs, parse_targets
from ssl_lightning.groups import GroupSet, Selector
from ssl_lightning.groups.resolve import resolve_each
from ssl_lightning.groups.surroundings import Surroundings
from ssl_lightning.measure.left import CompactForm
from ssl_lightning.module import Sparsity, sparsity_of
from ssl_lightning.prune import IMPORTANCES, UnreachableError
from ssl_lightning.steps import number
from ssl_lightning.suggest import pick


class Budget(EpochStartCallback):
    """Bring a network down to what it may cost, compact it in the middle of training, and train on.

    At the start of epoch ``end`` the least important groups are zeroed and locked, as few as the
    budget asks for, and the network is compacted; so the budget is kept exactly, whatever happened
    before. Penalties say which groups may go (their kinds and layers; by default all coupled
    channels); they need no strength. What happens between ``start`` and ``end`` is the method's.

    Args:
        macs, parameters, size, depth: what the compact network may cost at most: a share of at most
            1 of the dense network's, or an absolute number (multiply-adds, parameters, bytes,
            convolutions and linear layers). With several, all are kept. ``depth`` needs penalties
            of kind depth.
        start: epoch (counted from 0) from which the method acts.
        end: epoch at whose start the budget is reached.
        method: a name of :data:`~ssl_lightning.callbacks.methods.METHODS`.
        importance: ``"l2"``, ``"l1"`` or ``"random"`` (a control).
        multiple: retain a multiple of so many groups in each set that loses any.
        every_n_steps: how often the method decides.

    Raises:
        ValueError: for no target or one that is no number; at the start of training, for a budget
            that cannot be reached, saying what is in the way, or a window outside of the run.
        MisconfigurationException: at the start of training, where the network could not be
            compacted (see :class:`CompactDuringFit`).

    Example:
        >>> Budget(macs=0.5, end=10).targets
        [Target(resource='macs', value=0.5, is_share=True)]
    """

    def __init__(
        self,
        macs: float | None = None,
        parameters: float | None = None,
        size: float | None = None,
        depth: float | None = None,
        start: int = 0,
        end: int = 0,
        method: str = "one_shot",
        importance: str = "l2",
        multiple: int = 1,
        every_n_steps: int = 40,
    ) -> None:
        given = {"macs": macs, "parameters": parameters, "size": size, "depth": depth}
        self.targets = parse_targets("Budget", given)
        if not self.targets:
            raise ValueError("Budget: expected a target, got none. Give macs=0.5, say.")
        if not 0 <= start <= end:
            raise ValueError(
                f"Budget: expected 0 <= start <= end (epochs, counted from 0), got start={start} "
                f"and end={end}."
            )
        self.start, self.end = start, end
        self.method: Method = pick("method", method, METHODS)()
        self.importance = importance
        pick("importance", importance, IMPORTANCES)
        self.multiple = multiple
        self.every_n_steps = every_n_steps
        self.landed: dict[str, float] | None = None
        self._next: int | None = None
        self._window: Window | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what would hold the old parameters; say that strengths come from here."""
        if stage == "fit":
            refuse_strategies(trainer.strategy)
            refuse_compiled(pl_module)
            sparsity_of(pl_module, "Budget").steer()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a budget that cannot be reached, before training."""
        sparsity = sparsity_of(pl_module, "Budget")
        last = trainer.max_epochs
        if last is not None and 0 <= last <= self.end and not getattr(trainer, "fast_dev_run", 0):
            raise ValueError(
                f"Budget: end={self.end} is never reached: the run has the epochs 0 to {last - 1}. "
                "Lower `end` or raise `trainer.max_epochs`."
            )
        for optimizer in trainer.optimizers:
            check_sliceable(optimizer)
        refuse_other_uses(sparsity)
        self._window = None
        if self.landed is None:
            self.window(trainer, sparsity).choose()

    def window(self, trainer: pl.Trainer, sparsity: Sparsity) -> Window:
        """Return what the method works on; made once."""
        if self._window is None:
            example = example_of(sparsity, "Budget")
            around = Surroundings(sparsity.network, example, strict=True)
            form = CompactForm(example, constants=False)
            batches = trainer.num_training_batches
            steps = (self.end - self.start) * max(1, int(batches)) if batches < 1e9 else 1
            group = trainer.optimizers[0].param_groups[0]
            momentum = group.get("momentum", 0.0)
            self._window = Window(
                sparsity,
                groups_of(sparsity, around),
                Costs(self.targets, sparsity.network, example),
                form,
                self.importance,
                self.multiple,
                max(1, steps),
                float(number(group["lr"])) / (1.0 - momentum),
                around.retained,
            )
        return self._window

    def progress(self, sparsity: Sparsity) -> float:
        """Return how much of the window is over, from 0 to 1."""
        if self.end == self.start:
            return 1.0
        return min(max((sparsity.epoch - self.start) / (self.end - self.start), 0.0), 1.0)

    def at_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the window, or end it: choose, lock and compact."""
        sparsity = sparsity_of(pl_module, "Budget")
        epoch = trainer.current_epoch
        if epoch == self.start and epoch < self.end and self._next is None:
            self.method.begin(self.window(trainer, sparsity))
            self._next = trainer.global_step + self.every_n_steps
        if epoch == self.end and self.landed is None:
            self.land(trainer, sparsity)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the method decide, every so many steps."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._next is None or self.landed is not None or trainer.global_step < self._next:
            return
        sparsity = sparsity_of(pl_module, "Budget")
        window = self.window(trainer, sparsity)
        found = self.method.update(window, self.progress(sparsity))
        self._next += self.every_n_steps
        pl_module.log_dict({f"budget/{key}": value for key, value in found.items()})

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Let the method act after the step."""
        if self._next is not None and self.landed is None:
            sparsity = sparsity_of(pl_module, "Budget")
            self.method.after_step(self.window(trainer, sparsity), self.progress(sparsity))

    def land(self, trainer: pl.Trainer, sparsity: Sparsity) -> None:
        """Zero and lock the least important groups, and compact."""
        window = self.window(trainer, sparsity)
        if self._next is not None:
            self.method.finish(window)
        sparsity.regularizer.scales = [0.0] * len(sparsity.penalties)
        try:
            choice = window.choose()
        except UnreachableError as error:
            raise UnreachableError(f"Budget: {error}") from None
        masks: list[Tensor] = trainer.strategy.broadcast(choice.masks)
        for group_set, mask in zip(window.group_sets, masks, strict=True):
            sparsity.prune_groups_(group_set, mask, lock=True)
        example = example_of(sparsity, "Budget")
        plan = common_plan(trainer.strategy, make_plan(sparsity.network, example, constants=False))
        if plan.removed():
            compact_in_place_(trainer, sparsity, plan)
        self.landed = window.costs.of(sparsity.network)
        self._window = None
        text = ", ".join(
            f"{name} {cost:,.6g} ({cost / window.costs.dense[name]:.1%} of dense, at most "
            f"{window.costs.limits[name] / window.costs.dense[name]:.1%})"
            for name, cost in self.landed.items()
        )
        rank_zero_info(f"Budget: {text} in epoch {trainer.current_epoch}.")

    def state_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`load_state_dict` reads."""
        return {"landed": self.landed, "next": self._next, "method": dict(self.method.state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.landed, self._next = state_dict["landed"], state_dict["next"]
        self.method.state = dict(state_dict["method"])


def groups_of(sparsity: Sparsity, around: Surroundings) -> list[GroupSet]:
    """Return the groups that may go: those of the penalties, or else all coupled ones."""
    if sparsity.penalties:
        return sparsity.regularizer.group_sets
    return resolve_each(sparsity.network, [Selector("coupled")], around=around)[0]
