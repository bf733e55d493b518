"""Stage ``check``: everything that may run on a GPU, against the same in float64 on the CPU."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from stages import Context, NoTimeError
from torch import Tensor, nn

from ssl_lightning import ColumnSparseConv2d
from ssl_lightning.kernels import Geometry, reference

TITLE = "Checks against float64 on the CPU"
Row = dict[str, Any]
Check = Callable[[], float | None]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
TF32 = 2e-3
STEPS = 6
LENET_FILTERS = 70


def run(context: Context) -> None:
    """Run all checks that fit into the minutes; one that fails does not stop the others.

    Raises:
        NoTimeError: if none fits.
    """
    rows: list[Row] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, check in checks(context):
            if context.minutes_left() <= 0:
                rows.append({"name": name, "ok": None, "figure": None, "error": "no time"})
                continue
            rows.append(outcome(name, check))
            if not rows[-1]["ok"] or len(rows) % 20 == 0:
                context.save("check", rows)
    if all(row["ok"] is None for row in rows):
        raise NoTimeError(f"none of {len(rows)} checks was begun")
    context.save("check", rows)


def headline(rows: list[Row] | None) -> str:
    """Say in a line how the checks ended."""
    if not rows:
        return "nothing"
    wrong = [row["name"] for row in rows if row["ok"] is False]
    late = sum(row["ok"] is None for row in rows)
    text = f"{sum(row['ok'] is True for row in rows)} of {len(rows)} hold"
    text += f", {late} without time" if late else ""
    return text + (f"; not: {', '.join(wrong[:12])}" if wrong else "")


def outcome(name: str, check: Check) -> Row:
    """Run one check: it returns a figure, or raises."""
    try:
        return {"name": name, "ok": True, "figure": check(), "error": None}
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return {"name": name, "ok": False, "figure": None, "error": text[:300]}


def checks(context: Context) -> Iterator[tuple[str, Check]]:
    """Return all checks by name, the most telling ones first."""
    device = torch.device(context.device)
    yield from kernel_checks(device, context.dry_run)
    yield from step_checks(device, context.dry_run)
    yield from fit_checks(context)


# Kernels


def kernel_checks(device: torch.device, short: bool) -> Iterator[tuple[str, Check]]:
    """Forward and backward of the column-sparse convolution over shapes, types and strides."""
    kinds = (torch.float32, torch.bfloat16) if short else tuple(TOLERANCE)
    for (name, (geometry, shape)), dtype in product(GEOMETRIES.items(), kinds):
        for layout, density in product(LAYOUTS, DENSITIES[: 2 if short else None]):
            label = f"kernel {name} {dtype} {layout} density {density}".replace("torch.", "")
            yield (
                label,
                lambda g=geometry, s=shape, t=dtype, a=layout, d=density: compare_kernel(
                    g, s, t, LAYOUTS[a], d, device
                ),
            )


GEOMETRIES = {
    "alexnet_conv2": (Geometry(12, 20, (5, 5), padding=(2, 2), groups=2), (1, 27, 27)),
    "alexnet_conv1": (Geometry(3, 13, (11, 11), (4, 4)), (2, 51, 51)),
    "pointwise": (Geometry(40, 30, (1, 1)), (2, 7, 9)),
    "depthwise": (Geometry(9, 18, (3, 3), padding=(1, 1), groups=9), (1, 10, 10)),
    "dilated": (Geometry(4, 6, (3, 2), (1, 3), (4, 1), (3, 2)), (2, 19, 20)),
    "many_rows": (Geometry(5, 133, (3, 3), padding=(1, 1)), (5, 13, 13)),
    "no_image": (Geometry(2, 3, (2, 2)), (0, 4, 4)),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "every_second": lambda x: x.repeat_interleave(2, 3)[..., ::2],
}
DENSITIES = ((0.6, 0.4), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0))


def compare_kernel(
    g: Geometry,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor],
    density: tuple[float, float],
    device: torch.device,
) -> float:
    """Return the largest relative error of output and gradients; raise where it is too large."""
    rows = (torch.rand(g.out_channels) < density[0]).nonzero().flatten()
    columns = (torch.rand(g.num_columns) < density[1]).nonzero().flatten()
    size = sum(value.stop - value.start for _, _, value in g.blocks(rows, columns))
    x = torch.randn(shape[0], g.in_channels, *shape[1:]).to(dtype)
    values, bias = torch.randn(size).to(dtype), torch.randn(g.out_channels).to(dtype)
    exact = [tensor.double().requires_grad_() for tensor in (x, values, bias)]
    mine = [tensor.to(device) for tensor in (x, values, bias)]
    mine = [t.detach().requires_grad_() for t in (layout(mine[0]), *mine[1:])]
    expected = reference.convolve(*exact, rows, columns, g, True)
    sizes = (g.out_channels, g.kernel_size, g.stride, g.padding, g.dilation, g.groups, True)
    operator = torch.ops.ssl_lightning.column_sparse_conv2d
    tolerance = TOLERANCE[dtype]
    if dtype == torch.float32 and device.type == "cuda":
        tolerance = TF32 if torch.backends.cudnn.conv.fp32_precision == "tf32" else tolerance
    poison = torch.full(expected.shape, math.nan, dtype=dtype, device=device)
    del poison  # the output may take its memory: what is not written shows
    actual = operator(*mine, rows.to(device), columns.to(device), *sizes)
    error = near("output", actual, expected, tolerance)
    grad = torch.randn(expected.shape)
    grad[actual.cpu().float() * expected.float() <= 0] = 0  # where rounding decides about ReLU
    wanted = torch.autograd.grad(expected, exact, grad.double())
    found = torch.autograd.grad(actual, mine, grad.to(device, dtype))
    for name, a, b in zip(("x", "values", "bias"), found, wanted, strict=True):
        error = max(error, near(f"gradient of {name}", a, b, 4 * tolerance))
    return error


def near(what: str, actual: Tensor, expected: Tensor, tolerance: float) -> float:
    """Return the error relative to the norm of what is expected; raise if it is too large."""
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}")
    difference = (actual.detach().cpu().double() - expected.detach().cpu().double()).norm()
    error = float(difference / expected.detach().double().norm().clamp_min(1e-30).cpu())
    if not expected.numel() or float(difference) == 0:
        return 0.0
    if not error <= tolerance:
        raise AssertionError(f"{what}: relative error {error:.2g}, expected {tolerance:.2g}")
    return error


# Training steps


class Net(nn.Module):
    """A little of everything that has groups: convolutions with a shortcut, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)  # a batch norm follows
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = x + F.relu(self.conv2(x))
        return self.fc(x.mean((2, 3)))


