"""What network is trained, in a few lines before the first epoch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelSummary

from ssl_lightning.cli.tables import say, show_table

LEFT_OUT = (" ", "FLOPs")
"""Columns: numbers of rows, and what is not known without an example input, which is shown as 0."""


class Summary(ModelSummary):
    """The modules of the network, without FLOPs that were not counted."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        *_: Any,
        **__: Any,
    ) -> None:
        """Print a table and a line of totals.

        Args:
            summary_data: heads and cells of the columns.
            total_parameters: of all modules.
            trainable_parameters: those that are trained.
            model_size: in MB.
        """
        columns = [column for column in summary_data if column[0] not in LEFT_OUT]
        rows = list(zip(*(cells for _, cells in columns), strict=True))
        show_table("", tuple(head for head, _ in columns), rows)
        say(
            f"{total_parameters:,} parameters, {trainable_parameters:,} of them trained, "
            f"{model_size:.3g} MB"
        )
