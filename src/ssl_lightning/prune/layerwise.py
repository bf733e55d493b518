"""Which layers can be pruned: the error after removing shares of each group set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.compaction.planning import check_finite
from ssl_lightning.graph import ExampleInput, working_copy
from ssl_lightning.graph.copies import outside_inference
from ssl_lightning.groups import GroupSet, Selector
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.groups.surroundings import Surroundings
from ssl_lightning.measure import count_macs, num_parameters
from ssl_lightning.measure.left import CompactForm
from ssl_lightning.measure.sensitivity_record import Curve, Rises, Sensitivity, SensitivityRow
from ssl_lightning.prune.budget import zero_
from ssl_lightning.prune.importance import IMPORTANCES
from ssl_lightning.prune.one_shot import resolve
from ssl_lightning.prune.ranking import ranking
from ssl_lightning.suggest import pick, reasons, shortened

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
WHERE = "sensitivity"


@outside_inference
def sensitivity(
    model: nn.Module,
    example_input: ExampleInput,
    evaluate: Callable[[nn.Module], float],
    *,
    groups: Sequence[GroupSet | Selector | Mapping[str, Any]] | None = None,
    kind: str = "coupled",
    shares: Sequence[float] = SHARES,
    importance: str = "l2",
    title: str = "",
    conditions: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Measure the error after removing shares of each group set, one set at a time.

    For each set and share, the least important share of its groups is zeroed in a copy of the
    network, and the copy is evaluated: nothing is trained, and the statistics of batch norms remain
    what they were. A network that is trained on afterwards recovers a part of the error, so this
    compares layers; it does not foretell the error of a pruned network, in which sets are thinned
    together. One group of each set is retained (as :func:`~ssl_lightning.prune_` does). A depth
    group, a layer with a shortcut around it, is alone in its set and removed whole: a share of 1.

    Args:
        model: any module that ``torch.export`` captures; unchanged.
        example_input: its inputs, shapes such as ``(1, C, H, W)``; multiply-adds are counted on
            them.
        evaluate: from a network, in eval mode, to its error on data that is not the test split:
            percent, or any number that is lower for better networks. It is called once for the
            network as it is, and once for each set and share; it may change what it is given.
        groups: group sets, or selectors as :func:`~ssl_lightning.resolve_groups` takes them.
        kind: kind of the groups in all layers, if ``groups`` is not given.
        shares: of the groups of a set to remove, each above 0 and below 1.
        importance: ``"l2"``, ``"l1"``, or ``"random"``, which draws from torch's generator.
        title: name of the network for the record; its class by default.
        conditions: what is evaluated, for the record.
        progress: called with the number of evaluations done, and of all.

    Returns:
        A row for each set, in the order of the network, and share.

    Raises:
        ValueError: for shares out of range, an unknown importance or kind, a model without such
            groups, weights that are not finite, or an evaluation that is no finite number.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> net, images = create_backbone("lenet").eval(), torch.randn(8, 1, 28, 28)
        >>> outputs = net(images).detach()
        >>> @torch.no_grad()
        ... def changed(thinned: nn.Module) -> float:
        ...     return 100 * float((thinned(images) - outputs).norm() / outputs.norm())
        >>> found = sensitivity(net, images[:1], changed, shares=[0.5])
        >>> [(row.group_set, row.zeroed, round(row.macs_saved, 1)) for row in found.rows]
        [('conv1:coupled', 10, 41.2), ('conv2:coupled', 25, 43.6), ('fc1:coupled', 250, 8.8)]
        >>> found.error
        0.0
    """
    wanted = checked(shares)
    pick("importance", importance, IMPORTANCES)
    check_finite(model)
    around = Surroundings(model, example_input, strict=True)
    sets = in_order(model, resolve(model, around, groups, kind, WHERE))
    if not sets:
        why = "; ".join(["", *reasons(around.retained)])
        raise ValueError(
            f"{WHERE}: expected {kind} groups that compaction could remove, got none in "
            f"{type(model).__name__}{why}. Give other groups."
        )
    trial = Trial(model, CompactForm(example_input), evaluate)
    thinnings = list(thinned(model, sets, wanted, importance))
    base = trial.run()
    known: dict[tuple[str, int], Result] = {}  # small sets have the same for several shares
    rows: list[SensitivityRow] = []
    for group_set, share, first in thinnings:
        if progress is not None:
            progress(1 + len(rows), 1 + len(thinnings))
        key = group_set.name, len(first)
        if key not in known:
            known[key] = trial.run(group_set, first) if len(first) else base
        rows.append(as_row(group_set, share, len(first), known[key], base))
    if progress is not None:
        progress(1 + len(rows), 1 + len(thinnings))
    name = title or type(model).__name__
    error, macs, parameters = base.error, base.macs, base.parameters
    return Sensitivity(
        name, conditions, importance, error, macs, parameters, around.retained, tuple(rows)
    )


