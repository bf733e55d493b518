"""What is said of the network that a budget has led to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_warn

from ssl_lightning.groups import GroupSet
from ssl_lightning.prune.budget import TOLERANCE

FEWEST = 32
"""Share of a set's groups, as one in so many, below which next to nothing of it is left."""


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


def removal_text(
    group_sets: Sequence[GroupSet], gone: Sequence[int], epoch: int, multiple: object
) -> str:
    """Say how many groups are gone, and of which sets next to none are left.

    A layer of one channel lets so little through that the network may learn no more: seen where a
    network that has hardly been trained is cut.

    Args:
        group_sets: that groups were chosen of.
        gone: groups of each that are zero.
        epoch: in which.
        multiple: of which the numbers left are multiples.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> def rows(name, number):
        ...     return GroupSet(name, "filter", (Member("w", (number, 2), (0,)),))
        >>> removal_text([rows("a", 8), rows("b", 4)], [4, 0], 3, multiple=4)
        '4 of 12 groups gone in epoch 3, widths in multiples of 4.'
        >>> removal_text([rows("a", 64), rows("b", 4)], [63, 0], 3, multiple=1).partition(". ")[2]
        'Next to nothing is left of a:filter (1 of 64): where the error does not come back, train
        before the cut (`end`, `init_from`) or give a larger budget.'
    """
    widths = f", widths in multiples of {multiple}" if multiple != 1 else ""
    total = sum(found.num_groups for found in group_sets)
    text = f"{sum(gone)} of {total} groups gone in epoch {epoch}{widths}."
    thin = [
        f"{found.name} ({found.num_groups - zero} of {found.num_groups})"
        for found, zero in zip(group_sets, gone, strict=True)
        if FEWEST * (found.num_groups - zero) < found.num_groups
    ]
    if not thin:
        return text
    return (
        f"{text} Next to nothing is left of {', '.join(thin)}: where the error does not come back, "
        "train before the cut (`end`, `init_from`) or give a larger budget."
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
