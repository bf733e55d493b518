"""The curves of a run and the pictures of an entry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ssl_lightning.checkpoints import load_backbone, read_checkpoint
from ssl_lightning.publishing.runs import FinishedRun
from ssl_lightning.report import curve_chart, filter_pictures
from ssl_lightning.report.training_log import parse_curves
from ssl_lightning.zoo.cards import CURVES, CURVES_PICTURE, FILTERS_PICTURE


def write_curves(text: str | None, name: str, folder: Path) -> None:
    """Write the curves of a run and their picture, if there are any."""
    if text is not None:
        (folder / CURVES).write_text(text)
        curve_chart(parse_curves(text), folder / CURVES_PICTURE, name)


def write_filters(panels: Mapping[str, nn.Module | Tensor], folder: Path) -> None:
    """Draw filters side by side: weights, or the first convolutions of networks."""
    weights = {
        title: weight.detach().float().numpy()
        for title, panel in panels.items()
        if (weight := panel if isinstance(panel, Tensor) else first_weight(panel)) is not None
    }
    if weights:
        filter_pictures(weights, folder / FILTERS_PICTURE)


def first_weight(model: nn.Module) -> Tensor | None:
    """Return the weight of the first convolution."""
    return next((m.weight for m in model.modules() if isinstance(m, nn.Conv2d)), None)


def first_filters(run: FinishedRun) -> dict[str, nn.Module | Tensor]:
    """Return what to draw: filters before, of FilterPictures or a checkpoint, and the masked."""
    callbacks = read_checkpoint(run.folder / "checkpoints" / "last.ckpt").get("callbacks", {})
    for name, state in callbacks.items():
        if name.startswith("FilterPictures") and state["before"] is not None:
            return {"before": state["before"], "compact": run.masked()}
    stored = sorted(run.folder.glob("checkpoints/epoch-*.ckpt"), key=epoch_of)
    early = {f"after epoch {epoch_of(p) + 1}": load_backbone(p).model for p in stored[:1]}
    return {**early, "compact": run.masked()}


def epoch_of(checkpoint: Path) -> int:
    """Return the number in the name of a checkpoint, -1 if there is none.

    Example:
        >>> epoch_of(Path("epoch-4.ckpt")), epoch_of(Path("epoch=4-step=160.ckpt"))
        (4, 4)
    """
    found = re.match(r"epoch[-=](\d+)", checkpoint.stem)
    return int(found[1]) if found else -1
