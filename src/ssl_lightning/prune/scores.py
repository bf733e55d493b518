"""What groups of all sets are ranked by together: their norms, or what a measurement says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ssl_lightning.groups import GroupSet, group_norms
from ssl_lightning.measure.sensitivity_record import Rises, Sensitivity
from ssl_lightning.prune.importance import CONTROLS, IMPORTANCES, SIZE_POWERS
from ssl_lightning.prune.ranking import relative
from ssl_lightning.suggest import pick

Importance: TypeAlias = str | Sensitivity
"""A name of :data:`~ssl_lightning.prune.IMPORTANCES`, the path of a record of sensitivities, which
ends in ``.json``, or that record."""

Ranking: TypeAlias = str | Rises
"""A name of :data:`~ssl_lightning.prune.IMPORTANCES`, or what was measured."""

TIE = 1e-9
"""Of groups whose removal costs nothing, those of smaller norm go first."""


def find_importance(given: Importance) -> Ranking:
    """Return an importance that is known: a name, or the curves of a record.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such record, or the name is unknown.
    """
    if isinstance(given, str) and given.endswith(".json"):
        return Sensitivity.load(given).rises()
    if isinstance(given, Sensitivity):
        return given.rises()
    pick("importance", given, IMPORTANCES)
    return given


def has_norms(importance: Ranking) -> bool:
    """Whether groups of a small norm are the unimportant ones."""
    return isinstance(importance, str) and importance not in CONTROLS


def scores_of(
    group_sets: Sequence[GroupSet], tensors: Mapping[str, Tensor], importance: Ranking
) -> list[Tensor]:
    """Return the importance of all groups, comparable between sets, one tensor per set.

    By name, norms in units of the mean of their set. By what was measured, the rise of the error
    when a group and all that are less important in its set are removed: sets are then thinned until
    removing more would cost as much in each.

    Args:
        group_sets: the groups.
        tensors: name -> parameter.
        importance: a name, or curves.

    Raises:
        ValueError: if a set has no curve, or another number of groups there.

    Example:
        >>> from ssl_lightning.groups import Member
        >>> from ssl_lightning.measure.sensitivity_record import Curve
        >>> rows = GroupSet("a", "filter", (Member("a", (4, 1), (0,)),))
        >>> found = Rises("a net", "images", "l2", {"a:filter": Curve(4, (2,), (2.0,))})
        >>> scores_of([rows], {"a": torch.tensor([[4.0], [1.0], [2.0], [3.0]])}, found)
        [tensor([4., 1., 2., 3.])]
    """
    if isinstance(importance, Rises):
        return [scores_by(importance, s, tensors) for s in group_sets]
    score = IMPORTANCES[importance]
    scores = [score(s, tensors).cpu() for s in group_sets]
    return relative(group_sets, scores, SIZE_POWERS[importance])


def scores_by(found: Rises, group_set: GroupSet, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the rise of the error up to each group, between measurements along a line."""
    own = found.curves.get(group_set.name)
    if own is None or own.num_groups != group_set.num_groups:
        there = "nothing" if own is None else f"{own.num_groups} groups"
        raise ValueError(
            f"importance: expected {group_set.num_groups} groups of {group_set.name!r} in the "
            f"record of {found.title}, got {there}. Measure the sensitivity of this network and "
            "these groups: `ssl-lightning sensitivity`."
        )
    curve = {0: 0.0} | dict(zip(own.zeroed, own.rises, strict=True))
    counts = sorted(curve)
    rises = np.maximum.accumulate([max(curve[count], 0.0) for count in counts])
    ranks = np.arange(1, group_set.num_groups + 1)
    values = np.interp(ranks, counts, rises)
    slope = (rises[-1] - rises[-2]) / (counts[-1] - counts[-2]) if len(counts) > 1 else 0.0
    values += slope * np.maximum(ranks - counts[-1], 0) + TIE * ranks
    order = IMPORTANCES[found.importance](group_set, tensors).cpu().argsort(stable=True)
    scores = torch.empty(group_set.num_groups)
    scores[order] = torch.from_numpy(values).float()
    return scores * (group_norms(group_set, tensors).cpu() > 0)
