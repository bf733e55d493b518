"""Which channels of which layers must be zero together for a channel to be removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ssl_lightning.graph.analysis import propagate
from ssl_lightning.graph.flow import Flow
from ssl_lightning.graph.kept import SiteSlices, kept_slices
from ssl_lightning.graph.labels import FIXED
from ssl_lightning.graph.layers import TRANSPOSED, own_layer
from ssl_lightning.graph.operations.products import PRODUCTS
from ssl_lightning.graph.ops import Trace
from ssl_lightning.graph.reasons import why_embeddings, why_retained
from ssl_lightning.graph.rule import leaf


@dataclass(frozen=True)
class CoupledFamily:
    """Channels that the same layers and norms write, one output of each (or several).

    Attributes:
        writers: (module name, the output at which it writes each channel), in the order in which
            the modules run. All have one position per channel; a module of which several outputs
            belong to each channel (the halves of a chunk) has several entries.
        parameters: (qualified name, dimension, positions) of parameters that no layer owns, such as
            a layer scale, a class token or a positional embedding.
        heads: whether the channels are attention heads.
        owners: modules of which stored matrices (the weights of a recurrent layer, say) are among
            the parameters.
    """

    writers: tuple[tuple[str, tuple[int, ...]], ...]
    parameters: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    heads: bool = False
    owners: tuple[str, ...] = ()

    def places(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return (name, positions) of all writers and parameters."""
        return [*self.writers, *((name, positions) for name, _, positions in self.parameters)]

    @property
    def num_channels(self) -> int:
        """Number of channels."""
        return len(self.places()[0][1])


def coupled_families(model: nn.Module, traced: Trace) -> list[CoupledFamily]:
    """Find the channels that can be removed, with all that must be zero for each of them.

    Two outputs belong to one channel if an operation ties their slices (both sides of a residual
    addition, a depthwise convolution's filter and the channel it reads). To that are added what
    ties no slices but must be zero too: the channels that a padded shortcut copies from, and the
    same channel of all groups of a grouped convolution, which must remain balanced.

    Whether zeros there do remove a channel is tried out, on the graph only: with every second
    channel of each family zero, and nothing else. Families that keep any of them (behind a sigmoid
    or a norm without a shift, say) are omitted, and so are channels that are tied to the network's
    outputs or to an operation without a rule.

    Args:
        model: the network; its weights do not matter.
        traced: its trace.

    Example:
        >>> from ssl_lightning.graph import trace
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> coupled_families(net, trace(net, torch.zeros(1, 2)))[0].writers
        (('0', (0, 1, 2)),)
    """
    return coupled_channels(model, traced)[0]


def coupled_channels(model: nn.Module, traced: Trace) -> tuple[list[CoupledFamily], dict[str, str]]:
    """Return :func:`coupled_families`, and why layers have outputs that are in none of them."""
    flow = propagate(model, with_weights(model, traced, {}))
    tie_padded_shortcuts(flow)
    tie_conv_groups(flow)
    families = without_idle_buffers(model, traced, list(families_of(flow)))
    found, zeroed = removable(model, traced, families)
    outputs: dict[str, set[int]] = {}
    for family in found:
        for name, places in family.writers:
            outputs.setdefault(name, set()).update(places)
    stored = {name for family in found for name, _, _ in family.parameters}
    return found, why_retained(flow, outputs, zeroed) | why_embeddings(flow, stored)


def removable(
    model: nn.Module, traced: Trace, families: Sequence[CoupledFamily]
) -> tuple[list[CoupledFamily], Flow]:
    """Return the families whose channels are removed once they are zero in all their places.

    And the analysis in which they are.
    """
    zeros: dict[str, list[int]] = {}
    dims = {name: dim for family in families for name, dim, _ in family.parameters}
    for family in families:
        for name, outputs in family.places():
            zeros.setdefault(name, []).extend(outputs[1::2])
    flow = propagate(model, with_weights(model, traced, zeros, dims))
    kept = kept_slices(flow)
    found = [f for f in families if all(is_removed(kept, *place) for place in f.places())]
    return found, flow


