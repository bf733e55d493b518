"""What is timed for the paper's Table 4: dense forms of a layer, and its sparse and small forms."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from layers import (
    CONFIGURATIONS,
    Case,
    dense_network,
    geometry_of,
    input_shape,
    operations,
    pixels_of,
    resized,
    sparse_layers,
    sparse_network,
)
from timing import MODES, Compute, num_sets
from torch import Tensor, nn

from ssl_lightning import ColumnSparseConv2d
from ssl_lightning.compaction.sparse import replace_layers
from ssl_lightning.kernels import gpu
from ssl_lightning.kernels.tiles import Tile
from ssl_lightning.measure.sparse import CONV_PART, table4_cases
from ssl_lightning.measure.table4 import LAYERS


@dataclass(frozen=True)
class Candidate:
    """One way to compute a layer.

    Attributes:
        compute: input to output.
        inputs: several inputs, together larger than the L2 cache.
        exact: the same in float64.
        operations: of one call, 2 per multiply-add.
        read: share of the input that is read.
    """

    compute: Compute
    inputs: list[Tensor]
    exact: Compute
    operations: int
    read: float = 1.0


@dataclass(frozen=True)
class Setting:
    """What all candidates of a case share: inputs and the device."""

    case: Case
    device: torch.device
    tiny: bool
    inputs: list[Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return MODES[self.case.mode][0]

    def ready(self, model: nn.Module) -> nn.Module:
        """Return a copy on the device in the type of the case."""
        return copy.deepcopy(model).to(self.device, self.dtype).eval()

    def exact(self, model: nn.Module) -> Compute:
        """Return a network as :func:`timing.prepare` wants it, with the weights of the case."""
        wide = self.ready(model).double()

        def compute(x: Tensor) -> Tensor:
            torch.backends.cudnn.benchmark = False  # a search in float64 would take seconds
            try:
                found: Tensor = wide(x)
                return found
            finally:
                torch.backends.cudnn.benchmark = True

        return compute


def make_setting(case: Case, device: torch.device, tiny: bool) -> Setting:
    """Draw the inputs; each starts at an address of its own that is a multiple of 16 bytes."""
    dtype, shape = MODES[case.mode][0], (case.batch, *input_shape(case.layer, tiny))
    torch.manual_seed(0)
    first = torch.randn(shape, device=device, dtype=dtype)
    with torch.no_grad():
        output = dense_network(case.layer, tiny).to(device, dtype)(first)
    count = num_sets(first.nbytes + output.nbytes, device)
    more = [torch.randn(shape, device=device, dtype=dtype) for _ in range(count - 1)]
    return Setting(case, device, tiny, [first, *more])


def candidates(setting: Setting) -> Iterator[tuple[str, int, Callable[[], Candidate]]]:
    """Return name, configuration (0: dense) and what builds the candidate, or fails to."""
    layer = setting.case.layer
    yield "cudnn", 0, lambda: dense(setting)
    yield "cudnn channels-last", 0, lambda: dense(setting, torch.channels_last)
    yield "compile", 0, lambda: compiled(setting)
    if layer != CONV_PART:
        yield "lowered", 0, lambda: lowered(setting)
        yield "product", 0, lambda: lowered_product(setting, 0)
    for number in CONFIGURATIONS:
        yield "columns", number, lambda n=number: columns(setting, n)
        if layer == CONV_PART:
            yield "columns compiled", number, lambda n=number: columns_compiled(setting, n)
            continue
        yield "compact", number, lambda n=number: compact(setting, n)
        yield (
            "compact channels-last",
            number,
            lambda n=number: compact(setting, n, torch.channels_last),
        )
        yield "product", number, lambda n=number: lowered_product(setting, n)


def dense(setting: Setting, layout: torch.memory_format = torch.contiguous_format) -> Candidate:
    """Return the dense form as cuDNN runs it, with input and weights in a layout."""
    model = dense_network(setting.case.layer, setting.tiny)
    inputs = [x.to(memory_format=layout) for x in setting.inputs]
    work = operations(setting.case, setting.tiny)
    ready = setting.ready(model).to(memory_format=layout)
    return Candidate(ready, inputs, setting.exact(model), work)


def compiled(setting: Setting) -> Candidate:
    """Return the dense form compiled; the graph is captured as for all others, not by torch."""
    one = dense(setting)
    return dataclasses.replace(one, compute=compile_(one.compute, setting.tiny))


def compile_(compute: Compute, tiny: bool) -> Compute:
    """Return the compiled form; in a dry run only torch.compile's own part runs."""
    how: dict[str, Any] = {"mode": "max-autotune-no-cudagraphs"}
    how = {"backend": "eager"} if tiny else how
    return torch.compile(compute, dynamic=False, **how)


def lowered(setting: Setting) -> Candidate:
    """Return im2col and one product per conv-group over all images, by cuBLAS."""
    one = dense(setting)
    conv = setting.ready(dense_network(setting.case.layer, setting.tiny))
    assert isinstance(conv, nn.Conv2d)
    weight = conv.weight.flatten(1).unflatten(0, (conv.groups, -1)).contiguous()
    bias = conv.bias.view(conv.groups, -1, 1)
    height, width = geometry_of(conv).output_size(*setting.inputs[0].shape[2:])

    def compute(x: Tensor) -> Tensor:
        found = torch.baddbmm(bias, weight, lower(x, conv)).unflatten(2, (x.shape[0], -1))
        return found.permute(2, 0, 1, 3).reshape(x.shape[0], -1, height, width)

    return Candidate(compute, one.inputs, one.exact, one.operations)


