"""From selectors (kind and layer pattern) to the group sets of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ssl_lightning.graph import (
    CoupledFamily,
    ExampleInput,
    computed_tensors,
    how_to_remove,
    scale_of_outputs,
    weight_places,
    written,
)
from ssl_lightning.groups.kinds import (
    COUPLED,
    COUPLED_KINDS,
    KINDS,
    GroupKind,
    View,
    layer_type,
)
from ssl_lightning.groups.members import members_of
from ssl_lightning.groups.selectors import EVERY, Selector, as_list, as_selector
from ssl_lightning.groups.sets import GroupSet, Member
from ssl_lightning.groups.surroundings import Surroundings, has_family_kind, layers_of

NORM_NAMES = ("weight", "bias")


def resolve_groups(
    model: nn.Module,
    selectors: Sequence[Selector | Mapping[str, Any]],
    example_input: ExampleInput = None,
) -> list[GroupSet]:
    """Return the group sets that the selectors name, one per kind and layer (or coupled family).

    Args:
        model: any module; it is not changed.
        selectors: :class:`Selector` objects, mappings with their fields, such as
            ``{"kind": "filter", "layers": "conv*"}``, or kinds. Of layers that share a weight, the
            first that a selector matches has its groups.
        example_input: inputs of the model. Needed for depth and coupled groups, and for filter
            and neuron groups of models with batch norm.

    Raises:
        ValueError: for an unknown kind or key, a pattern that matches no layer of that kind (the
            message lists the layers there are), a depth group without a shortcut, a layer whose
            weight is no parameter, and two selectors that want the same groups with different
            members.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> sets = resolve_groups(create_backbone("lenet"), [{"kind": "shape", "layers": "conv*"}])
        >>> [(s.name, s.num_groups, s.group_size) for s in sets]
        [('conv1:shape', 25, 20), ('conv2:shape', 500, 50)]
    """
    found = resolve_each(model, selectors, example_input)
    return list({s.name: s for group_sets in found for s in group_sets}.values())


def resolve_each(
    model: nn.Module,
    selectors: Sequence[Selector | Mapping[str, Any]],
    example_input: ExampleInput = None,
    *,
    strict: bool = True,
    around: Surroundings | None = None,
) -> list[list[GroupSet]]:
    """Return the group sets of each selector, in the model's order; see :func:`resolve_groups`.

    A group set that several selectors name is the same object in each of their lists.

    Args:
        model: any module; it is not changed.
        selectors: as for :func:`resolve_groups`.
        example_input: as for :func:`resolve_groups`.
        strict: False passes over patterns that match no layer and depth groups without a shortcut,
            for a model that lost layers in compaction.
        around: what is known of the model already, instead of ``example_input``.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> selectors = [{"kind": "neuron_in"}, {"kind": "neuron_in", "layers": "1"}]
        >>> [[s.name for s in group_sets] for group_sets in resolve_each(net, selectors)]
        [['0:neuron_in', '1:neuron_in'], ['1:neuron_in']]
    """
    around = around or Surroundings(model, example_input, strict)
    known: dict[str, GroupSet] = {}
    result = []
    for selector in map(as_selector, as_list(selectors)):
        sets = untied(around.model, make_sets(around, selector))
        for group_set in sets:
            if known.setdefault(group_set.name, group_set) != group_set:
                raise ValueError(
                    f"The {selector.kind} groups of `{group_set.layer}` are selected twice, with "
                    "members 'all' and with members 'weight'. Give both selectors the same "
                    "`members`, or patterns in `layers` that do not overlap."
                )
        result.append([known[s.name] for s in sets])
    return result


def untied(model: nn.Module, sets: Iterable[GroupSet]) -> list[GroupSet]:
    """Leave out sets of the same slices of the same tensors: weights that layers share count once.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        >>> net[1].weight = net[0].weight
        >>> [s.name for s in resolve_each(net, [{"kind": "neuron_out"}])[0]]
        ['0:neuron_out']
    """
    tensors = named_tensors(model)
    first: dict[Any, GroupSet] = {}
    for group_set in sets:
        first.setdefault(
            tuple(
                tuple((id(tensors[m.parameter]), m.shape, m.index_dims, m.index) for m in part)
                for part in (group_set.members, group_set.companions)
            ),
            group_set,
        )
    return list(first.values())


def repeated_sets(found: Iterable[GroupSet]) -> dict[str, str]:
    """Return the coupled sets whose groups are those of a set of a more specific kind.

    Such kinds are head and ffn, and where one layer writes the channels, filter and neuron_out.
    Groups that only overlap (rows and columns, a filter in a larger coupled group) do not count.

    Returns:
        Name of the coupled set -> name of the other one.

    Example:
        >>> rows = (Member("w", (4, 3), (0,)),)
        >>> repeated_sets([GroupSet("fc1", "coupled", rows), GroupSet("fc1", "ffn", rows)])
        {'fc1:coupled': 'fc1:ffn'}
    """
    sets = list(found)
    specific = {slices_of(s): s.name for s in sets if s.kind != COUPLED}
    coupled = [s for s in sets if s.kind == COUPLED]
    return {s.name: specific[slices_of(s)] for s in coupled if slices_of(s) in specific}


def slices_of(group_set: GroupSet) -> frozenset[Member]:
    """Return what a zeroed group of a set zeroes, whatever counts into its norm."""
    return frozenset((*group_set.members, *group_set.companions))


def matching_layers(around: Surroundings, selector: Selector) -> list[str]:
    """Return the names of the layers that a selector matches, in the model's order."""
    layers = [name for name, m in around.modules.items() if layer_type(m) is not None]
    kind = KINDS[selector.kind]
    weighted = {n: m for n, m in around.modules.items() if hasattr(m, "weight")}
    weighted = {n: m for n, m in weighted.items() if isinstance(m.weight, Tensor)}
    able = [name for name, module in weighted.items() if kind.view(module) is not None]
    if kind.shortcut and selector.layers == EVERY:
        return around.last_of_branches(able)
    chosen = match(selector, able, layers, around.strict)
    if kind.shortcut and not around.strict:
        return [layer for layer in chosen if around.has_shortcut(layer)]
    return chosen


