"""How much the outputs of a network in training change when groups are removed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from ssl_lightning.groups import GroupSet
from ssl_lightning.module import Sparsity
from ssl_lightning.prune import Rises, measure_rises

NUM_INPUTS, MAX_BATCHES = 256, 8
"""Training inputs on which outputs are compared, and the most batches that are taken for them."""

MOST_WORK, STEP = 0.25, 3
"""Most forward passes, as a share of those that the run's steps are worth; a step is worth 3. In a
short run, fewer batches are taken."""

SHARES = (0.125, 0.25, 0.5, 0.75, 0.875)
"""Of the groups of a set that are removed; between them, the change is interpolated."""

LARGEST = 1e6
"""Change of outputs that are not finite any more."""

ADVICE = "Give importance='l2', which needs no data."


@dataclass(frozen=True)
class Call:
    """Arguments of one call of a network."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]

    def of(self, network: nn.Module) -> list[Tensor]:
        """Return the network's outputs that are floating-point numbers."""
        leaves = pytree.tree_leaves(network(*self.arguments, **self.named))
        return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


class Called(BaseException):
    """Ends a training step at its call of the network; no ``except Exception`` catches it."""


def changes_of_outputs(
    trainer: pl.Trainer, sparsity: Sparsity, group_sets: Sequence[GroupSet]
) -> Rises:
    """Measure how much the outputs change on training inputs when groups of a set are removed.

    The change is the sum of squared differences over the sum of squares, averaged over batches and
    outputs: it needs no labels, and is the same measure for all tasks. Nothing is trained, and
    neither the module nor the position in its data changes.

    Args:
        trainer: that trains.
        sparsity: of the module.
        group_sets: the groups.

    Raises:
        MisconfigurationException: if the training step does not call the network, or the network
            returns nothing that could be compared.
    """
    times = sum(1 if s.kind == "depth" else len(SHARES) for s in group_sets)
    batches = MOST_WORK * STEP * steps_of(trainer) / times
    calls = training_calls(trainer, sparsity, NUM_INPUTS, int(min(batches, MAX_BATCHES)))
    expected: list[list[Tensor]] = []  # outputs of the whole network, which is evaluated first

    @torch.no_grad()
    def changed(network: nn.Module) -> float:
        with trainer.precision_plugin.forward_context():
            outputs = [call.of(network) for call in calls]
        if not expected:
            check_comparable(outputs)
            expected.extend(outputs)
        return sum(map(change, outputs, expected)) / len(calls)

    conditions = f"relative squared change of the outputs on {len(calls)} training batches"
    return measure_rises(
        sparsity.network, group_sets, changed, shares=SHARES, conditions=conditions
    )


def check_comparable(outputs: Sequence[Sequence[Tensor]]) -> None:
    """Refuse outputs whose change says nothing.

    Raises:
        MisconfigurationException: if there are none, or they are not finite.
    """
    if not all(found and all(bool(x.isfinite().all()) for x in found) for found in outputs):
        raise MisconfigurationException(
            "Budget: expected finite floating-point outputs of the network, by whose change its "
            f"groups are ranked, got {'others' if all(outputs) else 'none'}. {ADVICE}"
        )