def lower(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the lowered input, ``(conv-groups, columns, images * pixels)``."""
    found = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    found = found.unflatten(1, (conv.groups, -1)).permute(1, 2, 0, 3)
    return found.flatten(2).contiguous()


def lowered_product(setting: Setting, configuration: int) -> Candidate:
    """Return the product alone, as the paper timed it: dense, or retained rows and columns."""
    case, tiny = setting.case, setting.tiny
    conv = dense_network(case.layer, tiny)
    assert isinstance(conv, nn.Conv2d)
    weight = conv.weight.flatten(1).unflatten(0, (conv.groups, -1))
    columns = [torch.arange(weight.shape[2])] * conv.groups
    if configuration:
        layer = sparse_layers(case.layer, configuration, tiny)[case.layer]
        blocks = layer.geometry.blocks(layer.rows, layer.columns)
        per_group = layer.geometry.columns_per_group
        columns = [layer.columns[column] % per_group for _, column, _ in blocks]
        sizes = [(row.stop - row.start, -1) for row, _, _ in blocks]
        weight = torch.stack(
            [layer.values.detach()[v].view(s) for (_, _, v), s in zip(blocks, sizes, strict=True)]
        )
    weight = weight.to(setting.device, setting.dtype).contiguous()
    index = torch.stack(columns).to(setting.device)[:, :, None]

    def reduced(x: Tensor) -> Tensor:
        found = lower(x, conv)
        return found.gather(1, index.expand(-1, -1, found.shape[2]))

    first = reduced(setting.inputs[0])
    count = min(num_sets(first.nbytes, setting.device), len(setting.inputs))
    inputs = [first, *(reduced(x) for x in setting.inputs[1:count])]
    wide, work = weight.double(), 2 * weight.numel() * first.shape[2]
    return Candidate(lambda x: torch.bmm(weight, x), inputs, lambda x: torch.bmm(wide, x), work)


def columns(setting: Setting, configuration: int, tile: Tile | None = None) -> Candidate:
    """Return the column-sparse form: the Triton kernel, or the conv part with it for inference.

    Raises:
        RuntimeError: without Triton.
    """
    case, tiny = setting.case, setting.tiny
    if not gpu.is_available():
        raise RuntimeError("Triton is not installed, or has no GPU")
    masked, fast = sparse_network(case.layer, configuration, tiny)
    ready, exact = setting.ready(fast), setting.exact(masked)
    work = operations(case, tiny, configuration)
    if not isinstance(ready, ColumnSparseConv2d):
        return Candidate(ready, setting.inputs, exact, work)
    channels = (ready.columns // ready.geometry.area).unique().numel()
    read = channels / ready.geometry.in_channels
    return Candidate(on_triton(ready, tile), setting.inputs, exact, work, read)


def columns_compiled(setting: Setting, configuration: int) -> Candidate:
    """Return the conv part with column-sparse convolutions that apply ReLU, the rest compiled."""
    one = columns(setting, configuration)
    masked, _ = sparse_network(CONV_PART, configuration, setting.tiny)
    part = copy.deepcopy(masked)
    replace_layers(part, tuple(LAYERS))
    for name in LAYERS:
        part.get_submodule(name).relu = True
        part.set_submodule(name.replace("conv", "relu"), nn.Identity())
    compute = compile_(setting.ready(part), setting.tiny)
    return dataclasses.replace(one, compute=compute)


def on_triton(layer: ColumnSparseConv2d, tile: Tile | None = None) -> Compute:
    """Return the call of the Triton kernel, also where the layer itself would run another."""
    values = (layer.values, layer.bias, layer.rows, layer.columns, layer.geometry, layer.relu)
    return lambda x: gpu.convolve(x, *values, tile=tile)


def compact(
    setting: Setting, configuration: int, layout: torch.memory_format = torch.contiguous_format
) -> Candidate:
    """Return a dense layer with as small a share of filters and channels as of rows and columns.

    It has about the operations of the column-sparse layer, but computes another function: what
    filters and channels instead of filter shapes would give.
    """
    conv = dense_network(setting.case.layer, setting.tiny)
    assert isinstance(conv, nn.Conv2d)
    case = table4_cases([configuration], [setting.case.layer])[0]
    groups = conv.groups

    def retained(count: int, sparsity: float) -> int:
        return groups * max(round((1 - sparsity) * count / groups), 1)

    inputs = retained(conv.in_channels, case.column_sparsity)
    outputs = retained(conv.out_channels, case.row_sparsity)
    small = resized(conv, inputs, outputs)
    x = [one[:, :inputs].contiguous(memory_format=layout) for one in setting.inputs]
    pixels = pixels_of(small, tuple(x[0].shape[1:]))
    work = 2 * setting.case.batch * pixels * small.weight.numel()
    ready = setting.ready(small).to(memory_format=layout)
    return Candidate(ready, x, setting.exact(small), work)