def match(
    selector: Selector, able: Sequence[str], layers: Iterable[str], strict: bool
) -> list[str]:
    """Return those of the layers that are able to have groups which a selector matches.

    Raises:
        ValueError: if ``strict`` and one of the patterns matches none.
    """
    chosen: list[str] = []
    for pattern in selector.patterns():
        hits = [name for name in able if fnmatchcase(name, pattern)]
        if not hits and strict:
            others = [name for name in layers if fnmatchcase(name, pattern)]
            why = f"It matches {', '.join(others)}, without such groups. " if others else ""
            raise ValueError(
                f"Groups of kind {selector.kind!r}: the pattern {pattern!r} matches no layer that "
                f"has them. {why}Layers that have: {', '.join(able) or 'none'}."
            )
        chosen += [name for name in hits if name not in chosen]
    return sorted(chosen, key=able.index)


def make_sets(around: Surroundings, selector: Selector) -> list[GroupSet]:
    """Return the group sets that a selector names."""
    if selector.kind in COUPLED_KINDS:
        return coupled_sets(around, selector)
    return [make_set(around, x, selector) for x in matching_layers(around, selector)]


def coupled_sets(around: Surroundings, selector: Selector) -> list[GroupSet]:
    """Return a group set for each coupled family with a layer that the selector matches.

    It is named after the first of its layers; of several families with the same first layer, the
    later ones get a number.
    """
    layers = [name for name, m in around.modules.items() if layer_type(m) is not None]
    families = [f for f in around.families() if has_family_kind(around, f, selector.kind)]
    owners = {name for family in families for name in family.owners}
    layers = [name for name in around.modules if name in owners or name in layers]
    weighted = [[n for n in layers_of(f) if n in layers] for f in families]
    able = [name for name in layers if any(name in names for names in weighted)]
    chosen = match(selector, able, layers, around.strict)
    seen: Counter[str] = Counter()
    sets = []
    for family, names in zip(families, weighted, strict=True):
        first = names[0] if names else layers_of(family)[0]
        seen[first] += 1
        if not set(names).isdisjoint(chosen):
            layer = first if seen[first] == 1 else f"{first}#{seen[first]}"
            sets.append(coupled_set(around, layer, family, selector))
    return sets


