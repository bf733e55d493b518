"""Shrinking modules in place: one function per kind of layer, one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.backbones import PadShortcut
from ssl_lightning.compaction.attention import replace_attention
from ssl_lightning.compaction.modules import (
    SparseResponseNorm,
    SubsetLayer,
    ZeroConv,
    ZeroLinear,
    zero_like_layer,
)
from ssl_lightning.compaction.norms import WideGroupNorm, WideLayerNorm, WideRMSNorm
from ssl_lightning.compaction.stored import (
    check_attributes,
    check_parameter,
    check_unflatten,
    replace_parameter,
    select,
    shrink_unflatten,
    slice_parameter,
)
from ssl_lightning.graph import (
    CHANNEL_NORMS,
    CONVS,
    TRANSPOSED,
    LayerType,
    SiteSlices,
    has_equivalent_forward,
    make_plain_,
    own_layer,
)


def apply_slices(model: nn.Module, modules: Mapping[str, SiteSlices]) -> nn.Module:
    """Shrink every named module of ``model`` in place and return ``model``.

    Modules of which everything is kept are not touched. Where a module has a ``forward`` of its
    own that computes the same by a shorter way, the class's takes its place.

    Raises:
        ValueError: if a module is missing or has other sizes; nothing is changed then.
    """
    check_modules(model, modules)
    less = {name for name, slices in modules.items() if slices.shrinks()}
    make_plain_(model, less | {name.rpartition(".")[0] for name in less})
    known = dict(model.named_modules(remove_duplicate=False))
    replaced: dict[nn.Module, nn.Module] = {}
    for name, slices in modules.items():
        if name not in known:
            slice_parameter(model, name, slices)
            continue
        module = known[name]
        module.__dict__.update(slices.attributes)
        if isinstance(module, nn.Unflatten):
            shrink_unflatten(module, slices)
        if channels(module) is None:
            continue  # its code splits channels into heads; it has none itself
        if has_equivalent_forward(module):
            del module.forward
        if not slices.shrinks():
            continue
        shrunk = shrink(module, slices)
        if shrunk is not module:
            shrunk.train(module.training)
            for alias in [n for n, other in known.items() if other is module]:
                model.set_submodule(alias, shrunk)
            replaced[module] = shrunk
    replace_in_attributes(model, replaced)
    replace_attention(model, set(modules))
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return model


def replace_in_attributes(model: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in others' places in the plain lists, tuples and dicts that modules hold."""
    if not replaced:
        return

    def swapped(value: Any) -> Any:
        if type(value) in (list, tuple):
            return type(value)(swapped(item) for item in value)
        if type(value) is dict:
            return {key: swapped(item) for key, item in value.items()}
        return replaced.get(value, value) if isinstance(value, nn.Module) else value

    for module in model.modules():
        for key, value in list(vars(module).items()):
            if type(value) in (list, tuple, dict) and not key.startswith("_"):
                vars(module)[key] = swapped(value)


