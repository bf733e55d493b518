"""What the mixin does around the hooks of a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.trainer.states import TrainerFn

from ssl_lightning.compaction.store import check_state
from ssl_lightning.graph import same_random_state
from ssl_lightning.groups import group_counts
from ssl_lightning.module.parts import (
    begin_next_epoch_,
    check_tensors,
    refuse_sharding,
    refuse_spawning,
)
from ssl_lightning.module.saving import save_whole_files_
from ssl_lightning.module.sparsity import Sparsity

LOADING = 1
"""Last number of the place in a run at which a batch is loaded."""


def sparsity_of(module: Any, where: str = "") -> Sparsity:
    """Return the state of a module that has the mixin and was sparsified.

    Raises:
        MisconfigurationException: saying what to do.
    """
    name, where = type(module).__name__, f"{where}: " if where else ""
    if not hasattr(module, "sparsify"):
        raise MisconfigurationException(
            f"{where}expected a LightningModule with the mixin StructuredSparsity, got {name}. "
            f"Write `class {name}(StructuredSparsity, pl.LightningModule)` and call "
            "`self.sparsify(...)`, or train the network with SSLLightningModule."
        )
    if module.sparsity is None:
        raise MisconfigurationException(
            f"{where}{name} was not sparsified. Call `self.sparsify(network, penalties)` in its "
            "`__init__`, or put a `Sparsify` callback first in the list of callbacks."
        )
    sparsity: Sparsity = module.sparsity
    return sparsity


def shortcut(name: str) -> Any:
    """Return a property of a module that is an attribute of its state."""
    return property(lambda module: getattr(sparsity_of(module), name), doc=f"`sparsity.{name}`.")


def nothing(module: Any, *_: Any, **__: Any) -> None:
    """Do nothing."""


def write_whole_files(module: Any, *_: Any, **__: Any) -> None:
    """Let the trainer write whole checkpoints and read them safely."""
    save_whole_files_(module.trainer.strategy)


def bind_penalties(module: Any, *_: Any, **__: Any) -> None:
    """Bind the penalties before training starts, so that mistakes show early.

    A callback that replaces layers before that has a method ``before_penalties``.
    """
    if module._trainer is not None and module.trainer.training:
        refuse_sharding(module.trainer.strategy)
        refuse_spawning(module.trainer.strategy)
        for callback in module.trainer.callbacks:
            getattr(callback, "before_penalties", nothing)(module.trainer, module)
        assert module.sparsity is None or module.sparsity.regularizer is not None


def begin(module: Any, *_: Any, **__: Any) -> None:
    """Attach the penalties; fix the seed of every step's random numbers."""
    sparsity = sparsity_of(module)
    sparsity.attach_penalties()
    if sparsity.run_seed is None:
        sparsity.run_seed = torch.initial_seed()


def begin_training(module: Any, *_: Any, **__: Any) -> None:
    """Begin the epoch of a resumed run as the whole run began it."""
    loop = module.trainer.fit_loop
    sparsity_of(module).check_schedules()
    begin_next_epoch_(loop)
    if loop.restarted_on_epoch_end or loop.restarted_mid_epoch:  # without on_train_epoch_start
        begin_epoch(module)
    if loop.is_resuming:  # validation that was done already draws no numbers
        validation = loop.epoch_loop.val_loop
        done = validation.increment_progress_to_evaluation_end
        validation.increment_progress_to_evaluation_end = same_random_state()(done)
    if loop.restarted_mid_epoch and not any(map(is_resumable, loaders_of(loop))):
        skip_batches(loop._data_fetcher, loop.epoch_loop.batch_progress.current.processed)
    if loop.restarted_mid_epoch:
        seed_next_batch(module)


def skip_batches(fetcher: Any, count: int) -> None:
    """Skip batches; those of loaders without a length were fetched ahead."""
    ahead, ended = getattr(fetcher, "batches", []), object()
    for _ in range(count):
        following = next(fetcher.iterator, ended)
        if ahead:
            ahead.pop(0)
            ahead += [] if following is ended else [following]
            fetcher.done = not ahead


def loaders_of(loop: Any) -> list[Any]:
    """Return the loaders of the fit loop."""
    return [] if loop._combined_loader is None else list(loop._combined_loader.flattened)


def is_resumable(loader: Any) -> bool:
    """Whether a loader restores its position itself."""
    return hasattr(loader, "load_state_dict")


def draws_order(loop: Any) -> bool:
    """Whether a loader of the fit loop draws its order from torch's global generator."""
    samplers = [getattr(loader, "sampler", None) for loader in loaders_of(loop)]
    return any(getattr(sampler, "generator", 0) is None for sampler in samplers)


def begin_epoch(module: Any, *_: Any, **__: Any) -> None:
    """Seed the epoch: loaders that shuffle draw their order from torch's global generator."""
    sparsity = sparsity_of(module)
    if sparsity.seed_batches:
        loop = module.trainer.fit_loop
        sparsity.seed(module.current_epoch, -1, module.global_rank)
        made_before = module.current_epoch == 0 or loop.is_resuming
        if made_before and draws_order(loop):
            iter(loop._data_fetcher)  # which is not made again for this epoch


