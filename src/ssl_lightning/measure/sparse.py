"""Sparse layers against the fastest dense engine: the paper's Table 4, and where sparsity pays."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean

import torch
from torch import Tensor, nn

from ssl_lightning.backbones import create_backbone
from ssl_lightning.compaction import for_inference
from ssl_lightning.compaction.equality import difference
from ssl_lightning.compaction.sparse import layer_inputs, replace_layers
from ssl_lightning.graph import Inputs
from ssl_lightning.kernels import ColumnSparseConv2d, instruction_set, workspace_bytes
from ssl_lightning.measure.csr import CsrConv2d
from ssl_lightning.measure.engine import Call
from ssl_lightning.measure.engines import (
    ENGINES,
    engine_versions,
    forget_compiled,
    installed_engines,
    prepare,
)
from ssl_lightning.measure.machine import machine
from ssl_lightning.measure.macs import count_macs
from ssl_lightning.measure.sparse_record import CONV_PART, SparseRecord, SparseRow
from ssl_lightning.measure.table4 import LAYERS, TABLE4
from ssl_lightning.measure.turns import interleave, num_threads
from ssl_lightning.progress import steps, track
from ssl_lightning.suggest import pick

ORDER = (
    *("conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2"),
    *("conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5"),
)
"""The conv part of AlexNet in the paper's geometry."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest output
MIN_RUN_TIME = 0.002  # seconds of one sample: short, so that a round sees one state of the machine
PART_FACTOR = 10  # the conv part gets longer samples, of several calls as with single layers
FINALISTS = 2  # dense engines that are timed to the end
FORMS: Mapping[str, Callable[[nn.Conv2d], nn.Module]] = {
    "columns": ColumnSparseConv2d.from_conv,
    "csr": CsrConv2d,
}


@dataclass(frozen=True)
class Case:
    """A layer at some sparsity."""

    layer: str
    form: str
    row_sparsity: float
    column_sparsity: float
    configuration: int = 0
    paper: float | None = None


def table4_cases(configurations: Sequence[int], layers: Sequence[str]) -> list[Case]:
    """Return what the paper's table holds for these configurations and layers.

    ``"conv part"``, all five layers with what stands between them, has no figure of the paper and
    is not measured for single zeros.

    Raises:
        ValueError: if one is unknown.

    Example:
        >>> table4_cases([2], ["conv4"])
        [Case(layer='conv4', form='columns', row_sparsity=0.469, column_sparsity=0.847,
        configuration=2, paper=9.73)]
    """
    known = {str(number): found for number, found in TABLE4.items()}
    cases = []
    for number, layer in product(configurations, layers):
        found = pick("configuration", str(number), known)
        pick("layer", layer, dict.fromkeys([*LAYERS, CONV_PART]))
        if layer == CONV_PART:
            if found.form == "columns":
                rows, columns = (round(fmean(x) / 100, 6) for x in (found.rows, found.columns))
                cases.append(Case(layer, found.form, rows, columns, number))
            continue
        i = list(LAYERS).index(layer)
        rows, columns = round(found.rows[i] / 100, 6), round(found.columns[i] / 100, 6)
        cases.append(Case(layer, found.form, rows, columns, number, found.speedups[i]))
    return cases


def break_even_cases(layer: str, sparsities: Sequence[float]) -> list[Case]:
    """Return one layer at several sparsities: as many rows as columns, and CSR with as many zeros.

    Raises:
        ValueError: if the layer is unknown or a sparsity is not from 0 to below 1.

    Example:
        >>> [(case.form, case.column_sparsity) for case in break_even_cases("conv3", [0.5])]
        [('columns', 0.5), ('csr', 0.75)]
    """
    pick("layer", layer, LAYERS)
    for sparsity in sparsities:
        if not 0 <= sparsity < 1:
            raise ValueError(
                f"break_even_cases: expected sparsities from 0 to below 1, got {sparsity}. "
                "Give shares such as 0.5, not percent."
            )
    both = (
        (Case(layer, "columns", s, s), Case(layer, "csr", 0.0, s * (2 - s))) for s in sparsities
    )
    return [case for pair in both for case in pair]


