"""From selectors (kind and layer pattern) to the group sets of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ssl_lightning.graph import (
    CoupledFamily,
    ExampleInput,
    ResidualBranch,
    Trace,
    computed_tensors,
    coupled_channels,
    how_to_remove,
    norm_followers,
    residual_branches,
    scale_of_outputs,
    trace,
    weight_places,
    with_plain_weights,
    written,
)
from ssl_lightning.groups.kinds import (
    COUPLED,
    COUPLED_KINDS,
    FFN,
    HEAD,
    KINDS,
    OUTPUT_KINDS,
    has_kind,
    index_dims,
    layer_type,
    weight_axes,
)
from ssl_lightning.groups.members import members_of
from ssl_lightning.groups.sets import GroupSet, Member
from ssl_lightning.suggest import check_keys, nearest, pick

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORM_NAMES = ("weight", "bias")


@dataclass(frozen=True)
class Selector:
    """Which groups: a kind, and the layers by a glob (or several) on their qualified names.

    Attributes:
        kind: filter, channel, shape, kernel, depth, neuron_in, neuron_out; or coupled: all that
            must be zero for a channel to go, such as the filters of all layers that write it; or of
            the same origin, head (attention heads) and ffn (hidden neurons of feed-forward parts).
        layers: glob or globs, such as ``"conv*"`` or ``["layer1.*", "fc"]``. Layers that match
            but have no such groups (a linear layer has no filters) are passed over. A coupled
            family is taken as a whole if any of its layers matches.
        members: ``"all"`` puts bias and batch-norm scale and shift into the group of a filter,
            output neuron or layer (they are what its output consists of), ``"weight"`` only the
            weight, as in the paper.
    """

    kind: str
    layers: str | Sequence[str] = "*"
    members: str = "all"

    def __post_init__(self) -> None:
        pick("group kind", self.kind, dict.fromkeys(KINDS))
        if self.members not in ("all", "weight"):
            raise ValueError(
                f"Groups of kind {self.kind!r}: expected members 'all' or 'weight', got "
                f"{self.members!r}. Take 'weight' for the paper's groups."
            )

        as_patterns(f"Groups of kind {self.kind!r}", self.layers)

    def patterns(self) -> list[str]:
        """Return the globs."""
        return as_patterns(f"Groups of kind {self.kind!r}", self.layers)


class Surroundings:
    """What a model's graph says about a layer; traced on first use, for it takes seconds."""

    def __init__(self, model: nn.Module, example_input: ExampleInput, strict: bool) -> None:
        self.model = model
        self.strict = strict
        self.example_input = example_input
        self.modules = dict(model.named_modules())
        self.plain = with_plain_weights(model)
        self._traced: Trace | None = None
        self._found: tuple[dict[str, str], list[ResidualBranch]] | None = None
        self._families: list[CoupledFamily] | None = None
        self.retained: dict[str, str] = {}

    def traced(self, reason: str) -> Trace:
        """Return the model's trace."""
        if self._traced is None:
            if self.example_input is None:
                raise ValueError(
                    f"resolve_groups: {reason}, which takes a run of the model to find out. Pass "
                    "`example_input` (SSLLightningModule: `input_shape`, such as [3, 32, 32])."
                )
            self._traced = trace(self.plain, self.example_input)
        return self._traced

    def find(self, reason: str) -> tuple[dict[str, str], list[ResidualBranch]]:
        """Return norms that follow layers, and residual branches."""
        if self._found is None:
            traced = self.traced(reason)
            self._found = norm_followers(traced), residual_branches(traced)
        return self._found

    def families(self) -> list[CoupledFamily]:
        """Return the channels that can go, with all that writes them."""
        if self._families is None:
            traced = self.traced("coupled groups are what the layers have in common")
            found, self.retained = coupled_channels(self.plain, traced)
            self._families = [f for f in found if not unreachable(self.modules, f)]
            for layer in filter(None, (unreachable(self.modules, f) for f in found)):
                call = how_to_remove(layer, self.modules[layer])
                self.retained[layer] = f"its weight is no parameter but computed; call {call} first"
        return self._families

    def has_kind(self, kind: str) -> bool:
        """Whether the model has groups of a coupled kind."""
        return any(has_family_kind(self, family, kind) for family in self.families())

    def norm_after(self, layer: str) -> str | None:
        """Return the batch norm that alone reads a layer's output."""
        if not any(isinstance(m, NORMS) for m in self.modules.values()):
            return None
        return self.find(f"the batch norm behind `{layer}` belongs to its groups")[0].get(layer)

    def has_shortcut(self, layer: str) -> bool:
        """Whether a layer is in a residual branch, so that the network is not cut without it."""
        branches = self.find(f"depth groups need a shortcut around `{layer}`")[1]
        return any(layer in branch.weighted for branch in branches)

    def require_shortcut(self, layer: str) -> None:
        """Reject a depth group without which the network would be cut."""
        if not self.has_shortcut(layer):
            raise ValueError(
                f"Cannot collapse `{layer}`: it has no shortcut, so the network would be cut. "
                "Exclude it from the depth groups."
            )


