"""A LightningModule's backbone: locked groups, compact networks in its place, and checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor, nn

from ssl_lightning.backbones import storable
from ssl_lightning.checkpoints import read_plans
from ssl_lightning.compaction import Plan, apply_plan, slice_tensors
from ssl_lightning.compaction.store import Recipe, check_state, plans_to_data
from ssl_lightning.groups import GroupSet, kept_groups, nonzero_groups, zero_groups_
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.locks import GroupLocks
from ssl_lightning.measure import count_macs
from ssl_lightning.module.parts import (
    Origin,
    attached_first,
    check_tensors,
    read_origin,
    refuse_another_network,
)
from ssl_lightning.module.saving import (
    check_settings,
    entry_start,
    read_anywhere,
    whole_files_first,
)
from ssl_lightning.penalties import Attachment, Penalty, Regularizer
from ssl_lightning.suggest import shortened

WRAPPED = {
    "setup": whole_files_first,
    "on_fit_start": attached_first,
    "on_train_batch_start": attached_first,
}
"""Hook -> what returns one that first does what must be done whatever a subclass overrides."""


class CompactableModule(pl.LightningModule):
    """What :class:`SSLLightningModule` knows of its backbone, apart from how it is trained.

    Attributes:
        backbone: the network.
        backbone_arguments: what it was created with, if it was given by name.
        penalties: on groups of it.
        input_shape: of one example, ``(C, H, W)`` for images; None if it is not known.
        layout: memory format of weights and images.
        locks: groups that stay zero.
        plans: by which the backbone was compacted, in their order.
        origin: the backbone before the first of them; None without any.
        started_from: how the network of a zoo entry is made again, if training started from one.
        initialised_from: file and hash of the weights that training started from, if any.
        run_seed: on which the random numbers of training depend; None before it starts.
    """

    backbone: nn.Module
    backbone_arguments: dict[str, Any]
    penalties: list[Penalty]
    input_shape: Sequence[int] | None
    layout: torch.memory_format

    def __init__(self) -> None:
        super().__init__()
        self.locks = GroupLocks()
        self.plans: list[Plan] = []
        self.origin: Origin | None = None
        self.started_from: Recipe | None = None
        self.initialised_from: dict[str, str] | None = None
        self.run_seed: int | None = None
        self._regularizer: Regularizer | None = None
        self._attachment: Attachment | None = None
        self._attached_at: int | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Do what must be done also where a subclass overrides a hook without calling super.

        Penalties are attached, and checkpoints read and written by our own reader and writer.
        """
        super().__init_subclass__(**arguments)
        for name, wrap in WRAPPED.items():
            hook = getattr(cls, name)
            if not getattr(hook, "wrapped", False):
                setattr(cls, name, wrap(hook))

    def example_input(self) -> Tensor | None:
        """Return one example of zeros, shape ``(1, C, H, W)``, if the input shape is known."""
        if self.input_shape is None:
            return None
        like = next(
            (p for p in self.backbone.parameters() if p.is_floating_point()), torch.empty(0)
        )
        return torch.zeros(1, *self.input_shape, dtype=like.dtype, device=like.device)

    @property
    def regularizer(self) -> Regularizer:
        """The penalties, bound to the backbone (on first use: its graph may be traced)."""
        if self._regularizer is None:
            sizes = None if self.origin is None else self.origin.group_sizes
            self._regularizer = Regularizer(
                self.backbone, self.penalties, self.example_input(), sizes
            )
        return self._regularizer

    @property
    def epoch(self) -> float:
        """Fractional epoch: optimizer steps done, divided by optimizer steps per epoch.

        In manual optimization, batches are counted instead.
        """
        per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        if per_epoch in (0, float("inf")):
            return float(self.current_epoch)
        if not self.automatic_optimization:  # several optimizers may step, or not, at each batch
            return self.current_epoch + max(0, self.trainer.fit_loop.batch_idx) / per_epoch
        return self.trainer.global_step / -(-per_epoch // 1)

    def attach_penalties(self) -> None:
        """Hang penalties and locks on all optimizers of the run, unless they hang there already.

        Raises:
            ValueError: if a penalty or a lock could not act on them, or they are never stepped.
        """
        optimizers = tuple(getattr(o, "optimizer", o) for o in self.trainer.optimizers)
        now = self._attachment
        if now is not None:
            same = now.regularizer is self._regularizer and now.locks is self.locks
            if same and now.optimizers == optimizers:
                if self._attached_at is None:  # a run that is resumed knows its steps only now
                    self._attached_at = self.trainer.global_step
                now.check_called(self.trainer.global_step - self._attached_at)
                return
            now.detach()
        self._attached_at = None
        self._attachment = self.regularizer.attach(
            optimizers, epoch=lambda: self.epoch, locks=self.locks
        )

    # --- locked groups ----------------------------------------------------------------------------

    def prune_groups_(self, group_set: GroupSet, mask: Tensor, *, lock: bool) -> int:
        """Set groups to exactly zero and, with ``lock``, keep them there from now on.

        Args:
            group_set: a group set of the backbone.
            mask: ``(num_groups,)`` bool, True for the groups to zero.
            lock: whether they stay zero whatever the optimizer does.

        Returns:
            How many of them were not zero (or, with ``lock``, not locked) before.
        """
        parameters = dict(self.backbone.named_parameters())
        new = int((mask & nonzero_groups(group_set, parameters)).sum())
        trained = tuple(m for m in group_set.companions if m.parameter in parameters)
        if lock:  # first, for it may be refused
            new = self.locks.lock(replace(group_set, companions=trained), mask)
        zero_groups_(group_set, mask, named_tensors(self.backbone))
        return new

    def enforce_locks_(self) -> None:
        """Write zeros into all locked groups."""
        self.locks.enforce_(dict(self.backbone.named_parameters()))

    # --- compaction in training -------------------------------------------------------------------

    def adopt_(self, plan: Plan, small: nn.Module) -> None:
        """Put a compact network in the backbone's place; penalties and locks go on with it.

        Optimizers that hold the old parameters need
        :func:`~ssl_lightning.compaction.slice_optimizer_`; ``CompactDuringFit`` does all of it.

        Args:
            plan: leads from the backbone to ``small``; checkpoints hold all plans so far.
            small: the compact network.
        """
        if self.origin is None:
            self.origin = self._describe_backbone()
        marks = self.locks.marks(dict(self.backbone.named_parameters()))
        if marks:
            marks = slice_tensors(self.backbone, plan, marks)
        self._take_backbone(small)
        self.plans.append(plan)
        self.locks.carry_over(marks, self.regularizer.group_sets if marks else [])

    def follow_(self, plan: Plan) -> None:
        """Shrink the backbone as a plan says, whatever its weights."""
        self.adopt_(plan, apply_plan(copy.deepcopy(self.backbone), plan))

    def _take_backbone(self, backbone: nn.Module) -> None:
        if self.layout == torch.channels_last:
            backbone.to(memory_format=torch.channels_last)
        if self.hparams["compile"]:
            backbone.compile()
        self.backbone = backbone
        self._regularizer = None

    def _describe_backbone(self) -> Origin:
        counts = kept_groups(self.backbone)
        example = self.example_input()
        return Origin(
            parameters=[name for name, _ in self.backbone.named_parameters()],
            group_sizes={s.name: s.group_size for s in self.regularizer.group_sets},
            groups={
                layer: {k: of for k, (_, of) in kinds.items()} for layer, kinds in counts.items()
            },
            macs=None if example is None else count_macs(self.backbone, example),
            singles={s.layer: s.num_groups for s in self.regularizer.group_sets if s.elementwise},
        )

    def _restore_plans(self, plans: Sequence[Plan], origin: Origin | None) -> None:
        """Give the backbone the shape it had when a checkpoint was written."""
        if list(plans[: len(self.plans)]) != self.plans:
            self._start_again()
        for plan in plans[len(self.plans) :]:
            self.origin = origin
            self.follow_(plan)

    def _start_again(self) -> None:
        """Make the backbone anew, as it was before all plans."""
        if "backbone" not in self.hparams:
            raise ValueError(
                "The checkpoint was written before the network was compacted, or in another run "
                "that compacted it otherwise, and the backbone is a module given as an object, "
                "which cannot be created again. Make a new SSLLightningModule with a new backbone "
                "and load the checkpoint into that."
            )
        like = next(iter(self.backbone.parameters()))
        backbone = self._start().create().to(like.device, like.dtype)
        self._take_backbone(backbone.train(self.backbone.training))
        self.plans, self.origin, self.locks = [], None, GroupLocks()

    def _start(self) -> Recipe:
        """Return how the network is made that training started from."""
        if self.started_from is not None:
            return self.started_from
        if "backbone" not in self.hparams:  # the reader gives the network or its class
            return Recipe(self.hparams["backbone_class"], self.hparams["backbone_init_args"])
        return Recipe(
            self.hparams["backbone"], storable(self.hparams["backbone"], self.backbone_arguments)
        )

    def recipe(self, plan: Plan) -> Recipe:
        """Return how the network that ``plan`` leaves of the backbone is made again."""
        return self._start().then(*self.plans, plan)

    # --- checkpoints ------------------------------------------------------------------------------

    @_restricted_classmethod
    def load_from_checkpoint(
        cls,  # noqa: N805 - it is a classmethod
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return the module of a checkpoint; nothing is imported or opened because a file says so.

        Args:
            checkpoint_path: file that training wrote.
            map_location: of its tensors.
            hparams_file: YAML of settings that replace those in the checkpoint.
            strict: whether the tensors must be exactly those of the module.
            weights_only: ``False`` unpickles whatever the file holds, and so runs its code.
            kwargs: settings of the module that replace those in the checkpoint.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, holds anything but tensors and plain values, or does not
                fit the module.
        """
        places = (checkpoint_path, map_location, hparams_file, strict)
        load = super().load_from_checkpoint
        if weights_only is False:
            return load(*places, weights_only=False, **kwargs)
        where, content = str(checkpoint_path), read_anywhere(checkpoint_path)
        check_settings(content, kwargs, where)
        start = entry_start(content, kwargs, where)
        if start is not None:
            kwargs = {**kwargs, "backbone": start.create(), "backbone_args": None}
        try:
            module = load(*places, weights_only=True, **kwargs)
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise ValueError(
                f"{where} does not fit {cls.__name__}: {shortened(str(error), 300)}"
            ) from error
        if start is not None:
            stored = content["hyper_parameters"]
            module.hparams.update({key: stored.get(key) for key in ("backbone", "backbone_args")})
            module.started_from = start
        return module

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store locks, seed and plans; what is stored has zeros in all locked groups."""
        self.locks.enforce_(checkpoint["state_dict"], prefix="backbone.")
        data = getattr(self._trainer, "datamodule", None)
        checkpoint["ssl_lightning"] = {
            "locks": self.locks.state_dict(),
            "run_seed": self.run_seed,
            "plans": plans_to_data(self.plans),
            "origin": None if self.origin is None else asdict(self.origin),
            "initialised_from": self.initialised_from,
            "data": type(data).__name__ if data is not None else None,
        }
        if self.started_from is not None:  # so that the checkpoint can be read without the zoo
            checkpoint["ssl_lightning"]["started_from"] = self.started_from.to_json()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore plans, locks and seed, after checking that the weights are numbers."""
        check_state(checkpoint["state_dict"], "the checkpoint")
        refuse_another_network(checkpoint.get("hyper_parameters", {}), self.hparams)
        stored = checkpoint.get("ssl_lightning", {})
        plans = read_plans(checkpoint, "the checkpoint")
        origin, seed = read_origin(stored.get("origin")), stored.get("run_seed")
        if not (seed is None or type(seed) is int):
            raise ValueError(f"`run_seed` is damaged: expected a number, got {shortened(seed)}.")
        for module in (self, *averaged_copies(self._trainer)):
            module._restore_plans(plans, origin)
        check_tensors(
            checkpoint["state_dict"],
            self.state_dict(),
            complete=self._trainer is not None and self.strict_loading,
        )
        shapes = {name: value.shape for name, value in named_tensors(self.backbone).items()}
        self.locks.load_state_dict(stored.get("locks", []), shapes)
        self.run_seed = seed
        self.initialised_from = stored.get("initialised_from")


def averaged_copies(trainer: pl.Trainer | None) -> Iterator[CompactableModule]:
    """Yield the copies of the module in which Lightning's averaging callbacks keep averages."""
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, (WeightAveraging, StochasticWeightAveraging)):
            average = getattr(callback._average_model, "module", callback._average_model)
            if isinstance(average, CompactableModule):
                yield average
