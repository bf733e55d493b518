"""The timings behind a card: latency of the networks, and cost of the penalties per step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.measure import benchmark, interleave
from ssl_lightning.measure.engine import quiet
from ssl_lightning.measure.machine import machine
from ssl_lightning.measure.sparse import Case, convolution, measure_sparse
from ssl_lightning.measure.sparse_record import SparseRecord
from ssl_lightning.measure.table4 import LAYERS, TABLE4, Configuration
from ssl_lightning.measure.turns import num_threads
from ssl_lightning.module import SSLLightningModule
from ssl_lightning.module.parts import default_optimizer
from ssl_lightning.penalties import parse_penalty
from ssl_lightning.publishing.stepping import TrainingSteps
from ssl_lightning.registry import path_of
from ssl_lightning.steps import STEP_SIZES
from ssl_lightning.suggest import pick
from ssl_lightning.zoo.records import Latency, StepCost

ROUNDS = {1: 30, 64: 10}
"""Images per batch -> samples of each network; a sample of a large batch is long, and steadier."""
STEP_ROUNDS = 15
LEARNING_RATE = 1e-6
"""Of the timed steps: so small that no group becomes zero while they are timed."""


def measure_latency(
    models: Mapping[str, nn.Module], batch_size: int, threads: int, rounds: int
) -> Latency:
    """Time networks in turns on random images; ratios refer to the first.

    Args:
        models: name -> network with an ``input_shape``.
        batch_size: images per batch.
        threads: intra-op threads.
        rounds: samples of each.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> nets = {"dense": create_backbone("mlp"), "compact": create_backbone("mlp", widths=(5,))}
        >>> measure_latency(nets, batch_size=1, threads=1, rounds=2).ratio["dense"]
        1.0
    """
    shape: tuple[int, ...] = next(iter(models.values())).input_shape  # type: ignore[assignment]
    images = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))
    result = benchmark(models, images, repeats=rounds, threads=threads, per_layer=False)
    timings = result.run(threads).network
    return Latency(
        ratio={name: round(t.ratio, 4) for name, t in timings.items()},
        ratio_iqr={name: round(t.ratio_iqr, 4) for name, t in timings.items()},
        median_ms={name: round(t.median_ms, 4) for name, t in timings.items()},
        batch_size=batch_size,
        threads=threads,
        num_rounds=rounds,
        machine=result.machine,
    )


Shares = dict[str, tuple[float, float]]
"""Layer -> share of its rows that are zero, and of its columns (of its weights, for CSR)."""


def zero_groups(groups: Mapping[str, Mapping[str, list[int]]]) -> Shares:
    """Return the shares of rows and columns that are zero in the layers of Table 4.

    Args:
        groups: layer -> kind -> [retained, all], as in a card.
    """
    return {
        layer: (zero_share(groups[layer]["filters"]), zero_share(groups[layer]["columns"]))
        for layer in LAYERS
    }


def zero_weights(model: nn.Module) -> Shares:
    """Return the shares of the single weights that are zero in the layers of Table 4."""
    weights = {layer: model.get_parameter(f"{layer}.weight") for layer in LAYERS}
    return {
        layer: (0.0, zero_share([int(weight.count_nonzero()), weight.numel()]))
        for layer, weight in weights.items()
    }


def configuration_of(number: Any) -> Configuration:
    """Return a row of the paper's Table 4.

    Raises:
        ValueError: if there is none of that number.

    Example:
        >>> configuration_of(2).form
        'columns'
    """
    return pick("configuration of Table 4", str(number), {str(n): c for n, c in TABLE4.items()})


def check_layers(dense: nn.Module) -> None:
    """Make sure that a network has the layers that are timed beside the paper's Table 4.

    Raises:
        ValueError: naming the first that it has not.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> check_layers(create_backbone("lenet"))
        Traceback (most recent call last):
        ...
        ValueError: Cannot time layers beside Table 4: expected conv1 of (96, 3, 11, 11), got
        (20, 1, 5, 5). Leave `table4` out of `paper`.
    """
    modules = dict(dense.named_modules())
    for layer in LAYERS:
        wanted = tuple(convolution(layer).weight.shape)
        weight = getattr(modules.get(layer), "weight", None)
        found = None if weight is None else tuple(weight.shape)
        if found != wanted:
            raise ValueError(
                f"Cannot time layers beside Table 4: expected {layer} of {wanted}, got "
                f"{found or 'no such layer'}. Leave `table4` out of `paper`."
            )


def measure_speedups(shares: Shares, configuration: int) -> SparseRecord | None:
    """Time the convolutions of the paper's Table 4 at a network's sparsities.

    Zeros are at random positions, as many as in the network. The other side is the fastest dense
    engine for each layer; padding, lowering and writing all filters are included.

    Args:
        shares: what is zero: rows and columns, or, beside a configuration of single zeros (l1),
            single weights, which are timed as compressed sparse rows (CSR).
        configuration: of the paper's table, to stand beside.

    Returns:
        A record for batch 1 on one thread, or None if nothing is zero.

    Raises:
        ValueError: if the configuration is unknown.
    """
    paper = configuration_of(configuration)
    if not any(share for pair in shares.values() for share in pair):
        return None
    cases = [
        Case(layer, paper.form, *shares[layer], configuration, speedup)
        for layer, speedup in zip(LAYERS, paper.speedups, strict=True)
    ]
    return measure_sparse("AlexNet's convolutions at this network's sparsities", cases)


def zero_share(counts: list[int]) -> float:
    """Return the share that is zero of [retained, all].

    Example:
        >>> zero_share([3, 4])
        0.25
    """
    retained, of = counts
    return round(1 - retained / of, 6)


def measure_step_cost(
    settings: Mapping[str, Any],
    backbone: Callable[[], nn.Module],
    batch: tuple[Tensor, Tensor],
    precision: str | None = None,
    threads: int = 1,
    rounds: int = STEP_ROUNDS,
) -> StepCost:
    """Time the trainer's steps with and without penalties in turns, on one batch.

    A step is all that the module's ``optimizer_step`` does: forward pass, zeroing of gradients,
    backward pass, optimizer and penalties, those of the epoch in which most are in force.

    Args:
        settings: the ``model`` section of a config.
        backbone: makes the network to train.
        batch: images ``(N, C, H, W)`` and labels ``(N,)``.
        precision: of the trainer; ``"bf16-mixed"`` is timed so, all others in float32.
        threads: intra-op threads.
        rounds: samples of each.

    Raises:
        ValueError: if the optimizer is unknown, or there are no penalties.
    """
    mixed = precision == "bf16-mixed"
    penalties = in_force(settings.get("penalties") or [])
    if not penalties:
        raise ValueError("The run has no penalties, so they cost nothing. Leave the step cost out.")
    with quiet(), num_threads(threads), ExitStack() as stack:
        steps: dict[str, TrainingSteps] = {}
        for name, given in (("without", []), ("with", penalties)):
            module = step_module(settings, backbone(), given)
            kind = "bf16-mixed" if mixed else "32-true"
            steps[name] = stack.enter_context(TrainingSteps(module, batch, kind, threads))

        def clock() -> float:
            return sum(step.seconds for step in steps.values())

        timings = interleave(steps, repeats=rounds, warmup=2, min_run_time=0.0, clock=clock)
    return StepCost(
        ratio=round(timings["with"].ratio, 4),
        ratio_iqr=round(timings["with"].ratio_iqr, 4),
        median_ms={name: round(t.median_ms, 3) for name, t in timings.items()},
        batch_size=len(batch[1]),
        precision="bfloat16 autocast" if mixed else "float32",
        threads=threads,
        num_rounds=rounds,
        machine=machine(torch.device("cpu")),
    )


def step_module(
    settings: Mapping[str, Any], model: nn.Module, penalties: list[Any]
) -> SSLLightningModule:
    """Return the module of a config, with this network and these penalties, to time its steps."""
    other = ("backbone", "backbone_args", "penalties", "optimizer", "lr_scheduler", "init_from")
    return SSLLightningModule(
        model,
        penalties=penalties,
        optimizer=partial(create_optimizer, settings.get("optimizer")),
        **{key: value for key, value in settings.items() if key not in other},
    )


def in_force(penalties: Sequence[Mapping[str, Any]], until: int = 1000) -> list[dict[str, Any]]:
    """Return the penalties of the first epoch in which most have a strength, without a schedule.

    Example:
        >>> windows = [{"kind": "window", "start": s, "end": s + 2} for s in (0, 1, 5)]
        >>> given = {"kind": "filter", "strength": 1e-3}
        >>> late = [given | {"layers": f"conv{w['start']}", "schedule": w} for w in windows]
        >>> [penalty["layers"] for penalty in in_force(late)]
        ['conv0', 'conv1']
    """
    schedules = [parse_penalty(penalty).schedule for penalty in penalties]

    def strong(epoch: int) -> list[bool]:
        return [schedule(epoch + 0.5) > 0 for schedule in schedules]

    chosen = strong(max(range(until), key=lambda epoch: sum(strong(epoch))))
    return [
        {key: value for key, value in penalty.items() if key != "schedule"}
        for penalty, wanted in zip(penalties, chosen, strict=True)
        if wanted
    ]


def create_optimizer(
    given: Mapping[str, Any] | str | None, parameters: Any
) -> torch.optim.Optimizer:
    """Return the optimizer of a config at a tiny learning rate; named, never imported by path."""
    if given in (None, path_of(default_optimizer)):  # what `fit` writes where none is given
        return torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9)
    given = {"class_path": given} if isinstance(given, str) else given or {}
    known = {kind.__name__: kind for kind in STEP_SIZES}
    path = str(given["class_path"])
    of_torch = path.partition(".")[0] in ("torch", path)
    kind: Any = pick("optimizer", path.rpartition(".")[2] if of_torch else path, known)
    arguments = {**(given.get("init_args") or {}), "lr": LEARNING_RATE}
    optimizer: torch.optim.Optimizer = kind(parameters, **arguments)
    return optimizer
