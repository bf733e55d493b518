"""What is said of the network that a budget has led to."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_warn

from ssl_lightning.prune.budget import TOLERANCE


def landing_text(
    costs: Mapping[str, float], dense: Mapping[str, float], limits: Mapping[str, float]
) -> str:
    """Say what a network costs, beside the dense one and the limits.

    Example:
        >>> landing_text({"macs": 40.0}, {"macs": 100.0}, {"macs": 50.0})
        'macs 100 -> 40 (40.0%, at most 50.0%)'
    """
    return ", ".join(
        f"{name} {dense[name]:,.6g} -> {cost:,.6g}{' ms' if name == 'latency' else ''} "
        f"({cost / dense[name]:.1%}, at most {limits[name] / dense[name]:.1%})"
        for name, cost in costs.items()
    )


def warn_above(costs: Mapping[str, float], limits: Mapping[str, float]) -> None:
    """Warn of a measured cost that is above its limit by more than the tolerance."""
    for name, cost in costs.items():
        if cost > (1 + TOLERANCE) * limits[name]:
            rank_zero_warn(
                f"Budget: {name} is {cost:.4g}, {cost / limits[name] - 1:.1%} above the limit of "
                f"{limits[name]:.4g}: measurements differ by as much here. Measure on an idle "
                "machine, or give a smaller budget."
            )
