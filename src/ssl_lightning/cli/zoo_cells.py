"""Cells of the tables of `zoo`: what a card says, in words."""

from __future__ import annotations

from typing import Any

from ssl_lightning import zoo
from ssl_lightning.zoo.wording import function_of, layers_of, schedule_of


def storage(card: zoo.Card) -> str:
    """Say how the weights are stored."""
    unstored = card.weights.unstored
    return card.weights.dtype if unstored is None else f"not stored, sha256 {unstored.sha256}"


def counts(kinds: dict[str, list[int]]) -> str:
    """Say how many groups of each kind are retained.

    Example:
        >>> counts({"filters": [5, 20], "channels": [1, 1]})
        '5/20 filters, 1/1 channels'
    """
    return ", ".join(f"{part}/{of} {kind}" for kind, (part, of) in kinds.items())


def ratios(found: dict[str, float]) -> str:
    """Write latency ratios.

    Example:
        >>> ratios({"dense": 1.0, "compact": 0.31})
        'dense 1.00, compact 0.31 of the dense one'
    """
    return ", ".join(f"{model} {ratio:.2f}" for model, ratio in found.items()) + " of the dense one"


def errors(validation: float, test: float) -> str:
    """Write the errors of a run.

    Example:
        >>> errors(0.7, 0.625)
        '0.70 % validation, 0.62 % test'
    """
    return f"{validation:.2f} % validation, {test:.2f} % test"


def patterns(penalty: dict[str, Any]) -> str:
    """Say on which layers a penalty is.

    Example:
        >>> patterns({}), patterns({"layers": ["fc1", "fc2"]})
        ('*', 'fc1, fc2')
    """
    return layers_of(penalty).replace("`", "")


def strength(penalty: dict[str, Any]) -> str:
    """Say a penalty's strength, its function and its schedule.

    Example:
        >>> strength({"strength": 0.1, "function": "mcp", "schedule": {"kind": "ramp", "end": 5}})
        '0.1, mcp on groups, ramp, end 5'
    """
    parts = penalty.get("strength"), function_of(penalty), schedule_of(penalty)
    return ", ".join(map(str, parts))


def cell(value: float | int | str | None) -> str:
    """Write a figure for a table; long texts are shortened, and nothing is ``-``.

    Example:
        >>> cell(0.62), cell(2293000), cell("x" * 60)
        ('0.62', '2,293,000', 'xxxxxxxxxxxxxxxxxxxxx...')
    """
    if value is None:
        return "-"
    if isinstance(value, str):
        return value if len(value) <= 24 else f"{value[:21]}..."
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