def coupled_set(
    around: Surroundings, layer: str, family: CoupledFamily, selector: Selector
) -> GroupSet:
    """Return the group set of a family: slices of the weights, biases and norms that write it."""
    weights: list[Member] = []
    extra: list[Member] = []
    places: dict[str, list[tuple[int, ...]]] = {}
    for module, outputs in family.writers:
        places.setdefault(module, []).append(outputs)
    named = dict(around.model.named_parameters(remove_duplicate=False))
    for module, rows in places.items():
        for name in written(around.modules[module]):
            tensor = getattr(around.modules[module], name, None)
            if name in computed_tensors(around.modules[module]):
                name = str(scale_of_outputs(around.modules[module], name))
                tensor = around.model.get_parameter(qualified(module, name))
            if isinstance(tensor, Tensor):
                members = layer_members(
                    around.modules[module], qualified(module, name), tensor, rows
                )
                (weights if tensor.dim() > 1 else extra).extend(members)
    columns: dict[tuple[str, int], list[tuple[int, ...]]] = {}
    for name, dim, positions in family.parameters:
        columns.setdefault((name, dim), []).append(positions)
    for (name, dim), rows in columns.items():
        shape = tuple(named_tensors(around.model)[name].shape)
        owned = name.rpartition(".")[0] in family.owners and len(shape) > 1
        (weights if owned else extra).extend(members_of(name, shape, rows, dim))
    stored = tuple(member for member in extra if member.parameter not in named)
    extra = [member for member in extra if member.parameter in named]
    if selector.members == "all" or not weights:
        return GroupSet(layer, selector.kind, (*weights, *extra), stored)
    return GroupSet(layer, selector.kind, tuple(weights), (*extra, *stored))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, shared ones under each of their names.

    Groups may touch buffers too: the shift of a frozen batch norm, say.
    """
    return {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }


def layer_members(
    module: nn.Module, name: str, tensor: Tensor, rows: Sequence[tuple[int, ...]]
) -> list[Member]:
    """Return the members that the outputs of a layer are in one of its tensors."""
    shape, attribute = tuple(tensor.shape), name.rpartition(".")[2]
    found = [weight_places(module, attribute, row) for row in rows]
    if found[0][0] == 0 and [list(row) for row in rows] == [place for _, place in found]:
        return members_of(name, shape, rows)
    unique = {(dim, tuple(place)): None for dim, place in found}
    return [
        Member(name, shape, (dim,), () if place == tuple(range(shape[dim])) else place)
        for dim, place in unique
    ]


def make_set(around: Surroundings, layer: str, selector: Selector) -> GroupSet:
    """Return the group set of one layer."""
    module = around.modules[layer]
    if not isinstance(dict(module.named_parameters(recurse=False)).get("weight"), nn.Parameter):
        raise ValueError(
            f"Groups of kind {selector.kind!r}: the weight of `{layer}` is not a parameter but "
            "computed from others (a parametrization, such as weight norm). "
            f"{removal(layer, module)}, or exclude the layer by `layers`."
        )
    kind = KINDS[selector.kind]
    view = kind.view(module)
    check_view(kind, qualified(layer, "weight"), view, tuple(module.get_parameter("weight").shape))
    assert view is not None
    weight = Member(qualified(layer, "weight"), *view)
    if kind.shortcut:
        around.require_shortcut(layer)
    if not kind.outputs:
        return GroupSet(layer, selector.kind, (weight,))
    extra = tuple(output_members(around, layer, selector.kind, weight.num_groups))
    if selector.members == "all":
        return GroupSet(layer, selector.kind, (weight, *extra))
    return GroupSet(layer, selector.kind, (weight,), extra)


def check_view(kind: GroupKind, name: str, view: Any, shape: tuple[int, ...]) -> None:
    """Refuse a view of a kind of the user's own that does not split the weight's dimensions.

    Raises:
        ValueError: saying what would.
    """
    pair = isinstance(view, tuple) and len(view) == 2
    whole = pair and all(
        isinstance(part, tuple) and all(type(number) is int for number in part) for part in view
    )
    if not whole or not splits(view[0], shape) or not ascending(view[1], len(view[0])):
        raise ValueError(
            f"The view that `{type(kind).__name__}` gives of `{name}`: expected a shape that "
            f"splits dimensions of {shape}, and the numbers of dimensions of that, ascending, such "
            f"as ({shape}, (0,)); got {view!r}. Correct `view`."
        )


def splits(view: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a view's shape is that of a tensor with some dimensions split.

    Example:
        >>> splits((2, 3, 4), (6, 4)), splits((6, 2, 2), (6, 4)), splits((4, 6), (6, 4))
        (True, True, False)
    """
    rest = list(view)
    for size in shape:
        part = 1
        while part < size and rest and rest[0] > 0:
            part *= rest.pop(0)
        if part != size:
            return False
    return all(size == 1 for size in rest)


def ascending(dims: tuple[int, ...], count: int) -> bool:
    """Whether dims are different ones of so many dimensions, in their order."""
    return list(dims) == sorted(set(dims) & set(range(count)))


def removal(layer: str, module: nn.Module) -> str:
    """Say how to make a layer's weight a parameter."""
    known = computed_tensors(module)
    return f"Call {how_to_remove(layer, module)} first" if known else "Make it one"


def output_members(around: Surroundings, layer: str, kind: str, num_groups: int) -> list[Member]:
    """Return bias, norm scale and norm shift of a layer: an equal number of outputs per group."""
    norm = around.norm_after(layer)
    owners = [(layer, ("bias",))] if norm is None else [(layer, ("bias",)), (norm, NORM_NAMES)]
    members = []
    for owner, names in owners:
        for name in names:
            parameter = getattr(around.modules[owner], name, None)
            if isinstance(parameter, nn.Parameter):
                if len(parameter) % num_groups:
                    raise ValueError(
                        f"Groups of kind {kind!r}: `{layer}` has {num_groups} of them, which "
                        f"cannot share its {len(parameter)} outputs evenly. Exclude the layer."
                    )
                view = output_view(len(parameter), num_groups)
                members.append(Member(qualified(owner, name), *view))
    return members


def output_view(outputs: int, num_groups: int) -> View:
    """Return how a value per output is viewed so that the outputs of a group stand together.

    Example:
        >>> output_view(6, 6), output_view(6, 3), output_view(6, 1)
        (((6,), (0,)), ((3, 2), (0,)), ((6,), ()))
    """
    if num_groups in (1, outputs):
        return (outputs,), (0,) if num_groups == outputs else ()
    return (num_groups, outputs // num_groups), (0,)


def qualified(module: str, parameter: str) -> str:
    """Return a parameter's qualified name; the root module's name is empty."""
    return f"{module}.{parameter}" if module else parameter
