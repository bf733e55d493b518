"""The plan: which channels of which modules are kept. Data, JSON.

Independent of any weights, but for the constants that are folded into biases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.compaction.factors import Factors, read_factors
from ssl_lightning.compaction.structure import from_structure
from ssl_lightning.graph import Inputs, SiteSlices
from ssl_lightning.parsing import parse_json
from ssl_lightning.suggest import aligned, check_keys, shortened

SCHEMA = 1
MOST_PLANS = 1000
HEADER = ("module", "inputs", "outputs", "what remains, and why")


@dataclass(frozen=True)
class Plan:
    """What :func:`compact` keeps of each module.

    Attributes:
        modules: module name -> kept input and output channels.
        input_shapes: shapes of the inputs the plan was made with, batch first.
        input_types: their types, such as ``"float32"``.
        notes: sentences about what could not be removed and why.
        sparse: convolutions that become column-sparse; see :func:`choose_layers`.
        structure: how the network is called with these inputs, if not with each by position; see
            :func:`structure_of`.
        checks: sentences about what was not compared, or only roughly: sizes of the inputs that the
            network itself refuses, lower precision, train mode.
        factors: layer -> the low rank factors that replace it; see
            :func:`~ssl_lightning.low_rank.factorise`. A plan with factors retains all channels;
            what is removed of the factors then is another plan.

    Raises:
        ValueError: for a plan that has factors and removes channels as well.

    Example:
        >>> from ssl_lightning import Selector, create_backbone, make_plan, prune_
        >>> net = create_backbone("lenet")
        >>> groups = [Selector("filter", "conv1")]
        >>> _ = prune_(net, torch.zeros(1, 1, 28, 28), fraction=0.5, groups=groups)
        >>> plan = make_plan(net, torch.zeros(1, 1, 28, 28))
        >>> len(plan.modules["conv1"].outputs)
        10
        >>> plan  # print(plan) shows the table of `explain`
        Plan(2 of 4 modules lose channels, input_shapes=((1, 1, 28, 28),))
    """

    modules: dict[str, SiteSlices]
    input_shapes: tuple[tuple[int, ...], ...]
    input_types: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    sparse: tuple[str, ...] = field(default=())
    structure: Any = None
    checks: tuple[str, ...] = field(default=())
    factors: dict[str, Factors] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.factors and (self.modules or self.sparse):
            raise ValueError(
                "Plan: expected low rank factors or channels to retain, got both. Give two plans, "
                "in the order in which they are carried out."
            )

    def __repr__(self) -> str:
        what = f"{len(self.removed())} of {len(self.modules)} modules lose channels"
        if self.sparse:
            what += f", {len(self.sparse)} become column-sparse"
        if self.factors:
            what = f"factors of {len(self.factors)} layers"
        return f"{type(self).__name__}({what}, input_shapes={self.input_shapes})"

    def __str__(self) -> str:
        return self.explain()

    def removed(self) -> dict[str, SiteSlices]:
        """Return the modules that lose something."""
        return {name: slices for name, slices in self.modules.items() if slices.shrinks()}

    def explain(self) -> str:
        """Return a table: what is kept of each module, and why zeros in it remain.

        Example:
            >>> slices = SiteSlices((0, 1), (0, 1, 2), (3, 4), False, idle=1, reason="it is tied")
            >>> print(Plan({"conv1": slices}, ((1, 3, 8, 8),), ("float32",)).explain())
            module  inputs  outputs  what remains, and why
            conv1   2/3     3/4      1 zero or unread output: it is tied
        """
        notes = (*self.notes, *self.checks, *map(factor_note, self.factors.items()))
        rows = [HEADER, *(explain_row(name, slices) for name, slices in self.modules.items())]
        return "\n".join([*aligned(rows), *(f"note: {note}" for note in notes)])

    def example_inputs(self, device: torch.device | None = None) -> tuple[Tensor, ...]:
        """Return zeros of the shapes and types of the tensors the plan was made with."""
        types = [getattr(torch, name) for name in self.input_types]
        pairs = zip(self.input_shapes, types, strict=True)
        return tuple(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in pairs)

    def inputs(self, device: torch.device | None = None) -> Inputs:
        """Return the whole inputs, nested as they were, with zeros for the tensors."""
        return from_structure(self.structure, self.example_inputs(device))

    def to_json(self) -> str:
        """Return the plan as JSON; :meth:`from_json` reads it back."""
        data = asdict(self)
        for name in (
            "structure",
            "checks",
            "factors",
        ):  # younger than the schema; without them, as ever
            if not data[name]:
                del data[name]
        return json.dumps({"schema": SCHEMA, **data}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan written by :meth:`to_json`.

        Raises:
            ValueError: if the text is no plan, or one of an unknown schema version.
        """
        data = parse_json(text, f"Plan {shortened(text, 40)}")
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise ValueError(
                f"Plan: expected an object with schema {SCHEMA}. It was written by another version "
                "of this library, or is no plan; make it again with `make_plan`."
            )
        check_keys("Plan", data, [f.name for f in fields(cls)])
        try:
            modules = {name: read_slices(name, given) for name, given in data["modules"].items()}
            shapes = tuple(tuple(int(n) for n in shape) for shape in data["input_shapes"])
            types = tuple(read_type(name) for name in data["input_types"])
            notes = tuple(str(note) for note in data.get("notes", ()))
            sparse = tuple(str(name) for name in data.get("sparse", ()))
            checks = tuple(str(check) for check in data.get("checks", ()))
            factors = read_factors(data.get("factors", {}))
            structure = data.get("structure")
            plan = cls(modules, shapes, types, notes, sparse, structure, checks, factors)
            plan.inputs(torch.device("meta"))
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"Plan: damaged, {type(error).__name__}: {shortened(str(error), 200)}."
            ) from error
        return plan


