"""One-shot pruning: zero the least important groups of a network in place."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.compaction.planning import check_finite
from ssl_lightning.costs import Costs, LatencyMeter, Target, parse_targets
from ssl_lightning.graph import ExampleInput, missing_heads, trace
from ssl_lightning.graph.copies import outside_inference
from ssl_lightning.groups import (
    GroupSet,
    Selector,
    resolve_each,
)
from ssl_lightning.groups.kinds import COUPLED_KINDS, HEAD, KINDS, Elements, without_elements
from ssl_lightning.groups.resolve import make_sets, named_tensors, splits
from ssl_lightning.groups.selectors import as_list
from ssl_lightning.groups.surroundings import Surroundings
from ssl_lightning.measure import count_macs
from ssl_lightning.measure.left import CompactForm
from ssl_lightning.measure.sensitivity_record import Rises
from ssl_lightning.prune.budget import (
    Choice,
    UnreachableError,
    choose_groups,
    to_masks,
    zero_,
)
from ssl_lightning.prune.importance import IMPORTANCES
from ssl_lightning.prune.machines import (
    LatencyReport,
    Multiple,
    check_multiple,
    choose_in_multiples,
    latency_report,
    meter_of,
    multiple_for,
    warn_of_odd_widths,
)
from ssl_lightning.prune.ranking import in_multiples, ranking, units
from ssl_lightning.prune.scores import Importance, find_importance, has_norms, scores_of
from ssl_lightning.suggest import reasons, shortened


@dataclass(frozen=True)
class PruneReport:
    """What :func:`prune_` did.

    Attributes:
        zeroed: group set name -> number of groups it zeroed, and of all groups.
        macs: multiply-adds before, and of the compact network after; None if not counted.
        retained: layer -> why outputs of it are in no group (of coupled channels).
        latency: what was predicted and measured, if that was a target.
        multiple: of which multiples of channels were retained.

    Example:
        >>> print(PruneReport({"conv1:coupled": (3, 16), "conv2:coupled": (8, 8)}, (200, 100)))
        groups         zeroed
        conv1:coupled    3/16
        conv2:coupled     8/8
        all             11/24
        MACs 200 -> 100 (50.0 %)
    """

    zeroed: dict[str, tuple[int, int]]
    macs: tuple[int, int] | None = None
    retained: dict[str, str] = field(default_factory=dict)
    latency: LatencyReport | None = None
    multiple: int = 1

    @property
    def total(self) -> tuple[int, int]:
        """Number of groups zeroed, and of all groups."""
        return sum(n for n, _ in self.zeroed.values()), sum(n for _, n in self.zeroed.values())

    def __str__(self) -> str:
        rows = [
            (name, f"{n}/{of}") for name, (n, of) in (*self.zeroed.items(), ("all", self.total))
        ]
        rows.insert(0, ("groups", "zeroed"))
        wide, narrow = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"{name:<{wide}}  {count:>{narrow}}" for name, count in rows]
        if self.macs is not None:
            before, after = self.macs
            lines.append(f"MACs {before:,} -> {after:,} ({100 * after / max(before, 1):.1f} %)")
        if self.latency is not None:
            lines.append(str(self.latency))
        return "\n".join([*lines, *reasons(self.retained)])


@outside_inference
def prune_(
    model: nn.Module,
    example_input: ExampleInput,
    *,
    groups: Sequence[GroupSet | Selector | Mapping[str, Any]] | None = None,
    kind: str = "coupled",
    fraction: float | None = None,
    macs: float | None = None,
    threshold: float | None = None,
    budget: Mapping[str, float] | None = None,
    importance: Importance = "l2",
    multiple: Multiple = None,
    engine: str | LatencyMeter | None = None,
) -> PruneReport:
    r"""Zero the least important groups of ``model`` in place, all at once.

    Groups of all sets are ranked together by their norm :math:`\|w_g\|_2` (``"l2"``) or
    :math:`\|w_g\|_1` (``"l1"``) in units of the mean norm of their set: layers differ in the scale
    of their weights, which says nothing about what they are needed for. The most important group
    of each set is retained, whatever its rank, so that the network is never cut (depth groups have
    a shortcut instead). Zeroed coupled groups are what :func:`make_plan` and :func:`compact` then
    remove, unless the model's code fixes sizes; of other kinds some zeros may remain.

    Exactly one of ``fraction``, ``macs``, ``threshold`` and ``budget`` says how many groups are
    zeroed.

    Args:
        model: any module that ``torch.export`` captures.
        example_input: its inputs, shapes such as ``(1, C, H, W)``.
        groups: group sets, or selectors as :func:`resolve_groups` takes them.
        kind: kind of the groups in all layers, if ``groups`` is not given.
        fraction: of all groups, to be zero: at least 0 and less than 1. Groups that are zero
            already count.
        macs: fraction of the multiply-adds that the compact network retains at most, above 0 and
            at most 1; the same as ``budget={"macs": ...}``.
        threshold: largest norm (not divided by the group size) to zero.
        budget: what the compact network costs at most: ``macs``, ``parameters``, ``size`` (bytes),
            ``depth`` (convolutions and linear layers; needs depth groups), each as a share of at
            most 1 of the dense network's or an absolute number; ``latency`` as a share, or
            ``latency_ms``, of one call in ``engine``. As few groups are zeroed as possible: with
            ``multiple=1`` and many groups, the budget is used up to 0.5 %. Latency is predicted,
            measured, and searched for again until both agree to 3 %, four times at most.
        importance: ``"l2"``, ``"l1"``, ``"fpgm"`` or ``"bn_scale"`` (see :data:`IMPORTANCES`; not
            with ``threshold``), or a control (not with ``threshold``): ``"random"``, which
            draws from torch's generator, or ``"uniform"``, an equal share of each set. Or what
            :func:`~ssl_lightning.prune.taylor` found of these groups. Or what
            :func:`~ssl_lightning.sensitivity` found of this network (not with ``threshold``), or
            the path of its JSON file: groups of which the error rises least go first, for a budget
            least per cost that they save.
        multiple: retain a multiple of so many channels in every set that loses any (of half as
            many in sets of fewer, and so on), the nearest to the number otherwise. Vector units
            compute 8 or 16 channels at a time: 33 cost as much as 48. ``"auto"``: the one that the
            engine likes, see :func:`~ssl_lightning.costs.preferred_multiple`. None: that if an
            engine is named, else 1.
        engine: in which the network will run: one of ``measure.ENGINES``, in float32, with torch's
            number of threads and the batch size of ``example_input``; or a
            :class:`~ssl_lightning.costs.LatencyMeter` of other settings. Layers are timed in it,
            once for each machine and version.

    Returns:
        How many groups of each set were zeroed, and what compaction would leave.

    Raises:
        ValueError: if not exactly one of the four is given, it is out of range or cannot be
            reached, the importance or kind is unknown, ``multiple`` is not positive, an engine is
            unknown or missing, or weights are not finite. The model is unchanged then.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> print(prune_(create_backbone("lenet"), torch.zeros(1, 1, 28, 28), threshold=0.0))
        groups         zeroed
        conv1:coupled    0/20
        conv2:coupled    0/50
        fc1:coupled     0/500
        all             0/570
        not pruned: fc2: the network's output
    """
    check_goal(fraction=fraction, macs=macs, threshold=threshold, budget=budget)
    check_multiple("prune_", multiple, engine)
    ranked_by = find_importance(importance)
    if threshold is not None and not has_norms(ranked_by):
        raise ValueError(
            f"prune_: importance={importance!r} has no norms, so expected `fraction` or `macs`, "
            f"got threshold={threshold}. Give one of them, or importance='l2'."
        )
    targets = parse_targets("prune_", {"macs": macs} if budget is None else budget)
    check_finite(model)
    around = Surroundings(model, example_input, strict=True)
    group_sets = resolve(model, around, groups, kind)
    retained = around.retained | ({} if kind == HEAD or groups else whole_heads(around))
    if groups is None and isinstance(KINDS[kind], Elements):
        retained |= without_elements(model)
    if not group_sets:
        return nothing_to_prune(model, example_input, kind, targets, retained)
    meter = meter_of(engine, model, example_input)
    number = multiple_for(multiple, meter)
    with torch.no_grad():
        scores = scores_of(group_sets, named_tensors(model), ranked_by)
    form, counted, latency = CompactForm(example_input), None, None
    if targets:
        costs = Costs(targets, model, example_input, {} if meter is None else {"latency": meter})
        per_cost = isinstance(ranked_by, Rises)
        choose = partial(within, costs, model, form, group_sets, scores, retained, per_cost)
        fixed = isinstance(multiple, int)
        choice, number = choose_in_multiples(choose, number, fixed=fixed)
        masks, latency = choice.masks, latency_report(choice, meter)
    else:
        order = ranking(group_sets, scores)
        if threshold is not None:
            norm = IMPORTANCES[str(ranked_by)]
            norms = [norm(s, named_tensors(model)).detach().cpu() for s in group_sets]
            first = order[torch.cat(norms)[order] <= threshold]
        else:
            first = order[: number_of(fraction or 0.0, order, group_sets)]
        liked = units(group_sets, named_tensors(model), number)
        masks = to_masks(group_sets, in_multiples(group_sets, scores, order, first, liked))
    zero_(model, group_sets, masks)
    zeroed = {s.name: (int(m.sum()), s.num_groups) for s, m in zip(group_sets, masks, strict=True)}
    if targets:
        count = partial(count_macs, example_input=form.inputs)
        counted = count(model), form.ask(model, count)
    if meter is not None and isinstance(multiple, int):
        warn_of_odd_widths(form, model, meter, multiple)
    return PruneReport(zeroed, counted, retained, latency, number)


def within(
    costs: Costs,
    model: nn.Module,
    form: CompactForm,
    group_sets: Sequence[GroupSet],
    scores: Sequence[Tensor],
    retained: Mapping[str, str],
    per_cost: bool,
    multiple: int,
) -> Choice:
    """Return the groups to zero to keep a budget."""
    try:
        return choose_groups(
            model,
            form,
            group_sets,
            scores,
            costs,
            multiple=multiple,
            retained=retained,
            per_cost=per_cost,
        )
    except UnreachableError as error:
        raise UnreachableError(f"prune_: {', '.join(map(str, costs.targets))}: {error}") from None


def whole_heads(around: Surroundings) -> dict[str, str]:
    """Return layer -> a sentence, for layers of which only whole heads can be removed."""
    families = [family for family in around.families() if family.heads]
    names = {name: None for family in families for name, _ in family.writers}
    return dict.fromkeys(
        names, "only whole attention heads can be removed; give kind='head' for them"
    )


def nothing_to_prune(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    kind: str,
    targets: Sequence[Target],
    retained: dict[str, str],
) -> PruneReport:
    """Return the report of a model that has no such groups, with a warning.

    Raises:
        ValueError: if a budget was given, which cannot be reached then.
    """
    report = PruneReport({}, retained=retained)
    text = f"prune_: {type(model).__name__} has no {kind} groups that compaction could remove"
    if kind == HEAD:
        text += f", for {missing_heads(model, trace(model, example_input))}"
    text = "; ".join([text, *reasons(retained)])
    if wanted := [str(t) for t in targets if not (t.is_share and t.value == 1)]:
        raise UnreachableError(
            f"{text}, so {', '.join(wanted)} cannot be reached. Give other groups."
        )
    warnings.warn(f"{text}; nothing is pruned.", stacklevel=3)
    return report


def check_goal(**goals: Any) -> None:
    """Make sure that exactly one goal is given, and in its range.

    Raises:
        ValueError: if not.
    """
    given = {name: value for name, value in goals.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            f"prune_: expected exactly one of {', '.join(goals)}, got "
            f"{' and '.join(given) or 'none'}. Give one, such as fraction=0.4."
        )
    ((name, value),) = given.items()
    if name == "budget":
        if not isinstance(value, Mapping) or not value:
            raise ValueError(
                f"prune_: expected `budget` as a mapping, got {shortened(value)}. Give "
                'budget={"macs": 0.5}, say.'
            )
        return
    ranges: dict[str, tuple[str, Callable[[float], bool]]] = {
        "fraction": ("0 <= fraction < 1, the share of groups to zero", lambda v: 0 <= v < 1),
        "macs": (
            "0 < macs <= 1, the share of MACs to retain (or budget={'macs': 2e6}, a number)",
            lambda v: 0 < v <= 1,
        ),
        "threshold": ("a finite threshold >= 0", lambda v: 0 <= v < math.inf),
    }
    expected, holds = ranges[name]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not holds(value):
        raise ValueError(f"prune_: expected {expected}, got {value!r}. Give one in that range.")


def resolve(
    model: nn.Module,
    around: Surroundings,
    groups: Sequence[GroupSet | Selector | Mapping[str, Any]] | None,
    kind: str,
    where: str = "prune_",
) -> list[GroupSet]:
    """Return the group sets to prune: none if the model has none of a coupled kind.

    Args:
        model: the network.
        around: what is known of it.
        groups: group sets or selectors; None for all of a kind.
        kind: of the groups, if there are none given.
        where: beginning of messages.

    Raises:
        ValueError: if there are none in ``groups``, or they are not of this model.
    """
    if groups is None and kind in COUPLED_KINDS:
        return make_sets(around, Selector(kind)) if around.has_kind(kind) else []
    given = [Selector(kind)] if groups is None else as_list(groups)
    sets = [g for g in given if isinstance(g, GroupSet)]
    selectors = [g for g in given if not isinstance(g, GroupSet)]
    resolved = [s for part in resolve_each(model, selectors, around=around) for s in part]
    found = {s.name: s for s in (*sets, *resolved)}
    if not found:
        raise ValueError(f"{where}: expected `groups` to hold group sets or selectors, got none.")
    parameters = named_tensors(model)
    for group_set in found.values():
        for part in (*group_set.members, *group_set.companions):
            tensor = parameters.get(part.parameter)
            if tensor is None or not splits(part.shape, tuple(tensor.shape)):
                got = "none" if tensor is None else f"one of the shape {tuple(tensor.shape)}"
                raise ValueError(
                    f"{where}: expected {type(model).__name__} to have a parameter "
                    f"`{part.parameter}` that can be viewed as {part.shape}, which the groups "
                    f"{group_set.name} need, got {got}. Resolve the groups on this model."
                )
    return list(found.values())


def number_of(fraction: float, order: Tensor, group_sets: Sequence[GroupSet]) -> int:
    """Return how many groups a fraction of all of them is.

    Raises:
        ValueError: if so many cannot be zeroed.
    """
    total = sum(s.num_groups for s in group_sets)
    count = round(fraction * total)
    if count > len(order):
        highest = math.floor(100 * len(order) / total) / 100
        raise ValueError(
            f"prune_: fraction={fraction} would zero {count} of {total} groups, but one of each of "
            f"the {len(group_sets)} sets is retained. Give at most {highest}."
        )
    return count