def check_modules(model: nn.Module, modules: Mapping[str, SiteSlices]) -> None:
    """Compare a model with what a plan expects.

    Raises:
        ValueError: if a module is missing or has other sizes.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    for name, slices in modules.items():
        owner, _, attribute = name.rpartition(".")
        tensor = getattr(known.get(owner), attribute, None) if name not in known else None
        if isinstance(tensor, Tensor) and slices.dim is not None:
            check_parameter(model, name, tensor, slices)
        else:
            check_module(model, name, known.get(name), slices)


def check_module(model: nn.Module, name: str, module: nn.Module | None, slices: SiteSlices) -> None:
    """Compare a module with what the plan expects there."""
    if module is not None and channels(module) is None and not slices.of[0]:
        if isinstance(module, nn.Unflatten):
            check_unflatten(name, module, slices)
        check_attributes(name, module, slices)
        return
    sizes = None if module is None else channels(module)
    if sizes is None or any(a not in (None, b) for a, b in zip(sizes, slices.of, strict=True)):
        found = "no such layer" if module is None else f"{module}"
        raise ValueError(
            f"The plan expects `{name}` with {slices.of[0]} input and {slices.of[1]} output "
            f"channels, {type(model).__name__} has {found}. Use the plan with the backbone and "
            "arguments it was made for."
        )
    if isinstance(module, (*CONVS, *TRANSPOSED)) and module.groups > 1:
        check_groups(name, module.groups, slices)


def check_groups(name: str, groups: int, slices: SiteSlices) -> None:
    """Make sure that the remaining groups of a convolution have equally many channels."""
    sides = zip((slices.inputs, slices.outputs), slices.of, strict=True)
    counted = [Counter(i // (of // groups) for i in kept) for kept, of in sides]
    counts = {tuple(side[g] for side in counted) for g in range(groups)} - {(0, 0)}
    if len(counts) > 1 or any(0 in pair for pair in counts):
        raise ValueError(
            f"The plan keeps different numbers of channels in the groups of `{name}`, which no "
            "convolution has. Make the plan again."
        )


def channels(module: nn.Module) -> tuple[int | None, int | None] | None:
    """Return a layer's (input, output) channels, None where it works for any number."""
    if (own := own_layer(module)) is not None:
        return own.sizes(module)
    for types, attributes, _ in SHRINKERS:
        if isinstance(module, types):
            found = (None if name is None else getattr(module, name) for name in attributes)
            inputs, outputs = (n[0] if isinstance(n, tuple) else n for n in found)
            return inputs, outputs
    return None


def shrink(module: nn.Module, slices: SiteSlices) -> nn.Module:
    """Return the module with only the kept channels: itself, changed in place, or another one."""
    if (own := own_layer(module)) is not None:
        return shrink_tensors(module, slices, own)
    if slices.zero or slices.constant:
        bias = None if slices.zero else folded_bias(module, slices)
        constant = zero_like_layer(module, bias, len(slices.outputs))
        if constant is not None and (slices.zero or not isinstance(module, CHANNEL_NORMS)):
            return constant
    return next(function for types, _, function in SHRINKERS if isinstance(module, types))(
        module, slices
    )


def shrink_tensors(module: nn.Module, slices: SiteSlices, kind: LayerType) -> nn.Module:
    """Slice the tensors of a layer as a description says, and set its numbers of channels."""
    sides = ((kind.outputs, slices.outputs), (kind.inputs, slices.inputs))
    for name in dict.fromkeys((*kind.outputs, *kind.inputs)):
        whole = getattr(module, name, None)
        if whole is not None:
            part = whole
            for dims, kept in sides:
                part = select(part, kept, dims[name]) if name in dims else part
            parameter = isinstance(whole, nn.Parameter)
            setattr(module, name, replace_parameter(whole, part) if parameter else part)
    for attribute, side in kind.counts.items():
        setattr(module, attribute, len(slices.inputs if side == "inputs" else slices.outputs))
    return module


def shrink_constant(module: ZeroConv | ZeroLinear, slices: SiteSlices, count: str) -> nn.Module:
    """Slice the bias of a layer that has nothing else."""
    if slices.zero:
        module.bias = None
    return shrink_tensors(module, slices, LayerType({"bias": 0}, {}, {count: "outputs"}))


def shrink_layer(module: nn.Conv2d | nn.Linear, slices: SiteSlices) -> nn.Module:
    """Slice a convolution or linear layer; constants that it read become part of its bias."""
    bias, border = folded_bias(module, slices), border_kernel(module, slices)
    part = replace(
        slices,
        inputs=slices.inputs if slices.reads is None else slices.reads,
        outputs=slices.outputs if slices.writes is None else slices.writes,
    )
    slice_weight(module, part)
    if border is None and not slices.is_subset():
        module.bias = bias
        return module
    module.bias = None
    return SubsetLayer(
        module,
        len(slices.outputs),
        within(slices.reads, slices.inputs),
        within(slices.writes, slices.outputs),
        bias,
        None if border is None else replace_parameter(border, select(border, part.outputs)),
    )


