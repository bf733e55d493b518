"""factorise: a network in which layers are replaced by low rank factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from ssl_lightning.compaction.factor_layers import METHODS
from ssl_lightning.compaction.factors import Factors, check_ranks, insert_factors_, product
from ssl_lightning.compaction.plan import Plan
from ssl_lightning.compaction.planning import check_finite, empty_plan
from ssl_lightning.costs import parse_targets
from ssl_lightning.graph import ExampleInput, as_inputs, working_copy
from ssl_lightning.low_rank.decomposing import fill_, require_tensorly
from ssl_lightning.low_rank.layers import Found, find_layers
from ssl_lightning.low_rank.ranks import Ranks, by_energy, saving, smallest, total_cost, within
from ssl_lightning.low_rank.reporting import FactorRow, LowRankReport
from ssl_lightning.measure import count_macs
from ssl_lightning.suggest import first_line, nearest, pick

NO_SAVING = "factors would not save multiply-adds"
GivenRanks = Mapping[str, int | Sequence[int]]
"""Layer -> its rank, or for tucker (outputs, inputs) of the core."""


class Factorised(NamedTuple):
    """What :func:`factorise` returns.

    Attributes:
        network: with the factors.
        plan: to store it by: ``save_compact(folder, network, plan, backbone, arguments)``.
        report: what was replaced, and what it saves.
    """

    network: nn.Module
    plan: Plan
    report: LowRankReport


def factorise(
    model: nn.Module,
    example_input: ExampleInput,
    *,
    macs: float | None = None,
    energy: float | None = None,
    ranks: GivenRanks | None = None,
    method: str = "tucker",
    layers: str | Sequence[str] = "*",
    excluded: Mapping[str, str] | None = None,
) -> Factorised:
    r"""Replace layers by low rank factors: plain layers in a row, in an ``nn.Sequential``.

    ==========  ==================================================================================
    ``svd``     :math:`r` filters of the layer's own kernel, then 1 x 1; linear layers: two of them
    ``tucker``  1 x 1, a core with the kernel, 1 x 1 (Tucker-2)
    ``cp``      1 x 1, depthwise along each dimension of the kernel, 1 x 1
    ==========  ==================================================================================

    Layers without a spatial kernel are always replaced by ``svd``. Stride, padding and dilation
    remain where the kernel is, the bias is that of the last factor, and at full rank the function
    is the same. A layer is replaced only where that saves multiply-adds and adds no weights.

    Exactly one of ``macs``, ``energy`` and ``ranks`` says how large the ranks are. Each rank is an
    ordinary channel afterwards, which can be penalised, pruned and removed. Both sides of a rank
    have equal norms: of ``svd``, the root of the singular value. So the squares of the norms of
    both factors, that is weight decay, sum to twice the nuclear norm of the product, which is the
    least that any factors of it have; and group lasso on the filters of the first and the channels
    of the second is, at its least, twice the sum of the roots of the singular values, which
    drives whole ranks to zero.

    Args:
        model: the network; it is not changed.
        example_input: its inputs, as :func:`~ssl_lightning.make_plan` takes them.
        macs: multiply-adds that the new network may have: a share of at most 1 of the present ones,
            or an absolute number. It is never above, and used up as far as ranks allow: all layers
            retain one share of their energy, and what is left goes to single ranks.
        energy: share in (0, 1] of the squared singular values of each unfolding (outputs; and
            inputs, for tucker and cp) that is retained.
        ranks: layer -> rank; for tucker also ``(outputs, inputs)`` of the core. Other layers
            remain as they are.
        method: one of ``svd``, ``tucker``, ``cp``; the last two need the extra ``low-rank``.
        layers: glob or globs on names of layers.
        excluded: layer -> why it is to remain as it is whatever else is said, for the report.

    Returns:
        The new network; the plan, with which :func:`~ssl_lightning.save_compact` stores it; and
        what was done to each layer.

    Raises:
        ValueError: for no or several of ``macs``, ``energy`` and ``ranks``, or a wrong one; for
            multiply-adds that cannot be reached, saying what is left; for layers that do not exist,
            a network whose code reads the weights of a layer, or weights that are not finite.

    Reference:
        Kim et al., Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
        Applications, ICLR 2016; Lebedev et al., Speeding-up Convolutional Neural Networks Using
        Fine-tuned CP-Decomposition, ICLR 2015; for the norms Srebro & Shraibman, COLT 2005, and Fan
        et al., Factor Group-Sparse Regularization for Efficient Low-Rank Matrix Recovery, 2019.

    Example:
        >>> import torch
        >>> from ssl_lightning import create_backbone
        >>> net, x = create_backbone("lenet"), torch.zeros(1, 1, 28, 28)
        >>> small, plan, report = factorise(net, x, ranks={"fc1": 20, "conv2": 9}, method="svd")
        >>> small.fc1[0].out_features, plan.factors["conv2"].ranks, report.macs
        (20, (9,), (2293000, 635800))
    """
    pick("method of factors", method, METHODS)
    check_choice("factorise", macs, energy, ranks)
    if METHODS[method].spatial:
        require_tensorly(f"factorise(method={method!r})")
    check_finite(model)
    excluded = excluded or {}
    found = find_layers(model, example_input, method, layers, excluded)
    if ranks is not None:
        chosen = given_ranks(model, found, {k: v for k, v in ranks.items() if k not in excluded})
    elif energy is not None:
        chosen = dict(by_energy(found.candidates, energy))
    else:
        assert macs is not None
        chosen = reach(found, macs)
    saved = saving(found.candidates, chosen)
    factors = {
        name: Factors(found.candidates[name].method, r)
        for name, r in saved.items()
        if r is not None
    }
    plan = replace(empty_plan(as_inputs(example_input)), factors=factors)
    small = factorised(model, plan)
    return Factorised(small, plan, reported(model, small, found, chosen, plan, example_input))


def check_choice(
    where: str, macs: float | None, energy: float | None, ranks: GivenRanks | None
) -> None:
    """Make sure that exactly one thing says how large the ranks are.

    Raises:
        ValueError: if not, or if it is out of range.
    """
    given = [
        k for k, v in {"macs": macs, "energy": energy, "ranks": ranks}.items() if v is not None
    ]
    if len(given) != 1:
        raise ValueError(
            f"{where}: expected one of macs, energy and ranks, got "
            f"{' and '.join(given) or 'none'}. Give macs=0.5 for half of the multiply-adds, say."
        )
    number = isinstance(energy, (int, float)) and not isinstance(energy, bool)
    if energy is not None and not (number and 0 < energy <= 1):
        raise ValueError(
            f"{where}: expected energy as a share in (0, 1], got {energy!r}. Give 0.9 to retain "
            "nine tenths of the squared singular values, say."
        )
    if macs is not None:
        parse_targets(where, {"macs": macs})
    if ranks is not None and not (isinstance(ranks, Mapping) and ranks):
        raise ValueError(
            f"{where}: expected ranks as a mapping from layers, got {ranks!r}. Give "
            "{'conv2': 8}, say."
        )


def given_ranks(model: nn.Module, found: Found, ranks: GivenRanks) -> Ranks:
    """Return the ranks that a user gave, of layers that can be replaced.

    Raises:
        ValueError: naming the layer, and which ranks it can have.
    """
    chosen: dict[str, tuple[int, ...] | None] = {}
    for name, given in ranks.items():
        where = f"factorise: ranks of `{name}`"
        if name in found.left:
            raise ValueError(
                f"{where}: it has to remain as it is: {found.left[name]}. Leave it out."
            )
        if name not in found.candidates:
            raise ValueError(
                f"{where}: {type(model).__name__} has no such layer among those that `layers` "
                f"matches. {nearest(name, found.candidates)}"
            )
        candidate = found.candidates[name]
        values: Any = given
        if type(given) is int:  # one for all, as far as they go
            most = candidate.largest
            values = [min(given, m) if given <= max(most) else given for m in most]
        if not isinstance(values, (list, tuple)) or not all(type(r) is int for r in values):
            raise ValueError(f"{where}: expected a whole number, or several, got {given!r}.")
        check_ranks(where, candidate.layer, Factors(candidate.method, tuple(values)))
        chosen[name] = tuple(values)
    return chosen


def reach(found: Found, macs: float) -> Ranks:
    """Return the ranks with which a network has at most so many multiply-adds.

    Raises:
        ValueError: if there are none, saying what is left.
    """
    (target,) = parse_targets("factorise", {"macs": macs})
    limit = target.limit(found.macs)
    least = total_cost(found.candidates, smallest(found.candidates))
    fixed = found.macs - sum(candidate.macs for candidate in found.candidates.values())
    if fixed + least > limit:
        names = ", ".join(f"{name} ({why})" for name, why in list(found.left.items())[:5])
        raise ValueError(
            f"factorise: {target} cannot be reached: with rank 1 in all {len(found.candidates)} "
            f"layers that can be replaced, {fixed + least:,} of {found.macs:,} multiply-adds are "
            f"left ({(fixed + least) / max(found.macs, 1):.1%}), {fixed:,} of them in other layers"
            f"{', among them ' + names if names else ''}. Allow more, or more `layers`."
        )
    return within(found.candidates, limit - fixed)


def factorised(model: nn.Module, plan: Plan) -> nn.Module:
    """Return the network that the factors of a plan make of a model with its weights.

    Args:
        model: the network; it is not changed.
        plan: with factors, of this architecture.

    Raises:
        ValueError: if the plan does not fit, or the code of the network reads what is replaced.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        >>> plan = Plan({}, ((1, 8),), ("float32",), factors={"0": Factors("svd", (2,))})
        >>> factorised(net, plan)[0][1].in_features
        2
    """
    small = insert_factors_(working_copy(model, apart=False), plan.factors)
    for name, factor in plan.factors.items():
        layers: Any = small.get_submodule(name)
        fill_(layers, model.get_submodule(name), factor)
    return small


def reported(
    model: nn.Module,
    small: nn.Module,
    found: Found,
    chosen: Ranks,
    plan: Plan,
    example_input: ExampleInput,
) -> LowRankReport:
    """Return what was replaced, after running the new network once.

    Raises:
        ValueError: if it does not run.
    """
    try:
        own = count_macs(small, example_input, per_layer=True)
    except Exception as error:  # whatever the network's code raises where it reads a layer
        raise ValueError(
            f"factorise: {type(model).__name__} does not run with the factors: "
            f"{first_line(error)}. Its code reads an attribute of a layer that was replaced; leave "
            "that layer out with `layers`."
        ) from error
    rows, left = {}, dict(found.left)
    for name, candidate in found.candidates.items():
        factor = plan.factors.get(name)
        if factor is None:
            left[name] = NO_SAVING if name in chosen else "no rank is given for it"
            continue
        parts: Any = small.get_submodule(name)
        weight = candidate.layer.weight.detach().double()
        missed = (weight - product(parts).double()).norm() / weight.norm().clamp_min(1e-300)
        after = sum(n for path, n in own.items() if path.startswith(f"{name}."))
        macs = (candidate.macs, after)
        rows[name] = FactorRow(factor.method, factor.ranks, candidate.largest, macs, float(missed))
    return LowRankReport(rows, (found.macs, sum(own.values())), left)
