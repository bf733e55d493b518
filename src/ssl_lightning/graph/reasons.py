"""Why slices that could have gone are retained: sentences for reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ssl_lightning.graph.flow import Flow, as_list
from ssl_lightning.graph.labels import FIXED
from ssl_lightning.graph.layers import WEIGHTED, mixes_channels
from ssl_lightning.graph.ops import Op, has_hooks


def why_retained(
    flow: Flow, removable: Mapping[str, Collection[int]], zeroed: Flow
) -> dict[str, str]:
    """Return layer name -> why outputs of it are in no group, for layers that have such outputs.

    Args:
        flow: analysis with no zeros.
        removable: layer name -> outputs that are in a group.
        zeroed: analysis in which every second channel of every candidate is zero.
    """
    reasons = {}
    for name, module in flow.model.named_modules():
        if not mixes_channels(module):
            continue
        if name not in flow.sites:
            reasons[name] = why_unknown(flow, name, module)
            continue
        site = flow.sites[name]
        rest = [i for i in range(len(site.outputs)) if i not in removable.get(name, ())]
        if rest:
            share = f"{len(rest)} of {len(site.outputs)} outputs: "
            text = why_fixed(flow, site.outputs[rest]) or why_not_zero(zeroed, name, rest)
            reasons[name] = (share if len(rest) < len(site.outputs) else "") + text
    return reasons


def why_embeddings(flow: Flow, removable: Collection[str]) -> dict[str, str]:
    """Return layer name -> why no channel of an embedding is in a group, for those without any.

    Args:
        flow: analysis with no zeros.
        removable: names of parameters that have slices in a group.
    """
    reasons = {}
    values = {full: value for value, full in flow.trace.names.items()}
    for name, module in flow.model.named_modules():
        weight = f"{name}.weight".lstrip(".")
        if not isinstance(module, nn.Embedding) or weight in removable:
            continue
        shared = other_names(flow.model, name, module)
        if shared:
            reasons[name] = f"its weight is also `{shared[0]}`"
        elif weight not in values:
            reasons[name] = "it does not run on this input in eval mode"
        else:
            text = why_fixed(flow, flow.slices[values[weight]].flatten())
            reasons[name] = text or "no layer with weights writes its channels"
    return reasons


def why_unknown(flow: Flow, name: str, module: nn.Module) -> str:
    """Say why the analysis does not know a layer's channels."""
    own = {value for value, full in flow.trace.names.items() if full.rpartition(".")[0] == name}
    shared = other_names(flow.model, name, module)
    own |= {value for value, full in flow.trace.names.items() if full in shared}
    readers = [op for value in own for op in flow.trace.users.get(value, [])]
    if not readers:
        return "it does not run on this input in eval mode"
    if shared:
        return f"its weight is also `{shared[0]}`"
    op = readers[0]
    if op.name in flow.failed:
        return f"the rule of `{op.kind}`{where(op)} failed ({flow.failed[op.name]})"
    if has_hooks(module):
        return "it has hooks, which may change what it returns"
    return f"its weight is used by `{op.kind}`{where(op)} in a way without a rule"


def other_names(model: nn.Module, name: str, module: nn.Module) -> list[str]:
    """Return the other names that a layer's weight has in the model."""
    named = model.named_parameters(remove_duplicate=False)
    own = f"{name}.weight".lstrip(".")
    weight = getattr(module, "weight", None)
    return [full for full, tensor in named if tensor is weight and full != own]


def why_fixed(flow: Flow, labels: Tensor) -> str:
    """Say what most of the labels that cannot be removed are tied to; "" if all can be."""
    roots = flow.labels.find(labels)
    causes = Counter(flow.labels.why_fixed(int(label)) for label in labels[roots == FIXED])
    return causes.most_common(1)[0][0] if causes else ""


def why_not_zero(zeroed: Flow, name: str, outputs: list[int]) -> str:
    """Say which operation makes something else of a channel that is zero wherever it is written."""
    zero = zeroed.sites[name].outputs[outputs][1::2]
    roots = zeroed.labels.find(zero).unique()
    if bool((roots == FIXED).any()):
        return why_fixed(zeroed, zero)
    for op in zeroed.trace.ops:
        useful = zip(as_list(zeroed.alive[op.name]), as_list(zeroed.needed[op.name]), strict=True)
        masks = [alive * needed > 0 for alive, needed in useful]
        for labels, mask in zip(as_list(zeroed.slices[op.name]), masks, strict=True):
            found = torch.isin(zeroed.labels.find(labels), roots) & mask
            if bool(found.any()):
                return f"zeros there are not zero any more behind `{op.kind}`{where(op)}"
    return "too few channels, or groups of a convolution that must have equally many"


def where(op: Op) -> str:
    """Return the module that runs an operation, for a sentence."""
    return f" in `{op.module}`" if op.module else ""


def left_whole(flow_names: Collection[str], model: nn.Module, flow: Flow) -> list[str]:
    """Return a sentence for each layer with zero slices, or that never ran, that no plan names."""
    notes = []
    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED) and name not in flow_names:
            weight = module.weight.detach()
            sides = (weight.flatten(1).any(1), weight.transpose(0, 1).flatten(1).any(1))
            if not all(bool(side.all()) for side in sides) or not flow_reads(flow, name):
                notes.append(f"`{name}` is retained whole: {why_unknown(flow, name, module)}")
    return notes


def flow_reads(flow: Flow, name: str) -> bool:
    """Whether any operation reads a tensor of a module, under whichever of its names."""
    names = flow.trace.names
    shared = other_names(flow.model, name, flow.model.get_submodule(name))
    read = {names[value] for value in flow.trace.users if value in names}
    return any(full.rpartition(".")[0] == name or full in shared for full in read)