def without_idle_buffers(
    model: nn.Module, traced: Trace, families: list[CoupledFamily]
) -> list[CoupledFamily]:
    """Take out of families the buffers that need not be zero, all of one attribute name at a time.

    So the variance of a frozen batch norm, by which it divides, is unchanged.
    """
    buffers = {name for name, _ in model.named_buffers()}
    held = {n for family in families for n, _, _ in family.parameters if n in buffers}
    if not held:
        return families
    count = len(removable(model, traced, families)[0])
    last = ("bias", "weight")
    for attribute in sorted({n.rpartition(".")[2] for n in held}, key=lambda a: (a in last, a)):
        fewer = [without_buffers(f, buffers, attribute) for f in families]
        if len(removable(model, traced, fewer)[0]) == count:
            families = fewer
    return families


def without_buffers(family: CoupledFamily, buffers: set[str], attribute: str) -> CoupledFamily:
    """Return a family without its buffers of one attribute name."""
    rest = [
        (name, dim, places)
        for name, dim, places in family.parameters
        if name not in buffers or name.rpartition(".")[2] != attribute
    ]
    return replace(family, parameters=tuple(rest))


def is_removed(kept: Mapping[str, SiteSlices], name: str, positions: tuple[int, ...]) -> bool:
    """Whether every second of some positions of a module or parameter is not kept."""
    return name in kept and set(kept[name].outputs).isdisjoint(positions[1::2])


def with_weights(
    model: nn.Module,
    traced: Trace,
    zeros: Mapping[str, list[int]],
    dims: Mapping[str, int] | None = None,
) -> Trace:
    """Return the trace with all parameters and buffers non-zero, but for some slices.

    Args:
        model: the network.
        traced: its trace.
        zeros: module name -> its outputs whose slices of all the module's parameters are zero; or
            parameter name -> the positions that are.
        dims: parameter name -> the dimension of those.
    """
    tensors = dict(traced.tensors)
    for value, name in traced.names.items():
        owner, _, attribute = name.rpartition(".")
        tensors[value] = torch.ones(traced.tensors[value].shape)
        if dims and name in dims:
            tensors[value].index_fill_(dims[name], torch.tensor(zeros[name]).long(), 0.0)
        elif owner in zeros and attribute in written(model.get_submodule(owner)):
            module = model.get_submodule(owner)
            dim, places = weight_places(module, attribute, zeros[owner])
            tensors[value].index_fill_(dim, torch.tensor(places).long(), 0.0)
    return replace(traced, tensors=tensors, users={})