def begin_batch(module: Any, batch: Any, batch_idx: int, *_: Any, **__: Any) -> None:
    """Attach again where optimizers changed; seed the batch; log the penalties."""
    sparsity = sparsity_of(module)
    sparsity.attach_penalties()
    if sparsity.seed_batches:
        sparsity.seed(module.current_epoch, batch_idx, module.global_rank)
    if sparsity.penalties and logs_now(module.trainer):
        regularizer, epoch = sparsity.regularizer, sparsity.epoch
        values = regularizer.values(epoch)
        module.log_dict({f"penalty/{kind}": value for kind, value in values.items()})
        pairs = zip(sparsity.penalties, regularizer.factors(epoch), strict=True)
        module.log_dict({f"strength/{p.kind}": p.base * factor for p, factor in pairs})


def seed_next_batch(module: Any, *_: Any, **__: Any) -> None:
    """Seed what loading the next batch draws, whatever the step and validation before it drew."""
    trainer, sparsity = module.trainer, sparsity_of(module)
    fits = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
    if fits and sparsity.seed_batches:
        done = trainer.fit_loop.epoch_loop.batch_progress.current.processed
        sparsity.seed(module.current_epoch, done, module.global_rank, LOADING)


def logs_now(trainer: pl.Trainer) -> bool:
    """Whether this is one of the steps at which the trainer's loggers write."""
    every: int = getattr(trainer, "log_every_n_steps", 0)
    done = trainer.fit_loop.epoch_loop._batches_that_stepped
    return every > 0 and (done + 1) % every == 0


def log_groups(module: Any, *_: Any, **__: Any) -> None:
    """Log the groups that are not zero, and the multiply-adds that compaction would leave."""
    sparsity = sparsity_of(module)
    figures: dict[str, float] = {f"groups/{p.kind}": 0.0 for p in sparsity.penalties}
    sets = sparsity.regularizer.group_sets
    counts = group_counts(sets, sparsity.parameters())
    for group_set in sets:
        key = f"groups/{group_set.kind}"
        figures[key] = figures.get(key, 0.0) + counts[group_set.name][0]
    module.log_dict(figures)
    share = sparsity.macs_left()
    if share is not None:
        module.log("macs/left", share, prog_bar=True)


def enforce_locks(module: Any, *_: Any, **__: Any) -> None:
    """Averaged weights, swapped in for validation or at the end, have zeros in locked groups."""
    if module.sparsity is not None:
        module.sparsity.enforce_locks_()


def store(module: Any, checkpoint: dict[str, Any], *_: Any, **__: Any) -> None:
    """Store locks, seed and plans; the stored weights have zeros in all locked groups."""
    sparsity = module.sparsity
    if sparsity is not None:
        prefix = f"{sparsity.name}." if sparsity.name else ""
        sparsity.locks.enforce_(checkpoint["state_dict"], prefix)
        checkpoint["ssl_lightning"] = sparsity.state_dict()


def restore(module: Any, checkpoint: dict[str, Any], *_: Any, **__: Any) -> None:
    """Restore plans, locks and seed, after checking that the weights are numbers.

    A module that is loaded for no training, and is sparsified only by a callback, gets the network
    that the checkpoint says.

    Raises:
        ValueError: if the checkpoint is damaged or of another network.
    """
    check_state(checkpoint["state_dict"], "the checkpoint", module)
    module.check_checkpoint(checkpoint)
    stored = checkpoint.get("ssl_lightning")
    if module.sparsity is None and stored:
        if module._trainer is not None and module.trainer.training:
            sparsity_of(module, "The checkpoint has locks and plans")
        module.sparsify(str(stored.get("network", "")))
    if module.sparsity is None:
        return
    if module._trainer is not None and isinstance(module.trainer.precision_plugin, DoublePrecision):
        module.double()  # Lightning does so only after loading, which would round
    plans, origin = module.sparsity.load_state_dict(checkpoint)
    for average in averaged_copies(module._trainer):
        sparsity_of(average).restore_plans(plans, origin)


def compare(module: Any, checkpoint: dict[str, Any], *_: Any, **__: Any) -> None:
    """Compare the stored tensors with the module's, once its own hook has changed them.

    Raises:
        ValueError: naming the first that does not fit.
    """
    if module.sparsity is None:
        return
    complete = module._trainer is not None and module.strict_loading
    check_tensors(checkpoint["state_dict"], module.state_dict(), complete=complete)


def averaged_copies(trainer: pl.Trainer | None) -> Iterator[Any]:
    """Yield the copies of the module in which Lightning's averaging callbacks keep averages."""
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, (WeightAveraging, StochasticWeightAveraging)):
            average = getattr(callback._average_model, "module", callback._average_model)
            if isinstance(getattr(average, "sparsity", None), Sparsity):
                yield average


HOOKS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    "setup": (write_whole_files, bind_penalties),
    "on_fit_start": (begin, nothing),
    "on_train_start": (begin_training, nothing),
    "on_train_epoch_start": (begin_epoch, nothing),
    "on_train_batch_start": (begin_batch, nothing),
    "on_train_batch_end": (nothing, seed_next_batch),
    "on_train_epoch_end": (log_groups, nothing),
    "on_validation_end": (nothing, seed_next_batch),
    "on_validation_epoch_start": (enforce_locks, nothing),
    "on_train_end": (enforce_locks, nothing),
    "on_save_checkpoint": (store, nothing),
    "on_load_checkpoint": (restore, compare),
}
"""Hook of a LightningModule -> what is done before and after it, whatever a class overrides."""