def explain_row(name: str, slices: SiteSlices) -> tuple[str, str, str, str]:
    """Return one module's cells of the table."""
    kept_in, kept_out = len(slices.inputs), len(slices.outputs)
    what = ""
    if slices.idle:
        plural = "s" if slices.idle > 1 else ""
        what = f"{slices.idle} zero or unread output{plural}: {slices.reason}"
    if slices.zero:
        what = f"not computed any more; {what}" if what else "not computed any more"
    elif slices.constant:
        what = f"only its constant; {what}" if what else "only its constant"
    elif slices.is_subset() or slices.folded:
        what = f"{subset_text(slices)}; {what}" if what else subset_text(slices)
    return name, f"{kept_in}/{slices.of[0]}", f"{kept_out}/{slices.of[1]}", what


def factor_note(item: tuple[str, Factors]) -> str:
    """Say by which factors a layer was replaced."""
    name, factors = item
    return f"{name} became factors ({factors.method}) of rank {', '.join(map(str, factors.ranks))}"


def subset_text(slices: SiteSlices) -> str:
    """Say which inputs a layer reads and which outputs it computes, and what it has as bias."""
    parts = []
    if slices.reads is not None:
        parts.append(f"reads {len(slices.reads)} of its {len(slices.inputs)} inputs")
    if slices.writes is not None:
        parts.append(f"computes {len(slices.writes)} of its {len(slices.outputs)} outputs")
    if slices.folded:
        parts.append(f"has {len(slices.folded)} constant inputs in its bias")
    return ", ".join(parts)


def read_slices(name: str, given: Mapping[str, Any]) -> SiteSlices:
    """Return one module's slices from their JSON form."""
    name = shortened(name)[1:-1]
    check_keys(f"Plan of `{name}`", given, list(SiteSlices.__dataclass_fields__))
    old = given["of"]
    sides = (given["inputs"], given["outputs"])
    if len(old) != 2 or not all(type(n) is int for n in (*old, *sides[0], *sides[1])):
        raise ValueError(f"Plan of `{name}`: expected channel numbers, got {shortened(given)}.")
    for kept, count in zip(sides, old, strict=True):
        if any(not 0 <= i < count for i in kept) or sorted(set(kept)) != list(kept):
            raise ValueError(
                f"Plan of `{name}`: expected ascending channels below {count}, got "
                f"{shortened(kept)}."
            )
    parts = {
        key: read_part(name, given.get(key), kept)
        for key, kept in zip(("reads", "writes"), sides, strict=True)
    }
    folded, constants = given.get("folded", ()), given.get("constants", ())
    if len(folded) != len(constants) or any(not 0 <= i < old[0] for i in folded):
        raise ValueError(
            f"Plan of `{name}`: expected one constant for each folded input below {old[0]}, got "
            f"{len(constants)} for {shortened(folded)}."
        )
    return SiteSlices(
        tuple(sides[0]),
        tuple(sides[1]),
        (old[0], old[1]),
        bool(given["zero"]),
        bool(given.get("constant", False)),
        int(given.get("idle", 0)),
        str(given.get("reason", "")),
        **parts,
        folded=tuple(int(i) for i in folded),
        constants=tuple(float(value) for value in constants),
        dim=None if given.get("dim") is None else int(given["dim"]),
        attributes={str(k): int(v) for k, v in given.get("attributes", {}).items()},
    )


def read_part(name: str, given: Any, kept: Sequence[int]) -> tuple[int, ...] | None:
    """Return the channels that a layer reads or writes, or None for all that are kept."""
    if given is None:
        return None
    if sorted(set(given) & set(kept)) != list(given):
        raise ValueError(
            f"Plan of `{name}`: expected some of the channels {shortened(kept)}, got "
            f"{shortened(given)}."
        )
    return tuple(given)


def read_type(name: str) -> str:
    """Return the name of a torch type, or raise ValueError."""
    if not isinstance(getattr(torch, str(name), None), torch.dtype):
        raise ValueError(
            f"Plan: expected the name of a torch type such as 'float32', got {shortened(name)}."
        )
    return name


def plans_to_data(plans: Sequence[Plan]) -> Any:
    """Return plans as plain values: one alone as a mapping, several as a list of them."""
    data = [json.loads(plan.to_json()) for plan in plans]
    return data[0] if len(data) == 1 else data


def plans_from_data(data: Any) -> tuple[Plan, ...]:
    """Return the plans that :func:`plans_to_data` turned into plain values.

    Raises:
        ValueError: if one of them is damaged.

    Example:
        >>> plan = Plan({}, ((1, 3),), ("float32",))
        >>> plans_from_data(plans_to_data([plan, plan])) == (plan, plan)
        True
    """
    given = data if isinstance(data, list) else [data]
    if len(given) > MOST_PLANS:
        raise ValueError(f"expected at most {MOST_PLANS} plans, got {len(given)}.")
    return tuple(Plan.from_json(json.dumps(each)) for each in given)
