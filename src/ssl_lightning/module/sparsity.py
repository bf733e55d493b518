"""Penalties, locks and plans of a network in a LightningModule: the state behind the mixin."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_lightning.checkpoints import read_plans
from ssl_lightning.compaction import Plan, apply_plan, expand, slice_tensors
from ssl_lightning.compaction.plan import plans_to_data
from ssl_lightning.compaction.store import Recipe
from ssl_lightning.graph import ExampleInput, as_inputs
from ssl_lightning.groups import GroupSet, nonzero_groups, zero_groups_
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.locks import GroupLocks
from ssl_lightning.module.macs import MacsShare
from ssl_lightning.module.origin import Origin, maker, read_origin, replace_everywhere
from ssl_lightning.module.parts import epochs_of
from ssl_lightning.penalties import Attachment, Penalty, Regularizer, parse_penalty
from ssl_lightning.penalties.attach import holds_any, warn_untrained
from ssl_lightning.schedules import Constant
from ssl_lightning.suggest import shortened

OWN_ATTRIBUTES = ("_trainer", "_fabric", "sparsity")
"""Attributes of a LightningModule that its view as a network is without."""


class Sparsity:
    """What :class:`StructuredSparsity` knows of the network that becomes sparse.

    Attributes:
        module: the LightningModule.
        name: qualified name of the network in the module; ``""`` is the module itself.
        penalties: on groups of the network.
        example: makes an example of the network's input, or returns None.
        seed_batches: whether the random generators of torch are seeded at each batch.
        locks: groups that are held at zero.
        plans: by which the network was compacted, in their order.
        origin: the network before the first of them; None without any.
        run_seed: on which the random numbers of training depend; None before it starts.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        name: str,
        penalties: Sequence[Penalty | Mapping[str, Any]],
        example: Callable[[], ExampleInput],
        seed_batches: bool,
    ) -> None:
        self.module: Any = module
        self.name = name
        self.penalties = [parse_penalty(given) for given in penalties]
        self.example = example
        self.seed_batches = seed_batches
        self.locks = GroupLocks()
        self.plans: list[Plan] = []
        self.origin: Origin | None = None
        self.run_seed: int | None = None
        self._macs = MacsShare()
        self._view: nn.Module | None = None
        self._make_dense: Callable[[], nn.Module] | None = None
        self._regularizer: Regularizer | None = None
        self.steered = False
        self._controls: Any = None  # state of the regularizer for the next one
        self._attachment: Attachment | None = None
        self._attached_at: int | None = None
        self._held: list[int] = []  # sizes of the optimizers' parameter groups
        self._waiting: list[int] | None = None  # the same, while nothing penalised is in them

    def choose(
        self,
        penalties: Sequence[Penalty | Mapping[str, Any]],
        example: Callable[[], ExampleInput],
        seed_batches: bool,
    ) -> bool:
        """Take over what a repeated call of ``sparsify`` says, if it says the same or more.

        Returns:
            Whether it does: other penalties than those there are change nothing.
        """
        again = [parse_penalty(given) for given in penalties]
        if self.penalties and again != self.penalties:
            return False
        if again != self.penalties:
            self.penalties, self._regularizer = again, None
        self.example = example if example() is not None else self.example
        self.seed_batches = seed_batches
        return True

    @property
    def network(self) -> nn.Module:
        """The network; where it is the module itself, a view of its layers without the trainer."""
        if self.name:
            found: nn.Module = self.module.get_submodule(self.name)
            return found
        if self._view is None:
            self._view = copy.copy(self.module)
        own = {k: v for k, v in vars(self.module).items() if k not in OWN_ATTRIBUTES}
        vars(self._view).update(own, sparsity=None)
        return self._view

    def example_input(self) -> ExampleInput:
        """Return an example input of the network on its device and in its type, or None."""
        given = self.example()
        if given is None:
            return None
        like = next((p for p in self.network.parameters() if p.is_floating_point()), None)
        if like is None:
            return given

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(like.device, like.dtype if tensor.is_floating_point() else None)

        if isinstance(given, Tensor):
            return moved(given)
        return as_inputs(given).map(moved)

    @property
    def regularizer(self) -> Regularizer:
        """The penalties, bound to the network (on first use: its graph may be traced)."""
        if self._regularizer is None:
            sizes = None if self.origin is None else self.origin.group_sizes
            self._regularizer = Regularizer(
                self.network, self.penalties, self.example_input(), sizes
            )
            self._regularizer.steered = self.steered
            if self._controls is not None and self.penalties:
                self._regularizer.load_state_dict(self._controls)
        return self._regularizer

    @property
    def epoch(self) -> float:
        """Fractional epoch: optimizer steps done, divided by optimizer steps per epoch.

        Counted are steps of this epoch, not of the run: accumulation, the size of batches or the
        number of optimizers may change.
        """
        trainer: pl.Trainer = self.module.trainer
        each, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
        if batches in (0, float("inf")):
            return float(trainer.current_epoch)
        per_epoch = -(-batches // each)
        loop: Any = trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.processed
        steps = done // each
        if done >= batches:  # of this epoch, at its end; or of the one before
            now = loop.epoch_progress.current
            steps = per_epoch if max(now.started, now.processed) > now.completed else 0
        return float((trainer.current_epoch * per_epoch + steps) / per_epoch)

    def check_schedules(self) -> None:
        """Refuse schedules that are 0 throughout a run; say where they follow whole epochs only.

        Raises:
            ValueError: naming the penalty.
        """
        trainer: pl.Trainer = self.module.trainer
        if getattr(trainer, "fast_dev_run", False):
            return
        self.regularizer.check_active(epochs_of(trainer))
        if trainer.num_training_batches == float("inf") and any(
            p.schedule != Constant() for p in self.penalties
        ):
            rank_zero_warn(
                "The data loader has no length, so that schedules of penalties change between "
                "epochs only, and never in one that does not end. Set `limit_train_batches`."
            )

    def seed(self, *place: int) -> None:
        """Seed torch's generators with a function of the run's seed and a place in the run."""
        if self.run_seed is None:  # a search for a learning rate trains before the run begins
            self.run_seed = torch.initial_seed()
        torch.manual_seed(hash((self.run_seed, *place)) & 0x7FFF_FFFF_FFFF_FFFF)

    def attach_penalties(self) -> None:
        """Let penalties and locks act on all optimizers of the run, unless they do already.

        Raises:
            ValueError: if a penalty or a lock could not act on them, or they are never stepped.
        """
        trainer = self.module.trainer
        optimizers = tuple(getattr(o, "optimizer", o) for o in trainer.optimizers)
        now = self._attachment
        held = [len(group["params"]) for o in optimizers for group in o.param_groups]
        if now is None and held == self._waiting:
            return
        if now is not None:
            same = now.regularizer is self._regularizer and now.locks is self.locks
            if same and now.optimizers == optimizers and held == self._held:
                if self._attached_at is None:  # a run that is resumed knows its steps only now
                    self._attached_at = trainer.global_step
                now.check_called(trainer.global_step - self._attached_at)
                return
            now.detach()
        self._attached_at, self._held, self._attachment = None, held, None
        self._waiting = held if self._waits(optimizers) else None
        if self._waiting is not None:
            return
        self._attachment = self.regularizer.attach(
            optimizers, epoch=lambda: self.epoch, locks=self.locks
        )

    def _waits(self, optimizers: Sequence[Optimizer]) -> bool:
        """Whether all that is penalised is frozen and in no optimizer: a callback may unfreeze it.

        It says so; once it is in an optimizer, the penalties are attached.
        """
        parameters = self.regularizer.parameters()
        names = {name for term in self.regularizer.terms for name in term.parameters()}
        frozen = names and not any(parameters[name].requires_grad for name in names)
        if not frozen or any(holds_any(o, parameters, names) for o in optimizers):
            return False
        warn_untrained(self.regularizer.untrained(optimizers))
        return True

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the network's parameters by all of their names: tied ones have several."""
        return dict(self.network.named_parameters(remove_duplicate=False))

    def macs_left(self) -> float | None:
        """Return the multiply-adds after compaction, in percent of those training started with.

        None if the shape of the network's input is not known, or it cannot be captured.
        """
        return self._macs.share(self.network, self.example_input(), self.origin)

    # --- locked groups ----------------------------------------------------------------------------

    def steer(self) -> None:
        """Say that strengths will be set while training: penalties need none of their own."""
        self.steered = True
        if self._regularizer is not None:
            self._regularizer.steered = True

    def prune_groups_(self, group_set: GroupSet, mask: Tensor, *, lock: bool) -> int:
        """Set groups to exactly zero and, with ``lock``, hold them there from now on.

        Args:
            group_set: a group set of the network.
            mask: ``(num_groups,)`` bool, True for the groups to zero.
            lock: whether they remain zero whatever the optimizer does.

        Returns:
            How many of them were not zero (or, with ``lock``, not locked) before.
        """
        network, parameters = self.network, self.parameters()
        new = int((mask & nonzero_groups(group_set, parameters)).sum())
        trained = tuple(m for m in group_set.companions if m.parameter in parameters)
        if lock:  # first, for it may be refused
            new = self.locks.lock(replace(group_set, companions=trained), mask)
        zero_groups_(group_set, mask, named_tensors(network))
        return new

    def enforce_locks_(self) -> None:
        """Write zeros into all locked groups."""
        self.locks.enforce_(self.parameters())

    # --- compaction in training -------------------------------------------------------------------

    def adopt_(self, plan: Plan, small: nn.Module) -> None:
        """Put a compact network in the network's place; penalties and locks act on it from now on.

        Optimizers that hold the old parameters need
        :func:`~ssl_lightning.compaction.slice_optimizer_`; ``CompactDuringFit`` does all of it.

        Args:
            plan: leads from the network to ``small``; checkpoints hold all plans so far.
            small: the compact network.

        Raises:
            ValueError: if penalties do not match a network with low rank factors.
        """
        network = self.network
        sets = self.sets_of(small) if plan.factors else []
        if self.origin is None:  # penalties that name factors cannot be bound before
            early = bool(plan.factors) and self._regularizer is None
            self.origin = Origin.of(
                network, self.example_input(), [] if early else self.regularizer.group_sets
            )
        if self._make_dense is None:
            self._make_dense = maker(network)
        marks = self.locks.marks(self.parameters())
        if marks:
            marks = slice_tensors(network, plan, marks)
        self._replace(small)
        self.plans.append(plan)
        if plan.factors:
            self.origin = self.origin.with_factors(plan.factors, small, sets)
        self.locks.carry_over(marks, self.regularizer.group_sets if marks else [])

    def sets_of(self, network: nn.Module) -> list[GroupSet]:
        """Return the group sets of the penalties on another network.

        Raises:
            ValueError: as :class:`~ssl_lightning.Regularizer`.
        """
        sizes = None if self.origin is None else self.origin.group_sizes
        return Regularizer(network, self.penalties, self.example_input(), sizes).group_sets

    def masked(self) -> nn.Module:
        """Return the network with all that compaction has removed, as zeros."""
        dense = self._make_dense
        return expand(self.network, dense(), self.plans) if dense and self.plans else self.network

    def follow_(self, plan: Plan) -> None:
        """Shrink the network as a plan says, whatever its weights."""
        self.adopt_(plan, apply_plan(copy.deepcopy(self.network), plan))

    def _replace(self, network: nn.Module) -> None:
        self.module.prepare_network(network)
        if self.name:
            replace_everywhere(self.module, self.network, network)
        else:
            tables = ("_modules", "_parameters", "_buffers")  # the old view has the old ones
            vars(self.module).update({table: dict(vars(network)[table]) for table in tables})
            counts = {k: v for k, v in vars(network).items() if type(v) is int}
            vars(self.module).update(counts)  # of heads or channels, which a plan may change
            self._view = None
        self.module._metric_attributes = None  # Lightning's, of the metrics that were there
        self._controls = self.controls()
        self._regularizer = None

    def controls(self) -> Any:
        """Return the scales of the strengths as plain values; None while they are the first."""
        if self._regularizer is None:
            return self._controls
        state = self._regularizer.state_dict()
        return None if state["scales"] == self._regularizer.first_scales() else state

    def recipe(self, plan: Plan) -> Recipe:
        """Return how the network that ``plan`` leaves of the present one is made again."""
        return cast(Recipe, self.module.network_recipe()).then(*self.plans, plan)

    # --- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return locks, seed and plans as plain values."""
        return {
            "network": self.name,
            "locks": self.locks.state_dict(),
            "regularizer": self.controls(),
            "run_seed": self.run_seed,
            "plans": plans_to_data(self.plans),
            "origin": None if self.origin is None else asdict(self.origin),
        }

    def load_state_dict(self, checkpoint: Mapping[str, Any]) -> tuple[list[Plan], Origin | None]:
        """Give the network the shape that it had when a checkpoint was written; restore locks.

        Args:
            checkpoint: all of it; the weights are loaded by whoever calls.

        Returns:
            The plans and the origin of the checkpoint, for copies that follow.

        Raises:
            ValueError: if it is damaged or of another network.
        """
        stored = checkpoint.get("ssl_lightning", {})
        plans = list(read_plans(checkpoint, "the checkpoint"))
        origin, seed = read_origin(stored.get("origin")), stored.get("run_seed")
        if not (seed is None or type(seed) is int):
            raise ValueError(f"`run_seed` is damaged: expected a number, got {shortened(seed)}.")
        if stored.get("network", self.name) != self.name:
            raise ValueError(
                f"The checkpoint's sparse network is {shortened(stored['network'])} of its module, "
                f"here it is '{self.name}'. Call `sparsify` with the same name."
            )
        self.restore_plans(plans, origin)
        shapes = {name: value.shape for name, value in named_tensors(self.network).items()}
        self.locks.load_state_dict(stored.get("locks", []), shapes)
        self.run_seed = seed
        if (controls := stored.get("regularizer")) is not None:
            self._controls = controls  # for penalties that a callback may still give
            if self.penalties:
                self.regularizer.load_state_dict(controls)
        elif self.controls() is not None:
            self.regularizer.scales = self.regularizer.first_scales()
        return plans, origin

    def restore_plans(self, plans: list[Plan], origin: Origin | None) -> None:
        """Carry plans out on the network, from its dense form unless some were already."""
        if plans[: len(self.plans)] != self.plans:
            assert self._make_dense is not None  # plans are carried out by adopt_ alone
            like = next(iter(self.network.parameters()), torch.empty(0))
            dense = self._make_dense().to(like.device, like.dtype)
            self._replace(dense.train(self.network.training))
            self.plans, self.origin, self.locks = [], None, GroupLocks()
        for plan in plans[len(self.plans) :]:
            self.origin = origin
            self.follow_(plan)
