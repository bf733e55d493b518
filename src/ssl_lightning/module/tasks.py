"""What a network is trained for: its loss and its metrics, classification by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ssl_lightning.backbones import class_path

STAGES = ("fit", "val", "test")
"""Keys of the metrics of training, validation and test (``train`` is a method of modules)."""


class ErrorPercent(MulticlassAccuracy):
    """Top-1 error in percent of all predictions.

    Example:
        >>> error = ErrorPercent(num_classes=3, average="micro")
        >>> error.update(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0]))
        >>> error.compute()
        tensor(25.)
    """

    def compute(self) -> Tensor:
        """Return the error in percent."""
        return 100.0 * (1.0 - super().compute())


def make_metrics(metrics: Mapping[str, Metric] | None, num_classes: int | None) -> nn.ModuleDict:
    """Return the metrics of every stage.

    Args:
        metrics: name in logs -> metric; each stage gets a fresh copy.
        num_classes: of a classifier with one label per example, whose error is a metric too.

    Raises:
        ValueError: if something else than metrics is given, or a name that is not free.
    """
    chosen: dict[str, Metric] = {}
    for name, metric in (metrics or {}).items():
        if not isinstance(metric, Metric):
            raise ValueError(
                f"metrics: expected a torchmetrics.Metric for {name!r}, got {metric!r}. Give, such "
                "as, {f1: {class_path: torchmetrics.classification.MultilabelF1Score, init_args: "
                "{num_labels: 5}}}."
            )
        if name == "loss" or "/" in name or (name == "error" and num_classes is not None):
            raise ValueError(
                f"metrics: the name {name!r} is taken, or holds a slash: figures are logged as "
                "val/<name>. Choose another."
            )
        chosen[name] = metric
    if num_classes is not None:
        chosen["error"] = ErrorPercent(num_classes, average="micro", validate_args=False)
    return nn.ModuleDict(
        {
            stage: MetricCollection({n: m.clone() for n, m in chosen.items()}, compute_groups=False)
            for stage in STAGES
        }
    )


def task_settings(loss: nn.Module | None, metrics: Mapping[str, Metric] | None) -> dict[str, Any]:
    """Return what a checkpoint says of loss and metrics: their classes, for whoever reads it.

    Raises:
        ValueError: if they are such names themselves, as when a checkpoint is loaded without them.
    """
    for name, given in (("loss", loss), *(("metrics", m) for m in (metrics or {}).values())):
        if isinstance(given, str):
            raise ValueError(
                f"{name}: expected an object, got the name {given[:80]!r}, and no code is imported "
                "because a checkpoint names it. Give what the network was trained with: "
                "load_from_checkpoint(path, loss=..., metrics=...)."
            )
    if loss is not None and not isinstance(loss, nn.Module):
        raise ValueError(
            f"loss: expected a torch.nn.Module such as torch.nn.BCEWithLogitsLoss(), got {loss!r}."
        )
    return {
        "loss": None if loss is None else class_path(loss),
        "metrics": None if not metrics else {n: class_path(m) for n, m in metrics.items()},
    }


def check_labels(target: Tensor) -> None:
    """Refuse targets that are no class numbers: cross-entropy would take them for probabilities.

    Raises:
        ValueError: if they are not integers of shape ``(N,)``.
    """
    if target.dim() != 1 or target.is_floating_point() or target.is_complex():
        raise ValueError(
            "SSLLightningModule classifies with one label per example: expected integer targets "
            f"of shape (N,), got {target.dtype} of shape {tuple(target.shape)}. For another task, "
            "give `loss` and `metrics`, such as torch.nn.BCEWithLogitsLoss for several labels."
        )


def check_classes(logits: Tensor, target: Tensor, data: int | None) -> None:
    """Compare labels and logits of a classifier with the number of classes.

    Args:
        logits: ``(N, C)``.
        target: ``(N,)``.
        data: number of classes that the data module says.

    Raises:
        ValueError: if there are labels that have no logit, or logits that have no class.
    """
    check_labels(target)
    most = max(int(target.max()) + 1, data or 0)
    if logits.dim() != 2 or logits.shape[1] < most or (data and logits.shape[1] != data):
        raise ValueError(
            f"The backbone returns an output of shape {tuple(logits.shape)}, but the data "
            f"has {most} classes. Set `backbone_args: {{num_classes: {most}}}` (or correct "
            "the data module)."
        )


def describe_values(output: Any, target: Any) -> str:
    """Say of which shapes and types an output and a target are, for messages.

    Example:
        >>> describe_values(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
        'an output torch.float32 of shape (2, 1) and a target torch.int64 of shape (2,)'
    """
    shown = [
        f"{value.dtype} of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else type(value).__name__
        for value in (output, target)
    ]
    return f"an output {shown[0]} and a target {shown[1]}"
