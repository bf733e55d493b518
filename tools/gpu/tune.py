"""Stage ``tune``: the fastest tile of the GPU kernel for each layer of the paper's Table 4."""

from __future__ import annotations

import statistics
from typing import Any

from stages import Context
from timing import use_interpreter

TITLE = "Tiles of the column-sparse kernel"


def run(context: Context) -> None:
    """Try tiles until the minutes are over, after those of earlier calls."""
    use_interpreter(context.device)
    from tuning import tune  # imports Triton

    tune(context)


def headline(result: dict[str, Any] | None) -> str:
    """Say in a line what was found."""
    if not result:
        return "nothing"
    found = [one for tasks in result["tasks"].values() for one in tasks.values()]
    if not found:
        return str(result.get("skipped", "nothing"))
    gains = [by_rule(one) / one["ms"] for one in found if by_rule(one)]
    text = f"{sum(len(one['tried']) for one in found)} tiles tried for {len(found)} problems"
    if gains:
        text += f"; {statistics.geometric_mean(gains):.2f} times as fast as by the rule"
    return text


def by_rule(one: dict[str, Any]) -> float | None:
    """Return the milliseconds with the tile of the rule, which was tried first, if it ran."""
    first = next(iter(one["tried"].values()), None)
    return first if isinstance(first, float) else None
