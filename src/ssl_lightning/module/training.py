"""SSLLightningModule: any backbone, trained for a task with structured-sparsity penalties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from ssl_lightning.backbones import storable
from ssl_lightning.compaction.store import Recipe
from ssl_lightning.module.batches import inputs_of, split_batch
from ssl_lightning.module.hooks import logs_now, shortcut, sparsity_of
from ssl_lightning.module.mixin import StructuredSparsity
from ssl_lightning.module.parts import (
    backbone_settings,
    clip_task_gradient,
    count_classes,
    default_optimizer,
    make_backbone,
    refuse_another_network,
    scheduler_settings,
    set_learning_rate_,
    split_parameters,
    start_from_,
)
from ssl_lightning.module.saving import load_safely
from ssl_lightning.module.tasks import (
    check_classes,
    check_finite,
    describe_values,
    make_metrics,
    task_settings,
)
from ssl_lightning.penalties import parse_penalty
from ssl_lightning.zoo.loading import PREFIX, load_entry

BARS = (TQDMProgressBar, RichProgressBar)
"""Progress bars that may be asked twice to show an epoch's figures."""


class SSLLightningModule(StructuredSparsity):
    """Train a backbone for a task with structured-sparsity penalties; by default a classifier.

    A task module on top of :class:`StructuredSparsity`, which see for what is logged of sparsity:
    it makes the backbone and the optimizer, and computes loss and metrics. Works with gradient
    accumulation, clipping, mixed precision, several parameter groups, manual optimization and
    subclasses' own ``configure_optimizers``.

    Logs ``train/loss``, ``val/loss``, ``test/loss``, and for each metric ``train/<name>``,
    ``val/<name>``, ``test/<name>``. A classifier has the metric ``error``, in percent.

    Args:
        backbone: name for :func:`~ssl_lightning.create_backbone`; ``zoo:<name>`` for an entry of
            the zoo with its weights; or any module that maps a batch to what the loss
            takes, logits ``(N, num_classes)`` by default.
        backbone_args: arguments for the named backbone; of an entry ``pretrained: false`` for the
            small network with fresh weights, and ``root``.
        penalties: what to penalise: mappings such as ``{kind: filter, layers: "conv*", strength:
            1e-3}``, or :class:`~ssl_lightning.Penalty` objects.
        optimizer: makes the optimizer from parameters.
        lr_scheduler: makes the learning-rate scheduler from the optimizer.
        lr_interval: step the scheduler per ``"epoch"`` or per ``"step"``.
        parameter_groups: mappings with a glob ``parameters`` on parameter names and the optimizer
            settings for them; the first that matches counts, the rest get the defaults.
        input_shape: ``(C, H, W)`` of one example; needed for backbones without that attribute.
        num_classes: number of classes; needed for classifiers without that attribute.
        label_smoothing: of the classifier's training loss.
        channels_last: keep weights and images in channels-last layout, which is faster on CPUs.
        compile: run the backbone through ``torch.compile``.
        loss: maps the backbone's output and the target to a scalar, such as
            ``torch.nn.BCEWithLogitsLoss()``. By default cross-entropy of a classifier with one
            label per example.
        metrics: name -> torchmetrics metric of output and target.
        seed_batches: whether torch's random generators are seeded at each training batch, so that
            a resumed run is the same as a whole one (see :class:`StructuredSparsity`).
        init_from: a checkpoint that ``fit`` wrote, such as
            ``runs/dense/checkpoints/last.ckpt``, a file of weights (``.safetensors``, or what
            ``torch.save(net.state_dict(), "net.pt")`` writes), or ``zoo:<name>``: its weights, and
            nothing else of that run, are taken when training starts. Checkpoints hold the file's
            hash; a run that is resumed does not read it again.

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

    regularizer, locks, plans = map(shortcut, ("regularizer", "locks", "plans"))
    started_from: Recipe | None = None
    initialised_from: dict[str, str] | None = None

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
        loss: nn.Module | None = None,
        metrics: dict[str, Metric] | None = None,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002 - the field's name for it
        seed_batches: bool = True,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            {
                **backbone_settings(backbone),
                "backbone_args": storable(backbone, backbone_args or {}),
                "penalties": [parse_penalty(p).to_dict() for p in penalties or []],
                "lr_interval": lr_interval,
                "parameter_groups": parameter_groups,
                "input_shape": None if input_shape is None else list(input_shape),
                "num_classes": num_classes,
                "label_smoothing": label_smoothing,
                **task_settings(loss, metrics),
                "channels_last": channels_last,
                "compile": compile,
                "seed_batches": seed_batches,
            }
        )
        self.backbone = self._make_backbone(backbone, dict(backbone_args or {}), num_classes)
        self.init_from, self.lr_interval = init_from, lr_interval
        self.make_optimizer, self.make_lr_scheduler = optimizer, lr_scheduler
        self.parameter_groups = parameter_groups or []
        self.input_shape = input_shape or getattr(self.backbone, "input_shape", None)
        self.classifies = loss is None
        self.loss, self.label_smoothing = loss, label_smoothing
        self.num_classes = num_classes or (count_classes(self.backbone) if loss is None else None)
        self.metrics = make_metrics(metrics, self.num_classes if loss is None else None)
        self.layout = torch.channels_last if channels_last else torch.preserve_format
        self.prepare_network(self.backbone)
        self._batches_checked, self._found_rates = set[str](), list[tuple[dict[str, Any], float]]()
        self.sparsify("backbone", penalties or [], seed_batches=seed_batches)
        sparsity_of(self).example = self._example

    def _make_backbone(
        self, backbone: str | nn.Module, arguments: dict[str, Any], num_classes: int | None
    ) -> nn.Module:
        self.backbone_arguments = arguments
        if isinstance(backbone, str) and backbone.startswith(PREFIX):
            network, self.started_from = load_entry(backbone, arguments)
            return network.train()
        if num_classes is not None and isinstance(backbone, str):
            arguments.setdefault("num_classes", num_classes)
        return make_backbone(backbone, arguments)

    def _example(self) -> Tensor | None:
        return None if self.input_shape is None else torch.zeros(1, *self.input_shape)

    def prepare_network(self, network: nn.Module) -> None:
        """Give a network the memory format and the compilation that were asked for."""
        if self.layout == torch.channels_last:
            network.to(memory_format=torch.channels_last)
        if self.hparams["compile"]:
            network.compile()

    def network_recipe(self) -> Recipe:
        """Return how the backbone that training started from is made again."""
        if self.started_from is not None:
            return self.started_from
        if "backbone" not in self.hparams:  # the reader gives the network or its class
            return Recipe(self.hparams["backbone_class"], self.hparams["backbone_init_args"])
        name = self.hparams["backbone"]
        return Recipe(name, storable(name, self.backbone_arguments))

    def forward(self, x: Tensor) -> Any:
        """Return the backbone's output, logits ``(N, num_classes)`` for images ``(N, C, H, W)``."""
        return self.backbone(x.to(memory_format=self.layout) if x.dim() == 4 else x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the task loss; the penalties act through their gradients and proximal steps."""
        loss, _ = self._measure("fit", batch)
        check_finite(self, loss, batch_idx)
        if logs_now(self.trainer):
            self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Accumulate the validation loss and metrics."""
        self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Accumulate the test loss and metrics."""
        self._evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return a classifier's probabilities ``(N, num_classes)``; else the backbone's output."""
        output = self(inputs_of(batch))
        return output.softmax(1) if self.classifies else output

    def split_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a batch; override it for batches of another form.

        Raises:
            ValueError: if it is neither a tuple or list of at least two tensors nor a mapping with
                the usual keys (:mod:`ssl_lightning.module.batches`).
        """
        return split_batch(batch)

    def _measure(self, stage: str, batch: Any) -> tuple[Tensor, int]:
        """Return the loss of a batch and its size, after updating the metrics of the stage."""
        x, target = self.split_batch(batch)
        output = self(x)
        first = stage not in self._batches_checked
        self._batches_checked.add(stage)
        if self.classifies and first:
            data = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
            check_classes(output, target, data)
        try:
            loss = self._loss(stage, output, target)
            metrics: Any = self.metrics[stage]
            metrics.update(output.detach() if isinstance(output, Tensor) else output, target)
        except (ValueError, RuntimeError, TypeError) as error:
            if not first or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"Loss or metrics do not fit the first batch, which has "
                f"{describe_values(output, target)}: {error}"
            ) from error
        return loss, len(target)

    def _loss(self, stage: str, output: Any, target: Tensor) -> Tensor:
        if self.loss is not None:
            loss: Tensor = self.loss(output, target)
            return loss
        smoothing = self.label_smoothing if stage == "fit" else 0.0
        return F.cross_entropy(output, target, label_smoothing=smoothing)

    def _evaluate(self, stage: str, batch: Any) -> None:
        loss, size = self._measure(stage, batch)
        self.log(f"{stage}/loss", loss, batch_size=size, sync_dist=True)

    def _log_metrics(self, stage: str, name: str) -> None:
        """Log the metrics of a stage, if any prediction was counted, and begin anew."""
        metrics: Any = self.metrics[stage]
        if any(metric.update_called for metric in metrics.values()):
            for metric, value in metrics.compute().items():
                self.log(f"{name}/{metric}", value, prog_bar=True)
            metrics.reset()

    def setup(self, stage: str) -> None:
        """Learn the shape of one example from the data, before the penalties are bound."""
        shape = getattr(getattr(self.trainer, "datamodule", None), "input_shape", None)
        if stage == "fit" and self.hparams["input_shape"] is None and shape is not None:
            self.input_shape = list(shape)
            self.hparams["input_shape"] = list(shape)

    def configure_optimizers(self) -> Any:
        """Make the optimizer and scheduler."""
        origin = sparsity_of(self).origin
        names = () if origin is None else origin.parameters
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

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of the task loss; penalties are added later, unclipped."""
        clip_task_gradient(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_fit_start(self) -> None:
        """Take the weights to start from."""
        if not self.backbone.training:  # as a network that was loaded; frozen parts keep their mode
            self.backbone.train()
        if self.init_from is not None and self.initialised_from is None:  # else it is resumed
            self.initialised_from = start_from_(self.backbone, self.init_from)
        self._batches_checked.clear()

    def on_train_start(self) -> None:
        """Begin to count: what a search for the learning rate or batch size did is forgotten."""
        stages: Any = self.metrics.values()
        for metrics in stages:
            metrics.reset()
        for group, rate in self._found_rates:
            group["lr"] = rate
        self._found_rates = []

    def on_train_epoch_end(self) -> None:
        """Log the training metrics."""
        self._log_metrics("fit", "train")
        bar: Any = self.trainer.progress_bar_callback
        if type(bar) in BARS:  # callbacks have their turn before modules: it shows the epoch before
            bar.on_train_epoch_end(self.trainer, self)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_metrics("val", "val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_metrics("test", "test")

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
            kwargs: settings of the module that replace those in the checkpoint; ``loss`` and
                ``metrics``, if it was trained with such, must be given.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, holds anything but tensors and plain values, or does not
                fit the module.
        """
        places = (checkpoint_path, map_location, hparams_file, strict)
        load = super().load_from_checkpoint
        if weights_only is False:
            return load(*places, weights_only=False, **kwargs)
        module: Self = load_safely(cls, load, places, kwargs)
        return module

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store where the weights came from, and the name of the data."""
        data = getattr(self._trainer, "datamodule", None)
        checkpoint["ssl_lightning"] |= {
            "initialised_from": self.initialised_from,
            "data": type(data).__name__ if data is not None else None,
            "num_processes": self._trainer.world_size if self._trainer is not None else 1,
        }
        if self.started_from is not None:  # so that the checkpoint can be read without the zoo
            checkpoint["ssl_lightning"]["started_from"] = self.started_from.to_json()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore where the weights came from."""
        self.initialised_from = checkpoint.get("ssl_lightning", {}).get("initialised_from")

    def check_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of the user's own network for a module that made one by name."""
        refuse_another_network(checkpoint.get("hyper_parameters", {}), self.hparams)