Optimizer = Callable[[Any], torch.optim.Optimizer]


def optimizers(device: torch.device) -> dict[str, Optimizer]:
    """Return what makes each optimizer, also fused and capturable where there is such a form."""
    found: dict[str, Optimizer] = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
        "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
        "adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
        "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    }
    if device.type == "cuda":
        found |= {
            "adam capturable": lambda p: torch.optim.Adam(p, lr=0.01, capturable=True),
            "adamw capturable": lambda p: torch.optim.AdamW(p, lr=0.01, capturable=True),
            "rmsprop capturable": lambda p: torch.optim.RMSprop(p, lr=0.01, capturable=True),
        }
    return found


def penalties() -> dict[str, list[dict[str, Any]]]:
    """Return every kind in every mode."""
    kinds = ("filter", "channel", "shape", "kernel", "depth", "neuron_in", "neuron_out", "coupled")
    layers = {"depth": "conv2", "neuron_in": "fc", "neuron_out": "fc"}
    found = {}
    for kind, mode in product((*kinds, "l1"), ("proximal", "subgradient")):
        one = {"kind": kind, "mode": mode, "strength": 0.02}
        one |= {"layers": layers[kind]} if kind in layers else {}
        one |= {"layers": "conv*"} if kind in ("filter", "channel", "shape", "kernel") else {}
        found[f"{kind} {mode}"] = [one]
    return found


def step_checks(device: torch.device, short: bool) -> Iterator[tuple[str, Check]]:
    """A few training steps per kind with SGD, and per optimizer with a penalty of shapes."""
    kinds, makers = penalties(), optimizers(device)
    pairs = [*((k, "sgd") for k in kinds), *(("shape proximal", o) for o in makers)]
    if not short:
        pairs = list(dict.fromkeys([*pairs, *product(kinds, makers)]))
    for kind, optimizer in dict.fromkeys(pairs):
        yield (
            f"steps {kind}, {optimizer}",
            lambda k=kinds[kind], o=makers[optimizer]: compare_steps(k, o, device),
        )
    if device.type == "cuda":
        for kind, optimizer in dict.fromkeys(pairs):
            yield (
                f"no host reads {kind}, {optimizer}",
                lambda k=kinds[kind], o=makers[optimizer]: silent_steps(k, o, device),
            )