def measure_sparse(
    title: str,
    cases: Sequence[Case],
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    engines: Sequence[str] | None = None,
    dtype: str = "float32",
    repeats: int = 60,
    progress: Callable[[SparseRow], None] = lambda row: None,
) -> SparseRecord:
    """Time sparse layers against the fastest dense engine for each.

    Zeros are at random positions. A sparse layer and all dense engines take turns in a quarter of
    the rounds; the two fastest engines are timed in all of them. The speed-up is the median of the
    ratios within a round, against the engine for which it is smallest. Everything is included:
    padding, lowering, multiplying, and writing all filters. Outputs are compared with the dense
    ones before anything is timed.

    Args:
        title: heading of the record.
        cases: what to measure; the conv part is rewritten by :func:`for_inference`.
        batch_sizes: images per call.
        threads: intra-op threads.
        engines: dense engines; None takes all that are installed and can run the type.
        dtype: ``"float32"`` or ``"bfloat16"``; CSR and torch's response norm have no bfloat16 and
            are not measured there.
        repeats: rounds.
        progress: called with each row once it is measured.

    Raises:
        ValueError: if a name is unknown, an engine is missing, or a sparse layer computes
            something else.
    """
    kind = pick("type", dtype, DTYPES)
    chosen = engines_for(kind) if engines is None else list(engines)
    if kind != torch.float32:
        cases = [c for c in cases if c.form != "csr" and c.layer != CONV_PART]
    settings = product(threads, batch_sizes, dict.fromkeys(case.layer for case in cases))
    measured = (row for each in settings for row in _rows(cases, each, kind, chosen, repeats))
    rows = []
    for row in track(measured, "benchmark", len(cases) * len(threads) * len(batch_sizes)):
        rows.append(row)
        progress(row)
    place, versions = machine(torch.device("cpu")), engine_versions()
    return SparseRecord(title, dtype, place, instruction_set(kind), versions, tuple(rows))


def engines_for(kind: torch.dtype) -> list[str]:
    """Return the installed engines that compute in a type."""
    return [e for e in installed_engines() if kind in (ENGINES[e].dtypes or (kind,))]


def _rows(
    cases: Sequence[Case],
    setting: tuple[int, int, str],
    kind: torch.dtype,
    engines: Sequence[str],
    repeats: int,
) -> Iterator[SparseRow]:
    """Measure the cases of one layer at one number of threads and batch size."""
    threads, batch, layer = setting
    x = images(layer, batch).to(kind)
    with num_threads(threads), torch.inference_mode():
        forget_compiled()
        dense = {engine: prepare(engine, network(layer).to(kind), x) for engine in engines}
        for case in (case for case in cases if case.layer == layer):
            yield _measure(case, x, dense, repeats)


