"""The share of multiply-adds that compaction would leave now, once per epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from ssl_lightning.measure import count_macs
from ssl_lightning.measure.left import MacsLeft
from ssl_lightning.suggest import first_line

if TYPE_CHECKING:
    from ssl_lightning.module.sparsity import Sparsity


class MacsShare:
    """Gives the share for a module; nothing is analysed while the same weights are zero."""

    def __init__(self) -> None:
        self._left: MacsLeft | None = None
        self._dense: tuple[nn.Module, int] | None = None
        self._failed = False

    def __reduce__(self) -> tuple[type[MacsShare], tuple[()]]:
        """Let copies and pickles of a module have a fresh one."""
        return MacsShare, ()

    def share(self, sparsity: Sparsity) -> float | None:
        """Return the multiply-adds after compaction, in percent of those training started with.

        None if the shape of its input is not known, or it cannot be captured.
        """
        example = sparsity.example_input()
        if example is None or self._failed:
            return None
        self._left = self._left or MacsLeft(example)
        try:
            dense = self.dense(sparsity)
            return 100.0 * self._left(sparsity.network) / dense if dense else None
        except Exception as error:  # whatever the network's code raises; training continues
            self._failed = True
            rank_zero_info(f"`macs/left` is not logged: {first_line(error)}.")
            return None

    def dense(self, sparsity: Sparsity) -> int | None:
        """Return the multiply-adds of the network that training started with, if they are known."""
        if sparsity.origin is not None:
            return sparsity.origin.macs
        network = sparsity.network
        if self._dense is None or self._dense[0] is not network:
            self._dense = network, count_macs(network, sparsity.example_input())
        return self._dense[1]
