"""The paper's Table 4 as layers: which cases there are, their networks, sizes and tiles."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from timing import MODES
from torch import nn

from ssl_lightning import ColumnSparseConv2d
from ssl_lightning.compaction.sparse import layer_inputs
from ssl_lightning.graph import Inputs
from ssl_lightning.kernels import gpu
from ssl_lightning.kernels.geometry import Geometry
from ssl_lightning.kernels.pattern import pattern_of
from ssl_lightning.kernels.tiles import Problem, Tile, choose
from ssl_lightning.measure.sparse import CONV_PART, network, sparse_form, table4_cases
from ssl_lightning.measure.table4 import LAYERS

CONFIGURATIONS = (2, 5)
BATCHES = (1, 128, 16)  # the paper's first
TINY = 16  # widths are divided by it in a dry run
TINY_IMAGE = 67


@dataclass(frozen=True)
class Case:
    """A layer, or the conv part, at one batch size in one mode of :data:`timing.MODES`."""

    layer: str
    batch: int
    mode: str

    def __str__(self) -> str:
        return f"{self.layer}, batch {self.batch}, {self.mode}"


def cases(dry_run: bool) -> list[Case]:
    """Return all cases, the most wanted first."""
    layers = (*LAYERS, CONV_PART)
    batches, modes = BATCHES, tuple(MODES)
    if dry_run:
        batches, modes = (1,), ("float32", "bfloat16")
    return [Case(layer, batch, mode) for batch, mode, layer in product(batches, modes, layers)]


# Networks


@lru_cache(maxsize=2)
def _conv_part(tiny: bool) -> nn.Module:
    """Return the conv part with random weights, or the same with narrow convolutions."""
    part = network(CONV_PART).requires_grad_(False)
    if tiny:
        for name, conv in list(part.named_children()):
            if isinstance(conv, nn.Conv2d):
                narrow = max(conv.in_channels // TINY, 3), conv.out_channels // TINY
                setattr(part, name, resized(conv, *narrow))
    for conv in convolutions(part).values():
        torch.manual_seed(0)
        nn.init.normal_(conv.bias, std=0.1)
    return part


def resized(conv: nn.Conv2d, in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a convolution of the same kind with other numbers of channels and random weights."""
    sizes = {n: getattr(conv, n) for n in ("kernel_size", "stride", "padding", "groups")}
    torch.manual_seed(0)
    return nn.Conv2d(in_channels, out_channels, **sizes).eval().requires_grad_(False)


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions of a network by name; a convolution itself has the name ``""``."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def dense_network(layer: str, tiny: bool) -> nn.Module:
    """Return a copy of a layer or the conv part, dense, float32, on the CPU."""
    part = _conv_part(tiny)
    return copy.deepcopy(part if layer == CONV_PART else part.get_submodule(layer))


@lru_cache(maxsize=2)
def _shapes(tiny: bool) -> dict[str, tuple[int, ...]]:
    """Return layer -> shape of its input for one image."""
    size = TINY_IMAGE if tiny else LAYERS["conv1"]
    found = layer_inputs(_conv_part(tiny), Inputs(torch.zeros(1, 3, size, size)))
    return {name: tuple(x.shape[1:]) for name, x in found.items()}


def input_shape(layer: str, tiny: bool) -> tuple[int, ...]:
    """Return the shape of one image at a layer or the conv part."""
    return _shapes(tiny)["conv1" if layer == CONV_PART else layer]


@lru_cache(maxsize=64)
def sparse_network(layer: str, configuration: int, tiny: bool) -> tuple[nn.Module, nn.Module]:
    """Return masked network and fast form, float32, on the CPU."""
    masked = dense_network(layer, tiny)
    x = torch.zeros(1, *input_shape(layer, tiny))
    return masked, sparse_form(masked, table4_cases([configuration], [layer])[0], x)


def sparse_layers(layer: str, configuration: int, tiny: bool) -> dict[str, ColumnSparseConv2d]:
    """Return the column-sparse convolutions of a layer or the conv part, on the CPU."""
    names = LAYERS if layer == CONV_PART else [layer]
    found = {name: sparse_network(name, configuration, tiny)[1] for name in names}
    return {n: one for n, one in found.items() if isinstance(one, ColumnSparseConv2d)}


# Operations


def pixels_of(conv: nn.Conv2d | ColumnSparseConv2d, shape: tuple[int, ...]) -> int:
    """Return the output pixels of one image."""
    height, width = geometry_of(conv).output_size(*shape[1:])
    return height * width


def geometry_of(conv: nn.Conv2d | ColumnSparseConv2d) -> Geometry:
    """Return the sizes of a convolution."""
    if isinstance(conv, ColumnSparseConv2d):
        return conv.geometry
    sizes = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return Geometry.of(conv.in_channels, conv.out_channels, *sizes)


def operations(case: Case, tiny: bool, configuration: int = 0) -> int:
    """Return the operations of one call, of the dense or a sparse form."""
    names = list(LAYERS) if case.layer == CONV_PART else [case.layer]
    total = 0
    for name in names:
        conv = dense_network(name, tiny)
        assert isinstance(conv, nn.Conv2d)
        retained = conv.weight.numel()
        if configuration:
            retained = sparse_layers(name, configuration, tiny)[name].values.numel()
        total += 2 * case.batch * pixels_of(conv, input_shape(name, tiny)) * retained
    return total


# Tiles


def device_of(device: torch.device) -> tuple[str, int]:
    """Return the name by which tiles are stored, and the multiprocessors."""
    if device.type != "cuda":
        return "interpreter", 4
    found = torch.cuda.get_device_properties(device)
    return found.name, found.multi_processor_count


def problem_of(case: Case, layer: ColumnSparseConv2d, tiny: bool) -> Problem:
    """Return what decides the tile of a layer; the mode must be set."""
    shape = (case.batch, *input_shape(case.layer, tiny))
    x = torch.empty(shape, dtype=MODES[case.mode][0], device="meta")
    pattern = pattern_of(layer.rows, layer.columns, layer.geometry)
    return gpu.problem_of(x, pattern, layer.geometry)


def chosen_tiles(case: Case, device: torch.device, tiny: bool) -> dict[str, Tile]:
    """Return the tile that each column-sparse convolution would take now; the mode must be set."""
    found = {}
    for number in CONFIGURATIONS:
        for name, layer in sparse_layers(case.layer, number, tiny).items():
            problem = problem_of(Case(name, case.batch, case.mode), layer, tiny)
            found[f"{name} #{number}"] = choose(problem, *device_of(device))
    return found