def _measure(case: Case, x: Tensor, dense: Mapping[str, Call], repeats: int) -> SparseRow:
    """Build the sparse layer, compare it with the dense one, and time both in turns."""
    masked = network(case.layer).to(x.dtype)
    sparse = sparse_form(masked, case, x)
    check_equal(sparse, masked, x)
    calls: dict[str, Call] = {"sparse": lambda: sparse(x), **dense}
    shortest = MIN_RUN_TIME * (PART_FACTOR if case.layer == CONV_PART else 1)
    with steps(f"{case.layer} {case.form}", 2) as part:
        heats = interleave(calls, repeats=max(repeats // 4, 1), warmup=2, min_run_time=shortest)
        heats.pop("sparse")
        part.advance()
        ranking = sorted(heats, key=lambda engine: heats[engine].ratio)
        final = {name: calls[name] for name in ("sparse", *ranking[:FINALISTS])}
        timings = interleave(final, repeats=repeats, warmup=1, min_run_time=shortest)
    mine = timings.pop("sparse")
    fastest = min(timings, key=lambda engine: timings[engine].ratio)
    inputs = layer_inputs(masked, Inputs(x))
    layers = [(sparse.get_submodule(name), image) for name, image in inputs.items()]
    return SparseRow(
        configuration=case.configuration,
        layer=case.layer,
        form=case.form,
        row_sparsity=case.row_sparsity,
        column_sparsity=case.column_sparsity,
        batch_size=x.shape[0],
        threads=torch.get_num_threads(),
        dense_engine=fastest,
        dense_ms=timings[fastest].median_ms,
        sparse_ms=mine.median_ms,
        speedup=timings[fastest].ratio,
        speedup_iqr=timings[fastest].ratio_iqr,
        limit=limit(case, masked, x),
        paper=case.paper,
        engines_ms={engine: timing.median_ms for engine, timing in (heats | timings).items()},
        workspace_bytes=max(
            workspace_bytes(layer, image) if isinstance(layer, ColumnSparseConv2d) else 0
            for layer, image in layers
        ),
        lowering_bytes=max(
            lowering_bytes(conv, inputs[name])
            for name, conv in masked.named_modules()
            if isinstance(conv, nn.Conv2d)
        ),
    )


def sparse_form(masked: nn.Module, case: Case, x: Tensor) -> nn.Module:
    """Set a layer, or each layer of the conv part, to zero as the case says; return its fast form.

    Args:
        masked: from :func:`network`; is changed.
        case: how sparse, and in which form.
        x: input.
    """
    if isinstance(masked, nn.Conv2d):
        zero_(masked, case.row_sparsity, case.column_sparsity, single=case.form == "csr")
        return FORMS[case.form](masked).eval()
    for layer in table4_cases([case.configuration], list(LAYERS)):
        conv = masked.get_submodule(layer.layer)
        assert isinstance(conv, nn.Conv2d)
        zero_(conv, layer.row_sparsity, layer.column_sparsity)
    small = copy.deepcopy(masked)
    replace_layers(small, tuple(LAYERS))
    return for_inference(small, x)


def limit(case: Case, model: nn.Module, x: Tensor) -> float:
    """Return what the arithmetic allows: dense over remaining multiply-adds."""
    cases = table4_cases([case.configuration], list(LAYERS)) if case.layer == CONV_PART else [case]
    inputs = layer_inputs(model, Inputs(x))
    dense = [count_macs(model.get_submodule(name), image) for name, image in inputs.items()]
    shares = [(1 - case.row_sparsity) * (1 - case.column_sparsity) for case in cases]
    return sum(dense) / sum(macs * share for macs, share in zip(dense, shares, strict=True))


def network(layer: str) -> nn.Module:
    """Return a convolution of AlexNet, or its conv part, in evaluation mode.

    Example:
        >>> [name for name, _ in network("conv part").named_children()][:4]
        ['conv1', 'relu1', 'pool1', 'norm1']
    """
    if layer != CONV_PART:
        return convolution(layer)
    net = _alexnet()
    parts = {n: nn.ReLU() if n.startswith("relu") else net.get_submodule(n) for n in ORDER}
    return nn.Sequential(OrderedDict(parts)).eval()


def convolution(layer: str) -> nn.Conv2d:
    """Return a convolution of AlexNet in the paper's grouped geometry, in evaluation mode."""
    conv = _alexnet().get_submodule(layer).eval()
    assert isinstance(conv, nn.Conv2d)
    return conv


def _alexnet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_backbone("alexnet", num_classes=1)


def images(layer: str, batch_size: int) -> Tensor:
    """Return random input of a layer or the conv part, ``(N, C, H, W)``."""
    layer = "conv1" if layer == CONV_PART else layer
    size = LAYERS[layer]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, convolution(layer).in_channels, size, size, generator=generator)


@torch.no_grad()
def zero_(conv: nn.Conv2d, rows: float, columns: float, *, single: bool = False) -> None:
    """Set random rows and columns of each conv-group, or single weights, to zero.

    Args:
        conv: is changed.
        rows: share of the filters.
        columns: share of the columns, or of all weights if ``single``.
        single: zero single weights instead of whole columns.

    Example:
        >>> conv = nn.Conv2d(2, 4, 5)
        >>> zero_(conv, 0.25, 0.5)
        >>> sparse = ColumnSparseConv2d.from_conv(conv)
        >>> len(sparse.rows), len(sparse.columns)
        (3, 25)
    """
    generator = torch.Generator().manual_seed(0)

    def some(count: int, share: float) -> Tensor:
        return torch.randperm(count, generator=generator)[: round(share * count)]

    for part in conv.weight.flatten(1).chunk(conv.groups):
        part[some(part.shape[0], rows)] = 0
        if single:
            part.view(-1)[some(part.numel(), columns)] = 0
        else:
            part[:, some(part.shape[1], columns)] = 0


@torch.no_grad()
def check_equal(sparse: nn.Module, dense: nn.Module, x: Tensor) -> None:
    """Raise unless both compute the same, to the rounding of each convolution."""
    error = difference(dense(x).float(), sparse(x).float())
    bound = TOLERANCE[x.dtype] * sum(isinstance(m, nn.Conv2d) for m in dense.modules())
    if not error <= bound:
        raise ValueError(
            f"measure_sparse: expected outputs within {bound:.2g} of the dense layer's scale, got "
            f"a difference of {error:.2g}. Do not use these timings; report the layer {sparse}."
        )


def lowering_bytes(conv: nn.Conv2d, x: Tensor) -> int:
    """Return the bytes of the lowered matrix of one image.

    Example:
        >>> lowering_bytes(nn.Conv2d(2, 4, 3), torch.zeros(8, 2, 5, 5))
        648
    """
    sizes = (conv.in_channels, *conv.kernel_size, *conv(x[:1]).shape[2:], x.element_size())
    return math.prod(map(int, sizes))
