"""SSLLightningModule: any backbone, trained with structured-sparsity penalties."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ssl_lightning.backbones import storable
from ssl_lightning.groups import (
    group_counts,
)
from ssl_lightning.module.backbone import CompactableModule
from ssl_lightning.module.batches import inputs_of, split_batch
from ssl_lightning.module.macs import MacsShare
from ssl_lightning.module.parts import (
    backbone_settings,
    begin_next_epoch_,
    check_labels,
    clip_unscaled,
    count_classes,
    default_optimizer,
    load_entry,
    make_backbone,
    refuse_sharding,
    refuse_spawning,
    scheduler_settings,
    set_learning_rate_,
    split_parameters,
    start_from_,
)
from ssl_lightning.penalties import parse_penalty
from ssl_lightning.zoo.loading import PREFIX

BARS = (TQDMProgressBar, RichProgressBar)
"""Progress bars that may be asked twice to show an epoch's figures."""


class SSLLightningModule(CompactableModule):
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
            1e-3}``, or :class:`~ssl_lightning.Penalty` objects.
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
        self.penalties = [parse_penalty(given) for given in penalties or []]
        self.save_hyperparameters(
            {
                **backbone_settings(backbone),
                "backbone_args": storable(backbone, backbone_args or {}),
                "penalties": [p.to_dict() for p in self.penalties],
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
        if isinstance(backbone, str) and backbone.startswith(PREFIX):
            self.backbone, self.started_from = load_entry(backbone, self.backbone_arguments)
        else:
            if num_classes is not None and isinstance(backbone, str):
                self.backbone_arguments.setdefault("num_classes", num_classes)
            self.backbone = make_backbone(backbone, self.backbone_arguments)
        self.init_from = init_from
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
        self.macs = MacsShare()
        self._batches_checked: set[str] = set()
        self._found_rates: list[tuple[dict[str, Any], float]] = []
        accuracy = MulticlassAccuracy(self.num_classes, average="micro", validate_args=False)
        self.accuracy = MetricCollection(
            {stage: accuracy.clone() for stage in ("fit", "val", "test")}, compute_groups=False
        )

    # --- the network ----------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` for images ``(N, C, H, W)``."""
        logits: Tensor = self.backbone(x.to(memory_format=self.layout) if x.dim() == 4 else x)
        return logits

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
            f"strength/{p.kind}": p.strength * factor
            for p, factor in zip(self.penalties, self.regularizer.factors(self.epoch), strict=True)
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

    # --- hooks ----------------------------------------------------------------------------------

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

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make this step's random numbers (dropout) a function of seed, epoch, batch and rank."""
        place = (self.run_seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(hash(place) & 0x7FFF_FFFF_FFFF_FFFF)

    def on_train_epoch_end(self) -> None:
        """Log the training error, and the groups and multiply-adds that are left."""
        self._log_error("fit", "train/error")
        left: dict[str, float] = {f"groups/{p.kind}": 0.0 for p in self.penalties}
        counts = group_counts(self.regularizer.group_sets, dict(self.backbone.named_parameters()))
        for group_set in self.regularizer.group_sets:
            key = f"groups/{group_set.kind}"
            left[key] = left.get(key, 0.0) + counts[group_set.name][0]
        self.log_dict(left)
        share = self.macs.share(self)
        if share is not None:
            self.log("macs/left", share, prog_bar=True)
        bar: Any = self.trainer.progress_bar_callback
        if type(bar) in BARS:  # callbacks have their turn before modules: it shows the epoch before
            bar.on_train_epoch_end(self.trainer, self)

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
