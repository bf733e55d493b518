"""Which convolutions with zero columns run faster column-sparse: decided by measuring both."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from ssl_lightning.compaction.plan import Plan
from ssl_lightning.compaction.rewrite import apply_slices
from ssl_lightning.graph import Inputs, check_network, working_copy
from ssl_lightning.kernels import ColumnSparseConv2d
from ssl_lightning.progress import track

WORTH_IT = 0.95  # of the dense time: less is not told from noise, and dense layers export anywhere
Compare = Callable[[nn.Module, nn.Module, Tensor], float]


def time_ratio(dense: nn.Module, sparse: nn.Module, x: Tensor, *, rounds: int = 9) -> float:
    """Return the time of ``sparse`` over that of ``dense``: the median of rounds taken in turns.

    Example:
        >>> time_ratio(nn.Conv2d(8, 8, 3), nn.Identity(), torch.zeros(1, 8, 64, 64), rounds=3) < 1
        True
    """
    timers = [
        Timer("layer(x)", globals={"layer": layer, "x": x}, num_threads=torch.get_num_threads())
        for layer in (dense, sparse)
    ]
    calls = [max(1, int(0.002 / max(timer.timeit(2).mean, 1e-9))) for timer in timers]
    ratios = []
    for i in range(rounds):
        order = (0, 1) if i % 2 == 0 else (1, 0)  # a layer is slower or faster by what ran before
        times = {who: timers[who].timeit(calls[who]).mean for who in order}
        ratios.append(times[1] / times[0])
    return statistics.median(ratios)


def choose_layers(model: nn.Module, plan: Plan, *, compare: Compare = time_ratio) -> Plan:
    """Decide for each convolution between dense and column-sparse, by measuring both here.

    The network is compacted by the plan; every convolution that still has zero columns or rows is
    timed on an input of its own shape, alone, dense and as :class:`ColumnSparseConv2d`, at torch's
    present number of threads. It becomes column-sparse only where that is clearly faster, so no
    layer gets slower.

    Args:
        model: the network the plan was made for, with its zeros; it is not changed.
        plan: from :func:`make_plan`; its input shapes set batch and image size.
        compare: ``(dense, sparse, input)`` to the ratio of their times.

    Returns:
        The plan with the names of the layers in ``sparse``, which ``compact`` and ``load_compact``
        follow, and a note that says how they were chosen.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> from ssl_lightning.compaction import compact, make_plan
        >>> net = create_backbone("lenet")
        >>> with torch.no_grad():
        ...     _ = net.conv2.weight[:, :, :4].zero_()
        >>> plan = make_plan(net, torch.zeros(1, 1, 28, 28))
        >>> plan = choose_layers(net, plan, compare=lambda dense, sparse, x: 0.2)
        >>> compact(net, plan).conv2
        ColumnSparseConv2d(20, 50, kernel_size=(5, 5), stride=(1, 1), rows=50/50, columns=100/500)
    """
    check_network(model)
    small = apply_slices(working_copy(model), plan.modules).eval()
    device = next((p.device for p in small.parameters()), torch.device("cpu"))
    chosen = []
    with torch.inference_mode():
        inputs = layer_inputs(small, plan.inputs(device))
        for name, x in track(inputs.items(), "timing convolutions"):
            dense = small.get_submodule(name)
            sparse = column_sparse(dense)
            if sparse is not None and compare(dense, sparse, x) <= WORTH_IT:
                chosen.append(name)
    notes = plan.notes
    if chosen:
        shape = " and ".join(str(tuple(shape)) for shape in plan.input_shapes)
        notes = (
            *notes,
            f"column-sparse, as measured with {torch.get_num_threads()} threads and input {shape}: "
            f"{', '.join(chosen)}",
        )
    return replace(plan, sparse=tuple(chosen), notes=notes)


def column_sparse(layer: nn.Module) -> ColumnSparseConv2d | None:
    """Return the column-sparse form of a convolution; None if it has none, or nothing is zero."""
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros":
        return None
    try:
        sparse = ColumnSparseConv2d.from_conv(layer).eval()
    except ValueError:  # pads one side more than the other
        return None
    full = sparse.rows.numel() == layer.out_channels
    full = full and sparse.columns.numel() == sparse.geometry.num_columns
    return None if full else sparse


def replace_layers(model: nn.Module, names: tuple[str, ...], *, keep_all: bool = False) -> None:
    """Put a column-sparse layer in the place of each named convolution.

    Args:
        model: is changed.
        names: of convolutions.
        keep_all: keep all rows and columns, for weights that are still to be loaded.

    Raises:
        ValueError: if there is no such convolution.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        conv = known.get(name)
        if not isinstance(conv, nn.Conv2d):
            raise ValueError(
                f"The plan expects a convolution `{name}`, {type(model).__name__} has "
                f"{conv or 'no such layer'}. Use the plan with the backbone it was made for."
            )
    for name in names:
        conv = known[name]
        assert isinstance(conv, nn.Conv2d)
        everything = range(conv.out_channels), range(conv.in_channels * conv.weight[0, 0].numel())
        sparse = ColumnSparseConv2d.from_conv(conv, *(everything if keep_all else (None, None)))
        for alias in [n for n, other in known.items() if other is conv]:
            model.set_submodule(alias, sparse)


def with_dense_layers(model: nn.Module) -> nn.Module:
    """Return the model with an ordinary convolution for each column-sparse one, copied if any."""
    known = dict(model.named_modules(remove_duplicate=False))
    if not any(isinstance(module, ColumnSparseConv2d) for module in known.values()):
        return model
    dense = working_copy(model)
    for layer in [m for m in dense.modules() if isinstance(m, ColumnSparseConv2d)]:
        conv = layer.to_conv()
        for name in [n for n in known if dense.get_submodule(n) is layer]:
            dense.set_submodule(name, conv)
    return dense


def layer_inputs(model: nn.Module, example: Inputs) -> dict[str, Tensor]:
    """Run the model once; return what reaches each convolution first, by its name."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: inputs.__setitem__(name, inputs.get(name, args[0]))

    handles = [
        module.register_forward_pre_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        example.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return inputs
