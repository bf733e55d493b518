"""Sparsify: the network and its penalties, chosen in a config."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from ssl_lightning.module import StructuredSparsity


class Sparsify(Callback):
    """Call ``sparsify`` of a module with the mixin, so that a config holds the penalties.

    It is the first in the list of callbacks. A module that calls ``sparsify`` itself needs none.

    Args:
        network: qualified name of the submodule that becomes sparse; ``""`` for the module itself.
        penalties: mappings such as ``{kind: filter, layers: "conv*", strength: 1e-3}``.
        input_shape: shape of one example of the network's input, such as ``[3, 224, 224]``.
        seed_batches: as :meth:`StructuredSparsity.sparsify` takes it.

    Raises:
        MisconfigurationException: when a stage is set up, for a module without the mixin.
        ValueError: as :meth:`StructuredSparsity.sparsify`.

    Example:
        >>> Sparsify("backbone", [{"kind": "filter", "strength": 1e-3}]).settings["network"]
        'backbone'
    """

    def __init__(
        self,
        network: str = "",
        penalties: list[dict[str, Any]] | None = None,
        input_shape: list[int] | None = None,
        seed_batches: bool = True,
    ) -> None:
        self.settings: dict[str, Any] = {
            "network": network,
            "penalties": penalties or [],
            "input_shape": input_shape,
            "seed_batches": seed_batches,
        }

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Sparsify the module, before any of its stages."""
        if not isinstance(pl_module, StructuredSparsity):
            name = type(pl_module).__name__
            raise MisconfigurationException(
                f"Sparsify: expected a LightningModule with the mixin StructuredSparsity, got "
                f"{name}. Write `class Sparse{name}(StructuredSparsity, {name})`."
            )
        pl_module.sparsify(**self.settings)