def change(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the sum of squared differences over the sum of squares, a mean over outputs.

    Example:
        >>> change([torch.tensor([3.0, 1.0])], [torch.tensor([3.0, 4.0])])
        0.36
        >>> change([torch.tensor([math.nan])], [torch.tensor([1.0])])
        1000000.0
    """
    found = []
    for output, own in zip(outputs, expected, strict=True):
        kind = torch.promote_types(own.dtype, torch.float32)
        of = own.to(kind).square().sum().clamp_min(torch.finfo(kind).tiny)
        found.append((output.to(kind) - own.to(kind)).square().sum() / of)
    value = float(sum(found)) / len(found)
    return min(value, LARGEST) if math.isfinite(value) else LARGEST


def steps_of(trainer: pl.Trainer) -> float:
    """Return the number of batches of a run; infinite if it has no end."""
    epochs = trainer.max_epochs
    if epochs is None or epochs < 0:
        return math.inf
    return float(epochs * trainer.num_training_batches)


def training_calls(
    trainer: pl.Trainer, sparsity: Sparsity, number: int, most: int = MAX_BATCHES
) -> list[Call]:
    """Return how training steps would call the network, for about so many inputs.

    At least one batch and at most so many are taken for them. Batches come from a loader of their
    own, so that the run's data are where they were. A step ends at the call: nothing is logged,
    counted or updated.

    Raises:
        MisconfigurationException: if there are no batches, or a step does not call the network.
    """
    module, calls, count = sparsity.module, list[Call](), 0
    for index, batch in enumerate(fresh_batches(trainer)):
        if index >= max(most, 1) or count >= number:
            break
        batch = trainer.precision_plugin.convert_input(batch)
        call = call_in_step(module, sparsity.network, trainer.strategy.batch_to_device(batch))
        calls.append(call)
        count += max([len(x) for x in tensors_of(call) if x.dim()], default=1)
    if not calls:
        raise MisconfigurationException(
            "Budget: expected training batches, on which groups are ranked by what their removal "
            f"changes, got none. {ADVICE}"
        )
    return calls


def tensors_of(call: Call) -> list[Tensor]:
    """Return the tensors that a network is called with."""
    leaves = pytree.tree_leaves((call.arguments, call.named))
    return [x for x in leaves if isinstance(x, Tensor)]


def fresh_batches(trainer: pl.Trainer) -> Iterator[Any]:
    """Yield training batches from the beginning, as the run's own loaders would."""
    source, mode = trainer.fit_loop._data_source.dataloader(), "max_size_cycle"  # as Lightning does
    if isinstance(source, CombinedLoader):
        source, mode = source.iterables, source._mode
    loaders = CombinedLoader(pytree.tree_map(apart, source), mode)  # type: ignore[arg-type]
    yield from (batch for batch, _, _ in iter(loaders))


def apart(loader: Any) -> Any:
    """Return a loader that can be iterated over while the given one is."""
    if not isinstance(loader, DataLoader):
        return copy.copy(loader)
    found, sampler = copy.copy(loader), copy.copy(loader.sampler)
    batches: Any = copy.copy(loader.batch_sampler)
    if getattr(batches, "sampler", None) is loader.sampler:
        batches.sampler = sampler
    vars(found).update(sampler=sampler, batch_sampler=batches, _iterator=None)
    return found


def call_in_step(module: pl.LightningModule, network: nn.Module, batch: Any) -> Call:
    """Return how a training step on a batch calls the network first.

    Raises:
        MisconfigurationException: if it does not.
    """

    def note(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(Call(arguments, named))
        raise Called

    found: list[Call] = []
    step: Callable[..., Any] = module.training_step
    numbered = is_param_in_hook_signature(step, "batch_idx", min_args=2)
    hook = network.register_forward_pre_hook(note, prepend=True, with_kwargs=True)
    try:
        with torch.no_grad(), unchanged(module):
            step(batch, 0) if numbered else step(batch)
    except Called:
        return found[0]
    finally:
        hook.remove()
    raise MisconfigurationException(
        "Budget: the training step did not call the network, whose groups are ranked by what their "
        f"removal changes in its outputs. {ADVICE}"
    )


@contextmanager
def unchanged(module: pl.LightningModule) -> Iterator[None]:
    """Let a training step that is cut off leave nothing behind: no logs, no frozen parameters."""
    frozen = {parameter: parameter.requires_grad for parameter in module.parameters()}
    names = ("log", "log_dict")
    before = {name: vars(module)[name] for name in names if name in vars(module)}
    vars(module).update(dict.fromkeys(names, lambda *_, **__: None))
    try:
        yield
    finally:
        for name in names:
            del vars(module)[name]
        vars(module).update(before)
        for parameter, value in frozen.items():
            parameter.requires_grad = value
