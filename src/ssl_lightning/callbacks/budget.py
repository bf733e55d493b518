"""Budget: what the network may cost, reached in training."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ssl_lightning.callbacks.cycles import give_cycles, third_of, warn_of_low_rate
from ssl_lightning.callbacks.during_fit import (
    as_if_begun,
    compact_in_place_,
    plan_in_training,
    refuse_compiled,
    refuse_strategies,
)
from ssl_lightning.callbacks.landing import landing_text, removal_text, warn_above
from ssl_lightning.callbacks.measuring import MEASUREMENTS, measurement_for
from ssl_lightning.callbacks.methods import METHODS, Method, Window, groups_of
from ssl_lightning.callbacks.other_uses import refuse_other_uses
from ssl_lightning.callbacks.when import EpochStartCallback, LastModule, check_reached, example_of
from ssl_lightning.compaction import check_sliceable
from ssl_lightning.costs import Costs, parse_targets
from ssl_lightning.graph import working_copy
from ssl_lightning.groups.surroundings import Surroundings
from ssl_lightning.measure.left import CompactForm
from ssl_lightning.module import Sparsity, is_trained, sparsity_of
from ssl_lightning.prune import Choice, UnreachableError
from ssl_lightning.prune.machines import check_multiple, meter_of, multiple_for
from ssl_lightning.prune.scores import find_importance
from ssl_lightning.suggest import pick

NORM = "l2"
"""What groups are ranked by while their importance is not measured yet."""

BEGIN, LAND = "begin", "land"
"""What is due, as soon as there are inputs to measure on."""


class Budget(EpochStartCallback):
    """Bring a network down to what it may cost, and retrain it.

    At the start of epoch ``end`` the least important groups are zeroed and locked, as few as the
    budget asks for, and the network is compacted: the budget is kept exactly, whatever happened
    before. What remains is trained for the rest of the run. Where importance is measured, that is
    after the first batches of the epoch, at most 8, on whose inputs it is measured.

    Penalties say which groups may go, by their kinds and layers; they need no strength, and act no
    more after ``end``. Without penalties, or with such on scales of batch norms alone, all coupled
    channels may go. What happens between ``start`` and ``end`` is the business of the method.

    Retraining wants a high learning rate again. A run without a scheduler gets a half cosine up to
    ``end`` and another one after it, both from the optimizer's rate
    (:class:`~ssl_lightning.schedules.StageLR`).

    Args:
        macs: multiply-adds that the compact network may have at most: a share of at most 1 of the
            dense network's, or an absolute number. With several targets, all are kept.
        sparse_macs: the same without those of zero rows and columns of convolutions.
        parameters: the same for parameters.
        size: the same for the bytes of weights and buffers.
        depth: the same for convolutions and linear layers; needs penalties of kind depth.
        latency: share of the dense network's time in an engine, for a batch of one; predicted from
            a table of layers, measured when groups are chosen, and kept within 3 %.
        latency_ms: the same in milliseconds.
        engine: where the network will run, one of ``measure.ENGINES``, such as ``"openvino"``.
        start: epoch (counted from 0) from which the method acts.
        end: epoch at whose start the budget is reached. By default 0 for a network that is trained
            already (``zoo:``, ``init_from``, ``pretrained``), else a third of the run.
        method: a name of :data:`~ssl_lightning.callbacks.methods.METHODS`.
        importance: ``"measured"``, by how much the network's outputs on training inputs change
            when groups of a set are removed, per cost that this saves; ``"taylor"``, by the change
            of the training loss to first order. Or a name of
            :data:`~ssl_lightning.prune.IMPORTANCES`: the norm, in units of the mean of the set,
            ``"l2"``, ``"l1"``; ``"fpgm"``; ``"bn_scale"``; or a control, ``"random"``, or
            ``"uniform"``, an equal share of each set. Or the path of the JSON file that
            ``ssl-lightning sensitivity`` wrote of the network that the run begins with.
        multiple: retain a multiple of so many groups in each set that loses any. ``"auto"``, the
            default where an engine is given, is the largest to which widths can be rounded up at
            no cost there, or half of it, and so on, where the budget cannot be reached with it;
            without an engine the default is 1.
        every_n_steps: how often the method decides.

    Raises:
        ValueError: for no target, one that is no number, or a window of no length; at the start of
            training, for a budget that cannot be reached, saying what is in the way, an end after
            the run, none for a run of unknown length, or an optimizer whose state cannot be sliced.
        MisconfigurationException: as :class:`CompactDuringFit`; for a run that is resumed after
            ``end`` from a checkpoint without this budget; and, where importance is measured, for
            training steps that do not call the network, or outputs that cannot be compared.

    Example:
        >>> [str(target) for target in Budget(macs=0.5, depth=14, end=10).targets]
        ['macs=0.5', 'depth=14']
    """

    def __init__(
        self,
        macs: float | None = None,
        parameters: float | None = None,
        size: float | None = None,
        depth: float | None = None,
        latency: float | None = None,
        latency_ms: float | None = None,
        sparse_macs: float | None = None,
        engine: str | None = None,
        start: int = 0,
        end: int | None = None,
        method: str = "one_shot",
        importance: str = "measured",
        multiple: int | Literal["auto"] | None = None,
        every_n_steps: int = 40,
    ) -> None:
        given = {"macs": macs, "parameters": parameters, "size": size, "depth": depth}
        given |= {"latency": latency, "latency_ms": latency_ms, "sparse_macs": sparse_macs}
        self.targets = parse_targets("Budget", given)
        if not self.targets:
            raise ValueError("Budget: expected a target, got none. Give macs=0.5, say.")
        if start < 0 or (end is not None and end < start) or every_n_steps < 1:
            raise ValueError(
                "Budget: expected 0 <= start <= end (epochs, counted from 0) and every_n_steps >= "
                f"1, got start={start}, end={end} and every_n_steps={every_n_steps}."
            )
        check_multiple("Budget", multiple, engine)
        if engine is None and any(target.resource == "latency" for target in self.targets):
            raise ValueError(
                "Budget: expected an engine for a latency, which is measured there, got none. "
                "Give `engine` (`--budget.engine`), such as openvino."
            )
        self.measures = isinstance(importance, str) and importance in MEASUREMENTS
        self.ranked_by = NORM if self.measures else find_importance(importance, *MEASUREMENTS)
        self.method: Method = pick("method", method, METHODS)()
        self.start, self.end = start, end
        self.importance, self.every_n_steps = importance, every_n_steps
        self.multiple, self.engine = multiple, engine
        self.fixed, self._given = isinstance(multiple, int), (multiple, end)
        self.dense: dict[str, float] | None = None
        self.landed: dict[str, float] | None = None
        self._next: int | None = None  # optimizer step of the next decision
        self._window: Window | None = None
        self._due: str | None = None
        self._measured = measurement_for(importance)
        self._last = LastModule()

    @property
    def state_key(self) -> str:
        """Name in checkpoints: several budgets may follow each other in one run."""
        return f"{type(self).__name__}({', '.join(map(str, self.targets))})"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what would hold the old parameters."""
        if stage != "fit":
            return
        refuse_strategies(trainer.strategy, "Budget")
        refuse_compiled(pl_module, "Budget")
        if self._last.replaced_by(pl_module):
            self.begin_anew()

    def begin_anew(self) -> None:
        """Forget another module's run."""
        self.method, self.multiple, self.end = type(self.method)(), *self._given
        self.dense = self.landed = self._next = self._window = self._due = None
        self._measured = measurement_for(self.importance)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a run in which the budget could not be reached; give it a learning-rate cycle."""
        sparsity = sparsity_of(pl_module, "Budget")
        sparsity.steer()  # penalties need no strength of their own
        self.end = self.end_of(trainer, pl_module)
        for optimizer in trainer.optimizers:
            check_sliceable(optimizer)
        refuse_other_uses(sparsity)
        self._window = None
        if self.landed is None:
            self.choose(trainer, sparsity)
        give_cycles(trainer, pl_module, self.end, "Budget")

    def end_of(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> int:
        """Return the epoch at whose start the budget is reached.

        Raises:
            ValueError: if the run does not reach it.
        """
        end = self.end
        if end is None:
            settings = {**pl_module.hparams, "init_from": getattr(pl_module, "init_from", None)}
            end = self.start if is_trained(settings) else max(self.start, third_of(trainer))
        check_reached(trainer, "Budget", "end", end)
        return end

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a run that is resumed too late."""
        super().on_train_start(trainer, pl_module)
        assert self.end is not None
        if self.landed is None and trainer.current_epoch > self.end:
            raise MisconfigurationException(
                f"Budget: the run is resumed in epoch {trainer.current_epoch}, after end="
                f"{self.end}, from a checkpoint that knows nothing of this budget. Give the budget "
                "of that run, or a later `end`."
            )

    def window(self, trainer: pl.Trainer, sparsity: Sparsity) -> Window:
        """Return what the method works on: of the present network, made once for it."""
        if self._window is None or self._window.network is not sparsity.network:
            example = example_of(sparsity, "Budget")
            around = Surroundings(sparsity.network, example, strict=True)
            network = working_copy(sparsity.network).eval()
            meter = meter_of(self.engine, network, example)
            meters = {} if meter is None else {"latency": meter}
            costs = Costs(self.targets, network, example, meters, self.dense)
            group_sets = groups_of(sparsity, around)
            self.dense = costs.dense
            self.multiple = multiple_for(self.multiple, meter)
            self._window = Window(
                sparsity,
                group_sets,
                costs,
                CompactForm(example, constants=False),
                self._measured.of(group_sets) or self.ranked_by,
                self.multiple,
                self.fixed,
                around.retained,
            )
        return self._window

    def progress(self, sparsity: Sparsity) -> float:
        """Return how much of the window is over, from 0 to 1."""
        assert self.end is not None
        length = max(self.end - self.start, 1)
        return min(max((sparsity.epoch - self.start) / length, 0.0), 1.0)

    def choose(self, trainer: pl.Trainer, sparsity: Sparsity) -> Choice:
        """Return which groups to zero, the same in all processes.

        Raises:
            UnreachableError: if the budget cannot be reached.
        """
        try:
            with as_if_begun(sparsity.network, sparsity.locks):
                choice = self.window(trainer, sparsity).choose()
        except UnreachableError as error:
            raise UnreachableError(f"Budget: {error}") from None
        self.multiple = self.window(trainer, sparsity).multiple
        return choice

    def at_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the window, or end it, as soon as there are inputs to measure on."""
        epoch = trainer.current_epoch
        assert self.end is not None
        if self.start == epoch < self.end and self._next is None:
            self._due = BEGIN
        if epoch == self.end and self.landed is None:
            self._due = LAND
        self.act_if_ready(trainer, pl_module)

    def act_if_ready(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, last: bool = False
    ) -> None:
        """Begin or land if that is due; once it can be measured, or after the ``last`` batch."""
        if self._due is None:
            return
        sparsity = sparsity_of(pl_module, "Budget")
        window = self.window(trainer, sparsity)
        measures = self.measures and (self._due == LAND or self.method.chooses)
        if measures and not last and not self._measured.enough(trainer, window):
            return
        due, self._due = self._due, None
        if due == LAND and self._next is not None:
            self.method.finish(window)
        if measures:
            self._measured.measure_(trainer, window)
        if due == LAND:
            self.land(trainer, sparsity)
            pl_module.log_dict(self.figures())
        else:
            self.method.begin(window)
            self._next = trainer.global_step + self.every_n_steps

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin or land if that is due; let the method decide, every so many steps."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        sparsity = sparsity_of(pl_module, "Budget")
        self.begin_again_if_replaced(sparsity)
        if batch_idx % trainer.accumulate_grad_batches == 0:  # no gradients wait
            self.act_if_ready(trainer, pl_module)
        if self._due is not None:
            self._measured.begin_step(sparsity.network)
        if self._next is None or self.landed is not None or trainer.global_step < self._next:
            return
        window = self.window(trainer, sparsity)
        before = window.gone()
        found = self.method.update(window, self.progress(sparsity))
        after = window.gone()
        pairs = list(zip(before, after, strict=True))
        found["groups_gone"] = float(sum(int((new & ~old).sum()) for old, new in pairs))
        found["groups_back"] = float(sum(int((old & ~new).sum()) for old, new in pairs))
        self._next += self.every_n_steps
        pl_module.log_dict({f"budget/{key}": value for key, value in found.items()})

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Let gradients be noted while something is due."""
        if self._due is not None and self.measures:
            self._measured.note_gradients(self.window(trainer, sparsity_of(pl_module, "Budget")))

    def begin_again_if_replaced(self, sparsity: Sparsity) -> None:
        """Let the method begin anew where something else has compacted the network."""
        if self._window is None or self._window.network is sparsity.network:
            return
        self._window = None
        if self._next is not None and self.method.chooses:
            self._next, self._due, self.method.state = None, self._due or BEGIN, {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Let the method act after the step."""
        self._measured.end_step()
        if self._next is not None and self.landed is None:
            sparsity = sparsity_of(pl_module, "Budget")
            self.method.after_step(self.window(trainer, sparsity), self.progress(sparsity))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin or land with the inputs that there were, in an epoch of few batches."""
        self.act_if_ready(trainer, pl_module, last=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say if the run ended before."""
        if self.landed is None and not getattr(trainer, "fast_dev_run", False):
            rank_zero_warn(
                f"Budget: the run ended in epoch {trainer.current_epoch}, before end={self.end}: "
                f"{', '.join(map(str, self.targets))} was not reached. Lower `end` or train on."
            )

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Watch the network no more."""
        self._measured.end_step()

    def land(self, trainer: pl.Trainer, sparsity: Sparsity) -> None:
        """Zero and lock the least important groups, compact, and switch the penalties off."""
        window = self.window(trainer, sparsity)
        sparsity.regularizer.scales = [0.0] * len(sparsity.penalties)
        choice = self.choose(trainer, sparsity)
        for group_set, mask in zip(window.group_sets, choice.masks, strict=True):
            sparsity.prune_groups_(group_set, mask, lock=True)
        gone = [int(zero.sum()) for zero in window.gone()]
        plan = plan_in_training(trainer, sparsity, "Budget")
        if plan.removed():
            compact_in_place_(trainer, sparsity, plan)
        small = working_copy(sparsity.network).eval()
        self.landed = window.costs.of(small) | choice.measured()
        self._window = None
        assert self.dense is not None
        text = landing_text(self.landed, self.dense, window.costs.limits)
        said = removal_text(window.group_sets, gone, trainer.current_epoch, self.multiple)
        rank_zero_info(f"Budget: {text}; {said}")
        warn_of_low_rate(trainer)
        warn_above(self.landed, window.costs.limits)

    def figures(self) -> dict[str, float]:
        """Return what to log of the compact network: its cost in percent of the dense one's."""
        assert self.landed is not None
        assert self.dense is not None
        return {f"budget/{n}": 100.0 * cost / self.dense[n] for n, cost in self.landed.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`load_state_dict` reads."""
        return {
            "end": self.end,
            "dense": self.dense,
            "landed": self.landed,
            "multiple": self.multiple,
            "next": self._next,
            "method": dict(self.method.state),
            "due": self._due,
            "measured": self._measured.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.dense, self.landed = state_dict["dense"], state_dict["landed"]
        self._next, self.method.state = state_dict["next"], dict(state_dict["method"])
        self.multiple, self._due = state_dict["multiple"], state_dict["due"]
        if self.measures:
            self._measured.load_state_dict(state_dict["measured"])
        self.end = state_dict["end"] if self.end is None else self.end
