"""What groups of all sets are ranked by together: their norms, or what a measurement says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ssl_lightning.groups import GroupSet, group_norms
from ssl_lightning.measure.sensitivity_record import Rises, Sensitivity
from ssl_lightning.measure.serial import Record
from ssl_lightning.prune.importance import ABSOLUTE, IMPORTANCES, NORMS, SIZE_POWERS
from ssl_lightning.prune.ranking import relative
from ssl_lightning.suggest import pick


@dataclass(frozen=True)
class Scores(Record):
    """An importance for every group, comparable between sets.

    Attributes:
        title: name of the network.
        conditions: what the importance is, in words.
        values: name of a set -> one number per group.
    """

    title: str
    conditions: str
    values: dict[str, tuple[float, ...]]

    what = "scores"


Importance: TypeAlias = str | Sensitivity | Rises | Scores
"""A name of :data:`~ssl_lightning.prune.IMPORTANCES`, the path of a record of sensitivities, which
ends in ``.json``, that record, its curves, or an importance for every group."""

Ranking: TypeAlias = str | Rises | Scores
"""A name of :data:`~ssl_lightning.prune.IMPORTANCES`, or what was measured."""

TIE = 1e-9
"""Of groups whose removal costs nothing, those of smaller norm go first."""


NEED_DATA = ("measured", "taylor")
"""Importances that budgets measure in training."""
LAST = 1 / 8
"""Share of a set's groups that counts by how few are left: their removal was not measured."""


def find_importance(given: Importance, *others: str) -> Ranking:
    """Return an importance that is known: a name, or the curves of a record.

    Args:
        given: the importance.
        others: further names that are known where it was given.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such record, or the name is unknown.
    """
    if isinstance(given, str) and given.endswith(".json"):
        return Sensitivity.load(given).rises()
    if isinstance(given, Sensitivity):
        return given.rises()
    if isinstance(given, (Rises, Scores)):
        return given
    if given in NEED_DATA and given not in others:
        raise ValueError(
            f"importance={given!r} is measured on training inputs, of which there are none here. "
            "Give Budget(importance=...) in training, or a record of `sensitivity`, or 'l2'."
        )
    pick("importance", given, {**IMPORTANCES, **dict.fromkeys(others)})
    return given


def fits(found: Rises | Scores, group_sets: Sequence[GroupSet]) -> bool:
    """Whether each set is in what was measured, with as many groups as it has."""
    if isinstance(found, Scores):
        sizes = {name: len(values) for name, values in found.values.items()}
    else:
        sizes = {name: curve.num_groups for name, curve in found.curves.items()}
    return all(sizes.get(s.name) == s.num_groups for s in group_sets)


def has_norms(importance: Ranking) -> bool:
    """Whether groups of a small norm are the unimportant ones."""
    return isinstance(importance, str) and importance in NORMS


def scores_of(
    group_sets: Sequence[GroupSet], tensors: Mapping[str, Tensor], importance: Ranking
) -> list[Tensor]:
    """Return the importance of all groups, comparable between sets, one tensor per set.

    By name, norms in units of the mean of their set. By what was measured, how much the error rises
    with that group when all that are less important in its set are gone already.

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
        [tensor([3.5000, 0.5000, 1.5000, 2.5000])]
    """
    if isinstance(importance, Scores):
        return [scores_in(importance, s, tensors) for s in group_sets]
    if isinstance(importance, Rises):
        return [scores_by(importance, s, tensors) for s in group_sets]
    score = IMPORTANCES[importance]
    scores = [score(s, tensors).cpu() for s in group_sets]
    if importance in ABSOLUTE:
        return scores
    return relative(group_sets, scores, SIZE_POWERS[importance])


def scores_in(found: Scores, group_set: GroupSet, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the importance that was found of each group, 0 for groups that are zero by now."""
    own = found.values.get(group_set.name, ())
    if len(own) != group_set.num_groups:
        raise ValueError(
            f"importance: expected {group_set.num_groups} groups of {group_set.name!r} in what was "
            f"found of {found.title}, got {len(own) or 'nothing'}. Measure it of this network and "
            "these groups."
        )
    alive = group_norms(group_set, tensors).cpu() > 0
    return torch.tensor(own).clamp_min(torch.finfo(torch.float32).tiny) * alive


def scores_by(found: Rises, group_set: GroupSet, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return by how much the error rises with each group: the slope of the curve at its rank.

    Between two measurements it is that of the line between them, in their middle; from there, it
    changes along lines, and it never falls, so that groups go in the order of their norms. Of
    the last eighth of the groups it is multiplied by an eighth over the share that is left: where a
    layer is nearly gone, outputs hardly change any more, which does not say that it can go.
    """
    own = found.curves.get(group_set.name)
    if own is None or own.num_groups != group_set.num_groups:
        there = "nothing" if own is None else f"{own.num_groups} groups"
        raise ValueError(
            f"importance: expected {group_set.num_groups} groups of {group_set.name!r} in the "
            f"record of {found.title}, got {there}. Measure the sensitivity of this network and "
            "these groups: `ssl-lightning sensitivity`."
        )
    counts = np.array([0, *own.zeroed], float)
    rises = np.maximum.accumulate([0.0, *own.rises])
    values = TIE * np.arange(1, own.num_groups + 1)
    if own.zeroed:
        slopes = np.maximum.accumulate(np.diff(rises) / np.diff(counts))
        places = np.concatenate([[0.0], (counts[1:] + counts[:-1]) / 2])
        slopes = np.concatenate([[0.0], slopes])
        last = (slopes[-1] - slopes[-2]) / (places[-1] - places[-2])
        at = np.arange(own.num_groups) + 0.5
        found_at = np.interp(at, places, slopes) + last * np.maximum(at - places[-1], 0)
        left = (own.num_groups - at) / own.num_groups
        values += found_at * np.maximum(LAST / left, 1.0)
    order = IMPORTANCES[found.importance](group_set, tensors).cpu().argsort(stable=True)
    scores = torch.empty(group_set.num_groups)
    scores[order] = torch.from_numpy(values).float()
    return scores * (group_norms(group_set, tensors).cpu() > 0)