@outside_inference
def measure_rises(
    model: nn.Module,
    group_sets: Sequence[GroupSet],
    evaluate: Callable[[nn.Module], float],
    *,
    shares: Sequence[float] = SHARES,
    importance: str = "l2",
    conditions: str = "",
) -> Rises:
    """Measure errors as :func:`sensitivity` does, and nothing of costs, which takes longer.

    Args:
        model: any module; unchanged.
        group_sets: the groups.
        evaluate: from a network, in eval mode, to its error; changes nothing.
        shares: as in :func:`sensitivity`.
        importance: the same.
        conditions: what is evaluated, for the record.

    Raises:
        ValueError: if an evaluation is no finite number.

    Example:
        >>> from ssl_lightning import create_backbone, resolve_groups
        >>> net = create_backbone("lenet")
        >>> sets = resolve_groups(net, [{"kind": "filter", "layers": "conv1"}])
        >>> count = lambda thinned: float((thinned.conv1.weight == 0).sum())
        >>> measure_rises(net, sets, count, shares=[0.5]).curves
        {'conv1:filter': Curve(num_groups=20, zeroed=(10,), rises=(250.0,))}
    """
    network = working_copy(model).eval()
    tensors = named_tensors(network)
    base = as_number(evaluate(network))
    found: dict[str, dict[int, float]] = {s.name: {} for s in group_sets}
    for group_set, _, first in thinned(model, group_sets, shares, importance):
        rises = found[group_set.name]
        if not len(first) or len(first) in rises:
            continue
        before = {name: tensors[name].detach().clone() for name in group_set.parameters()}
        zero_(network, [group_set], [as_mask(group_set, first)])
        rises[len(first)] = as_number(evaluate(network)) - base
        with torch.no_grad():
            for name, tensor in before.items():
                tensors[name].copy_(tensor)
    curves = {
        s.name: Curve(s.num_groups, tuple(found[s.name]), tuple(found[s.name].values()))
        for s in group_sets
    }
    return Rises(type(model).__name__, conditions, importance, curves)


@torch.no_grad()
def thinned(
    model: nn.Module, group_sets: Sequence[GroupSet], shares: Sequence[float], importance: str
) -> Iterator[tuple[GroupSet, float, Tensor]]:
    """Yield group set, share, and the numbers of the groups that are removed for it."""
    for group_set in group_sets:
        score = IMPORTANCES[importance](group_set, named_tensors(model)).cpu()
        order = ranking([group_set], [score])
        for share in [1.0] if group_set.kind == "depth" else shares:
            yield group_set, share, order[: round(share * group_set.num_groups)]


def as_mask(group_set: GroupSet, groups: Tensor) -> Tensor:
    """Return numbers of groups as a mask ``(num_groups,)``."""
    mask = torch.zeros(group_set.num_groups, dtype=torch.bool)
    mask[groups] = True
    return mask


@dataclass(frozen=True)
class Result:
    """What one thinned network does and costs: error, and what its compact form holds."""

    error: float
    macs: int
    parameters: int


class Trial:
    """Evaluates copies of a network without some of its groups.

    Args:
        model: the network; unchanged.
        form: gives its compact form.
        evaluate: from a network to its error.
    """

    def __init__(
        self, model: nn.Module, form: CompactForm, evaluate: Callable[[nn.Module], float]
    ) -> None:
        self.model, self.form, self.evaluate = model, form, evaluate
        self.traced = working_copy(model)  # always the same, since the form traces another anew

    def run(self, group_set: GroupSet | None = None, groups: Tensor | None = None) -> Result:
        """Return the result without those groups; of the network as it is if none are given."""
        network = working_copy(self.model)
        if group_set is not None and groups is not None:
            zero_(network, [group_set], [as_mask(group_set, groups)])
        self.traced.load_state_dict(network.state_dict())
        macs, parameters = self.form.ask(self.traced, self.costs)
        return Result(as_number(self.evaluate(network.eval())), macs, parameters)

    def costs(self, small: nn.Module) -> tuple[int, int]:
        """Return multiply-adds and parameters of a compact network."""
        return count_macs(small, self.form.inputs), num_parameters(small)


def as_number(value: Any) -> float:
    """Return what an evaluation returned as a number.

    Raises:
        ValueError: if it is none, or not finite.

    Example:
        >>> as_number(torch.tensor(2.0))
        2.0
    """
    try:
        number = float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if isinstance(value, (bool, str)) or not math.isfinite(number):
        raise ValueError(
            f"{WHERE}: expected `evaluate` to return a finite number, got {shortened(value)}. "
            "Return the error in percent, say."
        )
    return number


def as_row(
    group_set: GroupSet, share: float, zeroed: int, result: Result, base: Result
) -> SensitivityRow:
    """Return the row of a set and share."""
    macs = 100 * (1 - result.macs / max(base.macs, 1))
    parameters = 100 * (1 - result.parameters / max(base.parameters, 1))
    layers = tuple(dict.fromkeys(m.parameter.rpartition(".")[0] for m in weights_of(group_set)))
    return SensitivityRow(
        group_set.name,
        layers,
        group_set.num_groups,
        share,
        zeroed,
        result.error,
        macs,
        parameters,
    )


def weights_of(group_set: GroupSet) -> list[Any]:
    """Return the members that are weights of layers; all members if none has more dimensions."""
    return [m for m in group_set.members if len(m.shape) > 1] or list(group_set.members)


def in_order(model: nn.Module, group_sets: Iterable[GroupSet]) -> list[GroupSet]:
    """Return group sets in the order of the network's modules."""
    places = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return sorted(group_sets, key=lambda s: places.get(s.layer.partition("#")[0], len(places)))


def checked(shares: Sequence[float]) -> list[float]:
    """Return shares in ascending order, each once.

    Raises:
        ValueError: if there is none, or one is out of range.

    Example:
        >>> checked([0.5, 0.1, 0.5])
        [0.1, 0.5]
    """
    expected = f"{WHERE}: expected shares above 0 and below 1, such as {list(SHARES)}"
    given = list(shares) if isinstance(shares, Iterable) and not isinstance(shares, str) else []
    if not given:
        raise ValueError(f"{expected}, got {shortened(shares)}. Give at least one.")
    for share in given:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise ValueError(
                f"{expected}, got {shortened(share)}. One group of each set is always retained."
            )
    return sorted(set(map(float, given)))