def written(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the tensors of which a slice must be zero for an output to be.

    A norm without a scale must subtract nothing.
    """
    if (own := own_layer(module)) is not None:
        return own.written_in(module)
    alone = getattr(module, "weight", None) is None and hasattr(module, "running_mean")
    return ("running_mean",) if alone else ("weight", "bias")


def weight_places(
    module: nn.Module, attribute: str, outputs: Sequence[int]
) -> tuple[int, list[int]]:
    """Return the dimension of a layer's tensor that numbers its outputs, and their positions.

    Of a grouped transposed convolution, that is the same output of every group.

    Example:
        >>> weight_places(nn.ConvTranspose2d(2, 4, 3), "weight", [1, 3])
        (1, [1, 3])
        >>> weight_places(nn.ConvTranspose2d(2, 4, 3, groups=2), "weight", [0, 1])
        (0, [0])
    """
    if (own := own_layer(module)) is not None:
        return own.outputs[attribute] % getattr(module, attribute).dim(), list(outputs)
    if attribute != "weight" or not isinstance(module, TRANSPOSED):
        return 0, list(outputs)
    per_group = module.out_channels // module.groups
    if module.groups == module.in_channels > 1:
        return 0, list(dict.fromkeys(o // per_group for o in outputs))
    return 1, list(dict.fromkeys(o % per_group for o in outputs))


def missing_heads(model: nn.Module, traced: Trace) -> str:
    """Say why a network has no attention heads that could be removed.

    Example:
        >>> from ssl_lightning.graph import trace
        >>> net = nn.Linear(2, 2)
        >>> missing_heads(net, trace(net, torch.zeros(1, 2)))
        'it has no product of two activations (scaled_dot_product_attention, matmul, bmm, einsum)'
    """
    flow = propagate(model, with_weights(model, traced, {}))
    stored = {value for matrix in flow.matrices.values() for value in matrix.values}
    products = [op for op in traced.ops if op.kind in (*PRODUCTS, "scaled_dot_product_attention")]
    products = [op for op in products if stored.isdisjoint(op.inputs())]
    if not products:
        return (
            "it has no product of two activations (scaled_dot_product_attention, matmul, bmm, "
            "einsum)"
        )
    if not flow.heads:
        return (
            f"no view or reshape was found that splits channels into the heads of the "
            f"`{products[0].kind}` in `{products[0].module or 'the model'}`"
        )
    causes = []
    for name, found in flow.heads.items():
        where = f"`{name or 'the model'}`"
        labels = torch.cat([heads.labels for heads in found])
        roots = flow.labels.find(labels)
        if FIXED in roots:
            why = flow.labels.why_fixed(int(labels[roots == FIXED][0]))
            causes.append(f"the heads of {where} are fixed: {why}")
        elif len(roots.unique()) == 1:
            causes.append(f"{where} has one head, or one key and value head for all queries")
        else:
            causes.append(
                f"zero weights do not make the heads of {where} zero (query heads that share keys "
                "and values cannot be removed alone)"
            )
    return causes[0]


def tie_padded_shortcuts(flow: Flow) -> None:
    """Tie each channel of a padded shortcut's result to the channel that it copies."""
    for op in flow.trace.ops:
        if op.kind == "PadShortcut" and op.module in flow.sites:
            site, source = flow.sites[op.module], torch.tensor(leaf(op).source)
            copied = source >= 0
            flow.labels.union(site.outputs[copied], site.inputs[source[copied]])


def tie_conv_groups(flow: Flow) -> None:
    """Tie the same channel of all groups of a grouped convolution that is not depthwise."""
    for site in flow.sites.values():
        if 1 < site.groups < len(site.inputs):
            for labels in (site.inputs, site.outputs):
                rows = labels.view(site.groups, -1)
                flow.labels.union(rows, rows[:1])
    for rows in flow.balanced:
        flow.labels.union(rows, rows[:1])


def families_of(flow: Flow) -> Iterator[CoupledFamily]:
    """Yield the channels with parameters, those together that the same modules write."""
    channels: dict[int, list[tuple[str, int]]] = {}
    sides = {
        name: site.outputs
        for name, site in flow.sites.items()
        if writes(flow.model.get_submodule(name))
    }
    for name, labels in sides.items():
        for position, root in enumerate(flow.labels.find(labels).tolist()):
            channels.setdefault(root, []).append((name, position))
    dims = {name: dim for name, (dim, _) in flow.parameters.items()}
    for name, matrix in flow.matrices.items():
        dims[name] = matrix.dim
        for position, root in enumerate(flow.labels.find(matrix.outputs).tolist()):
            channels.setdefault(root, []).append((name, position))
    for name, (_, labels) in flow.parameters.items():
        for position, root in enumerate(flow.labels.find(labels).tolist()):
            if root in channels:
                channels[root].append((name, position))
    channels.pop(FIXED, None)
    heads = {int(i) for h in flow.heads.values() for f in h for i in flow.labels.find(f.labels)}
    alike: dict[tuple[str, ...], list[list[tuple[str, int]]]] = {}
    for root, places in channels.items():
        key = ("heads" if root in heads else "", *(name for name, _ in places))
        alike.setdefault(key, []).append(places)
    for (kind, *names), rows in alike.items():
        columns = [(name, tuple(row[i][1] for row in rows)) for i, name in enumerate(names)]
        writers = tuple(column for column in columns if column[0] in sides)
        others = [column for column in columns if column[0] not in sides]
        parameters = tuple((name, dims[name], places) for name, places in others)
        owned = (name.rpartition(".")[0] for name, _ in others if name in flow.matrices)
        yield CoupledFamily(writers, parameters, kind == "heads", tuple(dict.fromkeys(owned)))


def writes(module: nn.Module) -> bool:
    """Whether a module has tensors of its own that must be zero for its outputs to be."""
    values = (getattr(module, name, None) for name in written(module))
    return not isinstance(module, nn.PReLU) and any(isinstance(value, Tensor) for value in values)
