"""What a classifier answers, image by image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_lightning.measure.macs import evaluating


class Predictions(NamedTuple):
    """The outputs of a classifier and the true classes.

    Attributes:
        logits: float32 ``(N, K)``, before the softmax.
        labels: int64 ``(N,)``.

    Example:
        >>> Predictions(torch.eye(3), torch.tensor([0, 1, 1])).wrong().tolist()
        [False, False, True]
    """

    logits: Tensor
    labels: Tensor

    def wrong(self) -> Tensor:
        """Return which images are classified wrongly, bool ``(N,)``."""
        return self.logits.argmax(1) != self.labels

    def losses(self) -> Tensor:
        """Return the negative log-likelihood of each image, nats, float64 ``(N,)``."""
        return nn.functional.cross_entropy(self.logits.double(), self.labels, reduction="none")

    def divided(self, temperature: float) -> Predictions:
        """Return the predictions with their outputs divided by a temperature."""
        return Predictions(self.logits / temperature, self.labels)


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Predictions:
    """Run a classifier in eval mode.

    Args:
        model: gives ``(B, K)``.
        batches: inputs ``(B, ...)`` and classes ``(B,)``.

    Raises:
        ValueError: if there are no images, or outputs are not finite.

    Example:
        >>> predict(nn.Identity(), [(torch.eye(2), torch.tensor([0, 1]))] * 2).logits.shape
        torch.Size([4, 2])
    """
    with evaluating(model):
        found = [(model(x).float(), labels) for x, labels in batches]
    if not found:
        raise ValueError("predict: expected images, got none. Give data that has some.")
    logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    each = logits.reshape(len(labels), -1)
    lost = (each.isnan() | each.isposinf()).any(1) | ~each.isfinite().any(1)  # -inf: left out
    if odd := int(lost.sum()):
        raise ValueError(
            f"predict: expected finite outputs of {type(model).__name__}, got others for {odd} of "
            f"{len(labels)} images. Give a network whose training did not diverge."
        )
    return Predictions(logits, labels)