def make_steps(
    specs: list[dict[str, Any]], maker: Optimizer, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, Callable[[], None]]:
    """Return a network and what trains it by a step, with penalties and a locked filter."""
    from ssl_lightning.groups import Selector, resolve_groups
    from ssl_lightning.locks import GroupLocks
    from ssl_lightning.penalties import Regularizer

    torch.manual_seed(0)
    net = Net()
    x, y = torch.randn(16, 3, 6, 6), torch.arange(16) % 4
    net, x, y = net.to(device, dtype), x.to(device, dtype), y.to(device)
    regularizer = Regularizer(net, specs, x)
    optimizer = maker(net.parameters())
    locks, (group_set, *_) = GroupLocks(), resolve_groups(net, [Selector("filter", "conv1")], x)
    locks.lock(group_set, torch.arange(8) == 3)
    tensors = dict(net.named_parameters())

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        regularizer.add_subgradient_()
        optimizer.step()
        regularizer.proximal_step_(optimizer)
        with torch.no_grad():
            locks.enforce_(tensors)

    return net, step


def compare_steps(specs: list[dict[str, Any]], maker: Optimizer, device: torch.device) -> float:
    """Train the same here in float32 and in float64 on the CPU; return the largest difference."""
    torch.backends.cudnn.allow_tf32 = False
    try:
        net, step = make_steps(specs, maker, device, torch.float32)
        exact, exact_step = make_steps(specs, _plain(maker), torch.device("cpu"), torch.float64)
        for _ in range(STEPS):
            step()
            exact_step()
    finally:
        torch.backends.cudnn.allow_tf32 = True
    pairs = zip(net.state_dict().items(), exact.state_dict().values(), strict=True)
    return max(near(name, a, b, 2e-3) for (name, a), b in pairs if a.is_floating_point())


def _plain(maker: Optimizer) -> Optimizer:
    """Return the same optimizer for the CPU in float64, neither capturable nor fused."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = maker(parameters)
        for group in optimizer.param_groups:
            group |= {name: False for name in ("capturable", "fused") if name in group}
        return optimizer

    return make


def silent_steps(specs: list[dict[str, Any]], maker: Optimizer, device: torch.device) -> None:
    """Raise if a step waits for the device."""
    _, step = make_steps(specs, maker, device, torch.float32)
    for _ in range(2):
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Whole fits


def fit_checks(context: Context) -> Iterator[tuple[str, Check]]:
    """Fits by Lightning: precisions, compiled, with pruning, locks and CompactDuringFit."""
    cuda = context.device == "cuda"
    for precision in ("32-true", "bf16-mixed", *(["16-mixed"] if cuda else [])):
        yield f"fit {precision}", lambda p=precision: fit(context, p)
    yield "fit with locks and CompactDuringFit", lambda: fit(context, "32-true", compact=True)
    if not context.dry_run:
        yield "fit compiled", lambda: fit(context, "32-true", compiled=True)
        yield "fit compiled bf16-mixed", lambda: fit(context, "bf16-mixed", compiled=True)
    if cuda:
        yield "column-sparse layer compiled with graphs", compiled_layer


def fit(
    context: Context, precision: str, *, compact: bool = False, compiled: bool = False
) -> float:
    """Train LeNet briefly; return the share of filters that are zero, which must not be none."""
    import lightning.pytorch as pl

    from ssl_lightning import SSLLightningModule, create_backbone

    pl.seed_everything(0, verbose=False)
    module = SSLLightningModule(
        create_backbone("lenet"),
        penalties=[{"kind": "filter", "layers": "conv*", "strength": 0.1}],
        optimizer=lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    )
    if compiled:
        module.compile()
    images = torch.randn(256, 1, 28, 28)
    data = torch.utils.data.TensorDataset(images, torch.arange(256) % 10)
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="gpu" if context.device == "cuda" else "cpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        callbacks=_pruning() if compact else [],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=64))
    if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
        raise AssertionError("weights are not finite")
    nonzero = sum(
        int((layer.weight.detach().flatten(1).norm(dim=1) > 0).sum())
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d)
    )
    zero = 1 - nonzero / LENET_FILTERS
    if not zero > 0:
        raise AssertionError("no filter became zero")
    return zero


def _pruning() -> list[Any]:
    from ssl_lightning import CompactDuringFit, ThresholdPruning

    return [ThresholdPruning(start=2), CompactDuringFit(at=3)]


def compiled_layer() -> float:
    """Compare the layer under torch.compile with graphs with itself."""
    conv = nn.Conv2d(16, 32, 3, padding=1, device="cuda").eval()
    with torch.no_grad():
        conv.weight[:, :8] = 0
    layer = ColumnSparseConv2d.from_conv(conv).eval()
    x = torch.randn(2, 16, 13, 13, device="cuda")
    fast = torch.compile(layer, mode="reduce-overhead")
    with torch.no_grad():
        found = [fast(x).clone() for _ in range(4)][-1]
        return near("output", found, copy.deepcopy(conv).double()(x.double()), TF32)