def resolve_groups(
    model: nn.Module,
    selectors: Sequence[Selector | Mapping[str, Any]],
    example_input: ExampleInput = None,
) -> list[GroupSet]:
    """Return the group sets that the selectors name, one per kind and layer (or coupled family).

    Args:
        model: any module; it is not changed.
        selectors: :class:`Selector` objects or mappings with their fields, such as
            ``{"kind": "filter", "layers": "conv*"}``.
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
    for selector in map(as_selector, selectors):
        sets = make_sets(around, selector)
        for group_set in sets:
            if known.setdefault(group_set.name, group_set) != group_set:
                raise ValueError(
                    f"The {selector.kind} groups of `{group_set.layer}` are selected twice, with "
                    "members 'all' and with members 'weight'. Give both selectors the same "
                    "`members`, or patterns in `layers` that do not overlap."
                )
        result.append([known[s.name] for s in sets])
    return result


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


def as_patterns(where: str, layers: str | Sequence[str]) -> list[str]:
    """Return a glob, or several, as a list.

    Raises:
        ValueError: if there is none, or one is no string.
    """
    patterns = [layers] if isinstance(layers, str) else layers
    if not isinstance(patterns, (list, tuple)) or not patterns:
        raise ValueError(
            f"{where}: expected `layers` to be a glob or a list of globs on layer names, got "
            f"{layers!r}. Take '*' for all layers."
        )
    if wrong := [p for p in patterns if not isinstance(p, str)]:
        raise ValueError(
            f"{where}: expected globs in `layers`, got {wrong[0]!r}. Put names in quotes."
        )
    return list(patterns)


def as_selector(given: Selector | Mapping[str, Any]) -> Selector:
    """Return a selector from a mapping of its fields."""
    if isinstance(given, Selector):
        return given
    check_keys("Group selector", given, ["kind", "layers", "members"])
    if "kind" not in given:
        raise ValueError(f"Group selector {dict(given)} has no kind. {nearest('', KINDS)}")
    return Selector(**given)


def matching_layers(around: Surroundings, selector: Selector) -> list[str]:
    """Return the names of the layers that a selector matches, in the model's order."""
    layers = {name: m for name, m in around.modules.items() if layer_type(m) is not None}
    able = [name for name, module in layers.items() if has_kind(module, selector.kind)]
    chosen = match(selector, able, layers, around.strict)
    if selector.kind == "depth" and not around.strict:
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


def layers_of(family: CoupledFamily) -> list[str]:
    """Return the modules whose weights write a family's channels."""
    return list(dict.fromkeys((*(name for name, _ in family.writers), *family.owners)))


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


def unreachable(modules: Mapping[str, nn.Module], family: CoupledFamily) -> str:
    """Return a layer of a family whose weight cannot be zeroed in slices, or "".

    It is computed from other parameters in such a way that no slice of them is zero alone.
    """
    for name, _ in family.writers:
        for tensor in computed_tensors(modules[name]):
            if scale_of_outputs(modules[name], tensor) is None:
                return name
    return ""


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


def has_family_kind(around: Surroundings, family: CoupledFamily, kind: str) -> bool:
    """Whether the channels of a family are what a selector of that kind asks for."""
    if kind != FFN:
        return family.heads == (kind == HEAD)
    found = [(n, around.modules[n]) for n in layers_of(family)]
    writers = [(n, m) for n, m in found if n in family.owners or layer_type(m)]
    parents = {name.rpartition(".")[0] for name, _ in writers}
    return not family.heads and len(parents) == 1 and all(is_pointwise(m) for _, m in writers)


def is_pointwise(module: nn.Module) -> bool:
    """Whether a layer is linear, or a 1x1 convolution."""
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return False
    sizes = getattr(module, "kernel_size", 1)
    return isinstance(module, nn.Linear) or sizes in (1, (1,), (1, 1), (1, 1, 1))


def make_set(around: Surroundings, layer: str, selector: Selector) -> GroupSet:
    """Return the group set of one layer."""
    module = around.modules[layer]
    if not isinstance(dict(module.named_parameters(recurse=False)).get("weight"), nn.Parameter):
        raise ValueError(
            f"Groups of kind {selector.kind!r}: the weight of `{layer}` is not a parameter but "
            "computed from others (a parametrization, such as weight norm). "
            f"{removal(layer, module)}, or exclude the layer by `layers`."
        )
    shape, axes = weight_axes(module)
    weight = Member(qualified(layer, "weight"), shape, index_dims(axes, selector.kind))
    if selector.kind == "depth":
        around.require_shortcut(layer)
    if selector.kind not in OUTPUT_KINDS:
        return GroupSet(layer, selector.kind, (weight,))
    extra = tuple(output_members(around, layer, whole=selector.kind == "depth"))
    if selector.members == "all":
        return GroupSet(layer, selector.kind, (weight, *extra))
    return GroupSet(layer, selector.kind, (weight,), extra)


def removal(layer: str, module: nn.Module) -> str:
    """Say how to make a layer's weight a parameter."""
    known = computed_tensors(module)
    return f"Call {how_to_remove(layer, module)} first" if known else "Make it one"


def output_members(around: Surroundings, layer: str, *, whole: bool) -> list[Member]:
    """Return bias, norm scale and norm shift of a layer: one value per output channel."""
    norm = around.norm_after(layer)
    owners = [(layer, ("bias",))] if norm is None else [(layer, ("bias",)), (norm, NORM_NAMES)]
    members = []
    for owner, names in owners:
        for name in names:
            parameter = getattr(around.modules[owner], name, None)
            if isinstance(parameter, nn.Parameter):
                dims = () if whole else (0,)
                members.append(Member(qualified(owner, name), tuple(parameter.shape), dims))
    return members


def qualified(module: str, parameter: str) -> str:
    """Return a parameter's qualified name; the root module's name is empty."""
    return f"{module}.{parameter}" if module else parameter
