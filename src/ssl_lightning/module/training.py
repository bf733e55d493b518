"""SSLLightningModule: any backbone, trained with structured-sparsity penalties."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, Self

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ssl_lightning.backbones import storable
from ssl_lightning.checkpoints import read_plans
from ssl_lightning.compaction import Plan, apply_plan, slice_tensors
from ssl_lightning.compaction.store import Recipe, check_state, plans_to_data
from ssl_lightning.groups import (
    GroupSet,
    group_counts,
    kept_groups,
    nonzero_groups,
    zero_groups_,
)
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.locks import GroupLocks
from ssl_lightning.measure import count_macs
from ssl_lightning.module.batches import inputs_of, split_batch
from ssl_lightning.module.macs import MacsShare
from ssl_lightning.module.parts import (
    Origin,
    attached_first,
    backbone_settings,
    begin_next_epoch_,
    check_labels,
    check_tensors,
    clip_unscaled,
    count_classes,
    default_optimizer,
    load_entry,
    make_backbone,
    read_origin,
    refuse_another_network,
    refuse_sharding,
    refuse_spawning,
    scheduler_settings,
    set_learning_rate_,
    split_parameters,
    start_from_,
)
from ssl_lightning.module.saving import (
    check_settings,
    entry_start,
    read_anywhere,
    save_whole_files_,
)
from ssl_lightning.penalties import (
    Attachment,
    GroupLasso,
    Penalty,
    Regularizer,
    parse_penalty,
    penalty_name,
    penalty_to_dict,
)
from ssl_lightning.suggest import shortened
from ssl_lightning.zoo.loading import PREFIX

ATTACHING_HOOKS = ("on_fit_start", "on_train_batch_start")
"""Hooks before which the penalties are attached to the optimizers of the run."""


class SSLLightningModule(pl.LightningModule):
    """Train a classifier with structured-sparsity penalties.

    Works with gradient accumulation, clipping, mixed precision, several parameter groups, manual
    optimization and subclasses' own ``configure_optimizers``: penalties and locks hang on the
    optimizers of the run, whoever made them (:meth:`ssl_lightning.penalties.Regularizer.attach`).
    Random numbers of a training step depend on the seed,
    the epoch and the batch only, so that a resumed run continues as if it had never stopped.

    Logs ``train/loss`` (task loss), ``train/error``, ``val/loss``, ``val/error``, ``test/error``
    (percent), per kind ``penalty/<kind>``, ``strength/<kind>`` and ``groups/<kind>`` (left), and
    ``macs/left``: the multiply-adds that compaction would leave now, in percent of the network's
    that training started with.

    Args:
        backbone: name for :func:`~ssl_lightning.create_backbone`; ``zoo:<name>`` for an entry of
            the zoo with its weights; or any module that maps a batch to logits
            ``(N, num_classes)``.
        backbone_args: arguments for the named backbone; of an entry ``pretrained: false`` for the
            small network with fresh weights, and ``root``.
        penalties: what to penalise: mappings such as ``{kind: filter, layers: "conv*", strength:
            1e-3}``, or :class:`~ssl_lightning.GroupLasso` and :class:`~ssl_lightning.L1` objects.
        optimizer: makes the optimizer from parameters.
        lr_scheduler: makes the learning-rate scheduler from the optimizer.
        lr_interval: step the scheduler per ``"epoch"`` or per ``"step"``.
        parameter_groups: mappings with a glob ``parameters`` on parameter names and the optimizer
            settings for them; the first that matches counts, the rest get the defaults.
        input_shape: ``(C, H, W)`` of one example; needed for backbones that do not tell it.
        num_classes: number of classes; needed for backbones that do not tell it.
        label_smoothing: of the training loss.
        channels_last: keep weights and images in channels-last layout, which is faster on CPUs.
        compile: run the backbone through ``torch.compile``.
        init_from: a checkpoint that ``fit`` wrote, such as
            ``runs/dense/checkpoints/last.ckpt``, or ``zoo:<name>``: its weights, and nothing else
            of that run, are taken when training starts. Checkpoints hold the file's hash; a run
            that is resumed does not read it again.

    Raises:
        ValueError: for an unknown backbone, kind or key, or a strength below 0.

    Reference:
        Wen et al., Learning Structured Sparsity in Deep Neural Networks, NIPS 2016.

    Example:
        >>> module = SSLLightningModule(
        ...     "lenet", penalties=[{"kind": "filter", "layers": "conv*", "strength": 1e-3}]
        ... )
        >>> module(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        backbone: str | nn.Module = "lenet",
        backbone_args: dict[str, Any] | None = None,
        penalties: list[Any] | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        parameter_groups: list[dict[str, Any]] | None = None,
        input_shape: list[int] | None = None,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002 - the field's name for it
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        self.penalties: list[Penalty] = [parse_penalty(given) for given in penalties or []]
        self.save_hyperparameters(
            {
                **backbone_settings(backbone),
                "backbone_args": storable(backbone, backbone_args or {}),
                "penalties": [penalty_to_dict(p) for p in self.penalties],
                "lr_interval": lr_interval,
                "parameter_groups": parameter_groups,
                "input_shape": None if input_shape is None else list(input_shape),
                "num_classes": num_classes,
                "label_smoothing": label_smoothing,
                "channels_last": channels_last,
                "compile": compile,
            }
        )
        self.backbone_arguments = dict(backbone_args or {})
        self.started_from: Recipe | None = None
        if isinstance(backbone, str) and backbone.startswith(PREFIX):
            self.backbone, self.started_from = load_entry(backbone, self.backbone_arguments)
        else:
            if num_classes is not None and isinstance(backbone, str):
                self.backbone_arguments.setdefault("num_classes", num_classes)
            self.backbone = make_backbone(backbone, self.backbone_arguments)
        self.init_from = init_from
        self.initialised_from: dict[str, str] | None = None
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.parameter_groups = parameter_groups or []
        self.input_shape = input_shape or getattr(self.backbone, "input_shape", None)
        self.num_classes = num_classes or count_classes(self.backbone)
        self.label_smoothing = label_smoothing
        self.layout = torch.channels_last if channels_last else torch.preserve_format
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        if compile:
            self.backbone.compile()
        self.locks = GroupLocks()
        self.plans: list[Plan] = []
        self.origin: Origin | None = None
        self.macs = MacsShare()
        self.run_seed: int | None = None
        self._regularizer: Regularizer | None = None
        self._attachment: Attachment | None = None
        self._attached_at = 0
        self._batches_checked: set[str] = set()
        self._found_rates: list[tuple[dict[str, Any], float]] = []
        accuracy = MulticlassAccuracy(self.num_classes, average="micro", validate_args=False)
        self.accuracy = MetricCollection(
            {stage: accuracy.clone() for stage in ("fit", "val", "test")}, compute_groups=False
        )

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Attach the penalties also where a subclass overrides a hook without calling super."""
        super().__init_subclass__(**arguments)
        for name in ATTACHING_HOOKS:
            hook = getattr(cls, name)
            if not getattr(hook, "attaches", False):
                setattr(cls, name, attached_first(hook))

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

    # --- the network ----------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, C, H, W)``."""
        logits: Tensor = self.backbone(x.to(memory_format=self.layout) if x.dim() == 4 else x)
        return logits

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

    # --- steps ----------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the task loss; the penalties act through their gradients and proximal steps."""
        x, target = self.split_batch(batch)
        logits = self(x)
        self._check_classes("train", logits, target)
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        self._check_finite(loss, batch_idx)
        self.accuracy["fit"].update(logits.detach(), target)
        if self._logs_now():
            self.log("train/loss", loss.detach(), prog_bar=True)
            if self.penalties:
                self._log_penalties()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Accumulate the validation loss and error."""
        self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Accumulate the test loss and error."""
        self._evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return class probabilities ``(N, num_classes)``."""
        logits: Tensor = self(inputs_of(batch))
        return logits.softmax(1)

    def split_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a batch; override it for batches of another form.

        Raises:
            ValueError: if it is neither a tuple or list of at least two tensors nor a mapping with
                the usual keys (:mod:`ssl_lightning.module.batches`).
        """
        return split_batch(batch)

    def _evaluate(self, stage: str, batch: Any) -> None:
        x, target = self.split_batch(batch)
        logits = self(x)
        self._check_classes(stage, logits, target)
        self.accuracy[stage].update(logits, target)
        loss = F.cross_entropy(logits, target)
        self.log(f"{stage}/loss", loss, batch_size=len(target), sync_dist=True)

    def _logs_now(self) -> bool:
        """Whether this is one of the steps at which the trainer's loggers write."""
        every = getattr(self.trainer, "log_every_n_steps", 0)
        return every > 0 and self.trainer.global_step % every == 0

    def _log_error(self, stage: str, name: str) -> None:
        """Log the error in percent, if any prediction was counted."""
        if not self.accuracy[stage].update_called:
            return
        error = 100.0 * (1.0 - self.accuracy[stage].compute())
        self.accuracy[stage].reset()
        self.log(name, error, prog_bar=True)

    def _log_penalties(self) -> None:
        values = self.regularizer.values(self.epoch)
        self.log_dict({f"penalty/{kind}": value for kind, value in values.items()})
        strengths = {
            f"strength/{penalty_name(p)}": p.strength * p.schedule(self.epoch)
            for p in self.penalties
        }
        self.log_dict(strengths)

    # --- checks ---------------------------------------------------------------------------------

    def _check_finite(self, loss: Tensor, batch_idx: int) -> None:
        if loss.device.type != "cpu" and not self._logs_now():
            return  # asking would wait for the device
        if not bool(torch.isfinite(loss)):
            rates = sorted({g["lr"] for o in self.trainer.optimizers for g in o.param_groups})
            raise ValueError(
                f"The training loss is {loss.item()} in epoch {self.current_epoch}, batch "
                f"{batch_idx} (learning rate {', '.join(f'{rate:g}' for rate in rates)}). Lower "
                "the learning rate, clip gradients (--trainer.gradient_clip_val), or look at "
                "that batch."
            )

    def _check_classes(self, stage: str, logits: Tensor, target: Tensor) -> None:
        """Compare labels and logits with the number of classes, once per stage."""
        if stage in self._batches_checked:
            return
        self._batches_checked.add(stage)
        check_labels(target)
        data = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
        most = max(int(target.max()) + 1, data or 0)
        if logits.dim() != 2 or logits.shape[1] < most or (data and logits.shape[1] != data):
            raise ValueError(
                f"The backbone returns an output of shape {tuple(logits.shape)}, but the data "
                f"has {most} classes. Set `backbone_args: {{num_classes: {most}}}` (or correct "
                "the data module)."
            )

    # --- optimization ---------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Bind the penalties before training starts, so that mistakes show early."""
        save_whole_files_(self.trainer.strategy)
        if stage == "fit":
            refuse_sharding(self.trainer.strategy)
            refuse_spawning(self.trainer.strategy)
            self._learn_input_shape(getattr(self.trainer, "datamodule", None))
            assert self.regularizer is not None

    def configure_optimizers(self) -> Any:
        """Make the optimizer and scheduler."""
        names = () if self.origin is None else self.origin.parameters
        parameters = split_parameters(self.backbone, self.parameter_groups, names)
        optimizer = self.make_optimizer(parameters)
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": scheduler_settings(scheduler, self.lr_interval),
        }

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group; setting it sets all, and the schedulers'.

        What Lightning's ``LearningRateFinder`` reads and sets.

        Raises:
            AttributeError: while there is no optimizer.
        """
        optimizers = self._trainer.optimizers if self._trainer is not None else []
        if not optimizers:
            raise AttributeError("SSLLightningModule has no learning rate before fit starts.")
        return float(optimizers[0].param_groups[0]["lr"])

    @lr.setter
    def lr(self, rate: float) -> None:
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        self._found_rates = set_learning_rate_(self.trainer.optimizers, schedulers, rate)

    def _learn_input_shape(self, datamodule: Any) -> None:
        """Take the shape of one example from the data module, unless it was given."""
        shape = getattr(datamodule, "input_shape", None)
        if self.hparams["input_shape"] is None and shape is not None:
            self.input_shape = list(shape)
            self.hparams["input_shape"] = list(shape)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of the task loss; penalties are added later, unclipped."""
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            # Its own method refuses fused optimizers, which unscale inside; here nothing is scaled.
            clip_unscaled(plugin, optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

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
                now.check_called(self.trainer.global_step - self._attached_at)
                return
            now.detach()
        self._attached_at = self.trainer.global_step
        self._attachment = self.regularizer.attach(
            optimizers, epoch=lambda: self.epoch, locks=self.locks
        )

    # --- locked groups --------------------------------------------------------------------------

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
        zero_groups_(group_set, mask, named_tensors(self.backbone))
        trained = tuple(m for m in group_set.companions if m.parameter in parameters)
        return self.locks.lock(replace(group_set, companions=trained), mask) if lock else new

    def enforce_locks_(self) -> None:
        """Write zeros into all locked groups."""
        self.locks.enforce_(dict(self.backbone.named_parameters()))

    # --- compaction in training -----------------------------------------------------------------

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
            singles={s.layer: s.num_groups for s in self.regularizer.single_weights()},
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

    # --- hooks ----------------------------------------------------------------------------------

    @attached_first
    def on_fit_start(self) -> None:
        """Take the weights to start from; fix the seed of every step's random numbers."""
        if not self.backbone.training:  # as a network that was loaded; frozen parts keep their mode
            self.backbone.train()
        if self.init_from is not None and self.initialised_from is None:  # else it is resumed
            self.initialised_from = start_from_(self.backbone, self.init_from)
        if not getattr(self.trainer, "fast_dev_run", False):
            self.regularizer.check_active(self.trainer.max_epochs)
        if self.run_seed is None:
            self.run_seed = torch.initial_seed()
        self._batches_checked.clear()

    def on_train_start(self) -> None:
        """Begin to count: what a search for the learning rate or batch size did is forgotten."""
        for metric in self.accuracy.values():
            metric.reset()
        begin_next_epoch_(self.trainer.fit_loop)
        for group, rate in self._found_rates:
            group["lr"] = rate
        self._found_rates = []

    @attached_first
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make this step's random numbers (dropout) a function of seed, epoch, batch and rank."""
        place = (self.run_seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(hash(place) & 0x7FFF_FFFF_FFFF_FFFF)

    def on_train_epoch_end(self) -> None:
        """Log the training error, and the groups and multiply-adds that are left."""
        self._log_error("fit", "train/error")
        left: dict[str, float] = {
            f"groups/{penalty_name(p)}": 0.0 for p in self.penalties if isinstance(p, GroupLasso)
        }
        counts = group_counts(self.regularizer.group_sets, dict(self.backbone.named_parameters()))
        for group_set in self.regularizer.group_sets:
            key = f"groups/{group_set.kind}"
            left[key] = left.get(key, 0.0) + counts[group_set.name][0]
        self.log_dict(left)
        share = self.macs.share(self)
        if share is not None:
            self.log("macs/left", share, prog_bar=True)

    def on_validation_epoch_start(self) -> None:
        """Averaged weights, swapped in for validation, keep locked groups at zero too."""
        self.enforce_locks_()

    def on_validation_epoch_end(self) -> None:
        """Log the validation error."""
        self._log_error("val", "val/error")

    def on_test_epoch_end(self) -> None:
        """Log the test error."""
        self._log_error("test", "test/error")

    def on_train_end(self) -> None:
        """Averaged weights, copied in at the end, keep locked groups at zero too."""
        self.enforce_locks_()

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


def averaged_copies(trainer: pl.Trainer | None) -> Iterator[SSLLightningModule]:
    """Yield the copies of the module in which Lightning's averaging callbacks keep averages."""
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, (WeightAveraging, StochasticWeightAveraging)):
            average = getattr(callback._average_model, "module", callback._average_model)
            if isinstance(average, SSLLightningModule):
                yield average
