"""Checkpoints that are whole, or not there: written beside their name, flushed, then renamed."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.strategies import Strategy

from ssl_lightning.files import replacing


class WholeFiles(TorchCheckpointIO):
    """Write checkpoints beside their final name, on the same file system.

    Lightning's own writer goes over ``TMPDIR`` and copies from there, so that a killed run, or a
    full disk, leaves a truncated file where the checkpoint before was.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; of remote paths Lightning takes care itself.

        Raises:
            DiskFullError: if there is no space; what was at ``path`` before is unchanged.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


def save_whole_files_(strategy: Strategy) -> None:
    """Let a trainer write checkpoints by :class:`WholeFiles`, unless it has a writer of its own."""
    writer = strategy.checkpoint_io
    if type(writer) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeFiles()
    elif isinstance(writer, _WrappingCheckpointIO) and type(writer.checkpoint_io) in (
        TorchCheckpointIO,
        type(None),
    ):
        writer.checkpoint_io = WholeFiles()