def slice_weight(module: nn.Conv2d | nn.Linear, slices: SiteSlices) -> None:
    """Slice filters, channels and groups of a convolution, rows and columns of a linear layer."""
    if isinstance(module, nn.Linear):
        weight = select(select(module.weight, slices.outputs), slices.inputs, dim=1)
        module.in_features, module.out_features = len(slices.inputs), len(slices.outputs)
    else:
        weight, module.groups = slice_groups(module.weight, module.groups, slices)
        module.in_channels, module.out_channels = len(slices.inputs), len(slices.outputs)
    module.weight = replace_parameter(module.weight, weight)


def shrink_transposed(module: nn.ConvTranspose2d, slices: SiteSlices) -> nn.Module:
    """Slice inputs (the weight's first dimension) and outputs of a transposed convolution."""
    turned = replace(slices, inputs=slices.outputs, outputs=slices.inputs)
    weight, module.groups = slice_groups(module.weight, module.groups, turned)
    module.weight = replace_parameter(module.weight, weight)
    module.bias = slice_bias(module, slices)
    module.in_channels, module.out_channels = len(slices.inputs), len(slices.outputs)
    return module


def within(some: tuple[int, ...] | None, kept: tuple[int, ...]) -> list[int] | None:
    """Return the positions of some channels among those that are kept."""
    if some is None:
        return None
    place = {channel: position for position, channel in enumerate(kept)}
    return [place[channel] for channel in some]


def folded_bias(module: nn.Module, slices: SiteSlices) -> nn.Parameter | None:
    """Return the kept part of a layer's bias, with what constant inputs add, but not by a border.

    A layer without a bias is given one if it reads constants.
    """
    bias = slice_bias(module, slices)
    if not slices.folded or is_padded(module):
        return bias
    kernel = constant_kernel(module, slices)
    added = select(kernel.reshape(len(kernel), -1).sum(1), slices.outputs)
    weight: Tensor = module.weight  # type: ignore[assignment]
    total = added if bias is None else bias.detach().double() + added
    like = weight if bias is None else bias
    return nn.Parameter(total.to(weight.dtype), requires_grad=like.requires_grad)


def border_kernel(module: nn.Module, slices: SiteSlices) -> nn.Parameter | None:
    """Return the kernel of what constant inputs of a padded convolution add, else None.

    Shape ``(O, 1, *kernel_size)``.
    """
    if not slices.folded or not is_padded(module):
        return None
    weight: Tensor = module.weight  # type: ignore[assignment]
    kernel = constant_kernel(module, slices).unsqueeze(1).to(weight.dtype)
    return nn.Parameter(kernel, requires_grad=weight.requires_grad)


