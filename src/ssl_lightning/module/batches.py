"""What a batch of a data loader holds: inputs and targets, in the forms that data sets come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

INPUT_KEYS = ("image", "images", "pixel_values", "input", "inputs", "x")
TARGET_KEYS = ("label", "labels", "target", "targets", "y")
"""Names under which data sets give inputs and targets in a mapping."""


def split_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the inputs ``(N, ...)`` and targets ``(N,)`` of a batch.

    Args:
        batch: a tuple or list that begins with both (what follows, an index or a path, is not
            used), or a mapping with one of :data:`INPUT_KEYS` and one of :data:`TARGET_KEYS`.

    Raises:
        ValueError: for anything else, saying what came.

    Example:
        >>> import torch
        >>> x, y = split_batch({"pixel_values": torch.zeros(2, 3), "labels": torch.tensor([0, 1])})
        >>> x.shape, y.tolist()
        (torch.Size([2, 3]), [0, 1])
    """
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        pair = batch[0], batch[1]
    elif isinstance(batch, Mapping):
        pair = only_key(batch, INPUT_KEYS), only_key(batch, TARGET_KEYS)
    else:
        pair = batch, None
    if not all(isinstance(part, Tensor) for part in pair):
        raise ValueError(
            "SSLLightningModule: expected batches (inputs, targets, ...) of tensors, or a mapping "
            f"with one of {', '.join(INPUT_KEYS)} and one of {', '.join(TARGET_KEYS)}, got "
            f"{described(batch)}. Let the data loader give that, or override split_batch()."
        )
    return pair


def inputs_of(batch: Any) -> Tensor:
    """Return the inputs of a batch that may have no targets, as for prediction.

    Raises:
        ValueError: if there are none.

    Example:
        >>> import torch
        >>> inputs_of(torch.zeros(2, 3)).shape, inputs_of([torch.zeros(4)]).shape
        (torch.Size([2, 3]), torch.Size([4]))
    """
    found = batch
    if isinstance(batch, (tuple, list)) and batch:
        found = batch[0]
    elif isinstance(batch, Mapping):
        found = only_key(batch, INPUT_KEYS)
    if not isinstance(found, Tensor):
        raise ValueError(
            "SSLLightningModule: expected a batch of inputs: a tensor, a tuple that begins with "
            f"one, or a mapping with one of {', '.join(INPUT_KEYS)}, got {described(batch)}."
        )
    return found


def only_key(batch: Mapping[Any, Any], keys: tuple[str, ...]) -> Any:
    """Return the value under the one of ``keys`` that a mapping has; None for none or several."""
    found = [batch[key] for key in keys if key in batch]
    return found[0] if len(found) == 1 else None


def described(batch: Any) -> str:
    """Say what a batch is, without its values.

    Example:
        >>> described({"a": 1}), described([1, 2]), described("x")
        ("a dict with the keys 'a'", 'a list of int, int', 'a str')
    """
    name = type(batch).__name__
    if isinstance(batch, Mapping):
        return f"a {name} with the keys {', '.join(map(repr, list(batch)[:8]))}"
    if isinstance(batch, (tuple, list)):
        return f"a {name} of {', '.join(type(part).__name__ for part in batch[:8]) or 'nothing'}"
    return f"a {name}"
