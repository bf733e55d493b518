"""The timings behind a card: latency of the networks, and cost of the penalties per step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.measure import benchmark, interleave
from ssl_lightning.measure.machine import machine
from ssl_lightning.measure.sparse import Case, measure_sparse
from ssl_lightning.measure.sparse_record import SparseRecord
from ssl_lightning.measure.table4 import LAYERS, TABLE4, Configuration
from ssl_lightning.measure.turns import num_threads
from ssl_lightning.penalties import Regularizer
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
    """Return the shares of AlexNet's rows and columns that are zero.

    Args:
        groups: layer -> kind -> [left, all], as in a card.
    """
    return {
        layer: (zero_share(groups[layer]["filters"]), zero_share(groups[layer]["columns"]))
        for layer in LAYERS
    }


def zero_weights(model: nn.Module) -> Shares:
    """Return the shares of the single weights of AlexNet's convolutions that are zero."""
    weights = {layer: model.get_parameter(f"{layer}.weight") for layer in LAYERS}
    return {
        layer: (0.0, zero_share([int(weight.count_nonzero()), weight.numel()]))
        for layer, weight in weights.items()
    }


def configuration_of(number: int) -> Configuration:
    """Return a row of the paper's Table 4.

    Raises:
        ValueError: if there is none of that number.

    Example:
        >>> configuration_of(2).form
        'columns'
    """
    return pick("configuration of Table 4", str(number), {str(n): c for n, c in TABLE4.items()})


def measure_speedups(shares: Shares, configuration: int) -> SparseRecord | None:
    """Time AlexNet's convolutions at a network's sparsities, as the paper's Table 4 does.

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
    """Return the share that is zero of [left, all].

    Example:
        >>> zero_share([3, 4])
        0.25
    """
    left, of = counts
    return round(1 - left / of, 6)


def measure_step_cost(
    settings: Mapping[str, Any],
    backbone: Callable[[], nn.Module],
    batch: tuple[Tensor, Tensor],
    precision: str | None = None,
    threads: int = 1,
    rounds: int = STEP_ROUNDS,
) -> StepCost:
    """Time training steps with and without penalties in turns, on one batch.

    A step is all from zeroing the gradients to the end of the proximal step, at the epoch in which
    most penalties are in force.

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
    penalties = settings.get("penalties") or []
    if not penalties:
        raise ValueError("The run has no penalties, so they cost nothing. Leave the step cost out.")
    layout = torch.channels_last if settings.get("channels_last") else torch.preserve_format
    images = batch[0].to(memory_format=layout)
    steps = {
        name: training_step(backbone(), given, settings, (images, batch[1]), mixed)
        for name, given in (("without", []), ("with", penalties))
    }
    with num_threads(threads):
        timings = interleave(steps, repeats=rounds, warmup=2, min_run_time=0.0)
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


def training_step(
    model: nn.Module,
    penalties: list[Any],
    settings: Mapping[str, Any],
    batch: tuple[Tensor, Tensor],
    mixed: bool,
) -> Callable[[], None]:
    """Return a function that makes one training step each time it is called."""
    images, labels = batch
    model.train()
    if images.is_contiguous(memory_format=torch.channels_last) and images.dim() == 4:
        model.to(memory_format=torch.channels_last)
    regularizer = Regularizer(model, penalties, images[:1])
    optimizer = create_optimizer(settings.get("optimizer"), model)
    epoch = busiest_epoch(regularizer)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        regularizer.add_subgradient_(epoch)
        optimizer.step()
        regularizer.proximal_step_(optimizer, epoch)

    return step


def busiest_epoch(regularizer: Regularizer, until: int = 1000) -> float:
    """Return the first epoch in which most penalties have a strength."""

    def in_force(epoch: int) -> int:
        return sum(penalty.schedule(epoch + 0.5) > 0 for penalty in regularizer.penalties)

    return max(range(until), key=in_force) + 0.5


def create_optimizer(given: Mapping[str, Any] | None, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a config at a tiny learning rate; named, never imported by path."""
    if given is None:
        return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    known = {kind.__name__: kind for kind in STEP_SIZES}
    kind: Any = pick("optimizer", str(given["class_path"]).rpartition(".")[2], known)
    arguments = {**(given.get("init_args") or {}), "lr": LEARNING_RATE}
    optimizer: torch.optim.Optimizer = kind(model.parameters(), **arguments)
    return optimizer
