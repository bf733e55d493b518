"""The share of multiply-adds that compaction would leave now, once per epoch."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from ssl_lightning.graph import ExampleInput
from ssl_lightning.measure import count_macs
from ssl_lightning.measure.left import MacsLeft
from ssl_lightning.module.origin import Origin
from ssl_lightning.suggest import first_line


class MacsShare:
    """Gives the share for a network; nothing is analysed while the same weights are zero."""

    def __init__(self) -> None:
        self._left: MacsLeft | None = None
        self._dense: tuple[nn.Module, int] | None = None
        self._failed = False

    def __reduce__(self) -> tuple[type[MacsShare], tuple[()]]:
        """Let copies and pickles of a module have a fresh one."""
        return MacsShare, ()

    def share(
        self, network: nn.Module, example: ExampleInput, origin: Origin | None
    ) -> float | None:
        """Return the multiply-adds after compaction, in percent of those training started with.

        Args:
            network: as it is now.
            example: of its input; None if it is not known.
            origin: what it was before it was compacted in training.

        Returns:
            None if the shape of its input is not known, or it cannot be captured.
        """
        if example is None or self._failed:
            return None
        self._left = self._left or MacsLeft(example)
        try:
            dense = self._macs_at_start(network, example) if origin is None else origin.macs
            return 100.0 * self._left(network) / dense if dense else None
        except Exception as error:  # whatever the network's code raises; training continues
            self._failed = True
            rank_zero_info(f"`macs/left` is not logged: {first_line(error)}.")
            return None

    def _macs_at_start(self, network: nn.Module, example: ExampleInput) -> int:
        if self._dense is None or self._dense[0] is not network:
            self._dense = network, count_macs(network, example)
        return self._dense[1]