def constant_kernel(module: nn.Module, slices: SiteSlices) -> Tensor:
    """Return the sum over folded inputs of constant times weight, in float64.

    Shape ``(O, *kernel_size)``.
    """
    weight: Tensor = module.weight.detach().double()  # type: ignore[operator]
    groups = getattr(module, "groups", 1)
    per_out, per_in = len(weight) // groups, weight.shape[1]
    constants = list(zip(slices.folded, slices.constants, strict=True))
    parts = []
    for group, rows in enumerate(weight.split(per_out)):
        inside = [(i % per_in, value) for i, value in constants if i // per_in == group]
        values = weight.new_tensor([value for _, value in inside])
        columns = select(rows, [i for i, _ in inside], dim=1)
        parts.append(torch.tensordot(columns, values, ([1], [0])))
    return torch.cat(parts)


def is_padded(module: nn.Module) -> bool:
    """Whether a layer pads what it reads."""
    padding = getattr(module, "padding", 0)
    return padding == "same" or (isinstance(padding, tuple) and any(padding))


def slice_bias(module: nn.Module, slices: SiteSlices) -> nn.Parameter | None:
    """Return the kept part of a layer's bias."""
    bias = getattr(module, "bias", None)
    if bias is None:
        return None
    return nn.Parameter(select(bias, slices.outputs), requires_grad=bias.requires_grad)


def slice_groups(weight: Tensor, groups: int, slices: SiteSlices) -> tuple[Tensor, int]:
    """Return the kept part of a grouped convolution's weight and the number of remaining groups.

    The weight's first dimension numbers the outputs; of a transposed one the two are exchanged.
    """
    per_in, per_out = weight.shape[1], weight.shape[0] // groups
    rows: dict[int, list[int]] = {}
    columns: dict[int, list[int]] = {}
    for o in slices.outputs:
        rows.setdefault(o // per_out, []).append(o)
    for i in slices.inputs:
        columns.setdefault(i // per_in, []).append(i % per_in)
    left = sorted(rows)
    if per_in == 1 and all(group in columns for group in left):  # depthwise: nothing but rows
        return select(weight, [o for group in left for o in rows[group]]), len(left)
    parts = [select(select(weight, rows[g]), columns.get(g, []), dim=1) for g in left]
    return torch.cat(parts), len(parts)


def shrink_layer_norm(module: nn.LayerNorm | nn.RMSNorm, slices: SiteSlices) -> nn.Module:
    """Keep the statistics of all channels."""
    dim = -1 if slices.dim is None else slices.dim
    wide = WideRMSNorm if isinstance(module, nn.RMSNorm) else WideLayerNorm
    return with_children(wide(module, slices.outputs, dim), module)


def shrink_group_norm(module: nn.GroupNorm, slices: SiteSlices) -> nn.Module:
    """Keep the statistics of all channels."""
    return with_children(WideGroupNorm(module, slices.outputs), module)


def with_children(norm: nn.Module, old: nn.Module) -> nn.Module:
    """Return a norm followed by what the old one had as children, such as an activation."""
    children = list(old.children())
    return nn.Sequential(norm, *children) if children else norm


def shrink_response_norm(module: nn.LocalResponseNorm, slices: SiteSlices) -> nn.Module:
    """Give the normalisation the old positions of the channels that remain."""
    positions, width, device = list(slices.outputs), slices.of[1], None
    if isinstance(module, SparseResponseNorm):
        positions, width = [int(module.index[i]) for i in positions], module.width
        device = module.index.device
    return SparseResponseNorm(module, positions, width, device)


def shrink_shortcut(module: PadShortcut, slices: SiteSlices) -> nn.Module:
    """Renumber the source channels of a padded shortcut."""
    new = {old: position for position, old in enumerate(slices.inputs)}
    source = [new.get(module.source[j], -1) for j in slices.outputs]
    module.in_channels = len(slices.inputs)
    module.source = tuple(source)
    return module


NORM = LayerType(
    dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0),
    inputs={},
    counts={"num_features": "outputs"},
)
PRELU = LayerType({"weight": 0}, inputs={}, counts={"num_parameters": "outputs"})

Types = type[nn.Module] | tuple[type[nn.Module], ...]
SHRINKERS: tuple[tuple[Types, tuple[str | None, str | None], Callable[..., nn.Module]], ...] = (
    (ZeroConv, (None, "out_channels"), partial(shrink_constant, count="out_channels")),
    (ZeroLinear, (None, "out_features"), partial(shrink_constant, count="out_features")),
    (CONVS, ("in_channels", "out_channels"), shrink_layer),
    (nn.Linear, ("in_features", "out_features"), shrink_layer),
    (TRANSPOSED, ("in_channels", "out_channels"), shrink_transposed),
    (CHANNEL_NORMS, ("num_features",) * 2, partial(shrink_tensors, kind=NORM)),
    (nn.PReLU, ("num_parameters",) * 2, partial(shrink_tensors, kind=PRELU)),
    ((nn.LayerNorm, nn.RMSNorm), ("normalized_shape",) * 2, shrink_layer_norm),
    (nn.GroupNorm, ("num_channels",) * 2, shrink_group_norm),
    (SparseResponseNorm, ("num_channels",) * 2, shrink_response_norm),
    (nn.LocalResponseNorm, (None, None), shrink_response_norm),
    (PadShortcut, ("in_channels", "out_channels"), shrink_shortcut),
)
"""Types of layers, their attributes that count input and output channels, how they are shrunk."""
