"""StructuredSparsity: penalties, locks, compaction and checkpoints for any LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import nn

from ssl_lightning.backbones import class_path
from ssl_lightning.compaction.store import Recipe, check_state
from ssl_lightning.graph import ExampleInput, Inputs
from ssl_lightning.groups import group_counts
from ssl_lightning.module.parts import check_tensors, refuse_sharding, refuse_spawning
from ssl_lightning.module.saving import save_whole_files_
from ssl_lightning.module.sparsity import Sparsity
from ssl_lightning.penalties import GroupLasso, Penalty, penalty_name


class StructuredSparsity(pl.LightningModule):
    """Mixin: train any LightningModule, or a part of it, with structured-sparsity penalties.

    Inherit from it beside the module's own base, and call :meth:`sparsify` when the network is
    there: in ``__init__``, ``configure_model`` or ``setup``; or leave the call to a
    :class:`~ssl_lightning.Sparsify` callback in a config. Everything else remains as it was: the
    training step, the optimizers, the loss. Hooks of the module may be overridden as usual; what
    the mixin does in them happens whether they call ``super()`` or not.

    While it trains, penalties and locks act at each step of the optimizers (automatic and manual
    optimization, several optimizers). Logged are per kind ``penalty/<kind>``, ``strength/<kind>``
    and ``groups/<kind>`` (those that are not zero), and ``macs/left``: the multiply-adds that
    compaction would leave now, in percent of those that training started with.
    Checkpoints hold the locked groups and the plans of compaction.

    Random numbers: unless ``sparsify(..., seed_batches=False)``, ``torch.manual_seed`` is called
    at each training batch with a function of the run's seed, the epoch, the batch and the rank, so
    that a resumed run draws the numbers that the whole run would have drawn. This sets torch's
    global generators (all devices) for whatever else in the process draws from them; those of
    numpy and Python are not touched.

    Attributes:
        sparsity: the state; None until :meth:`sparsify` is called.

    Example:
        >>> class MyModule(StructuredSparsity, pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
        ...         self.head = nn.Linear(6, 2)
        ...         self.sparsify("backbone", [{"kind": "neuron_out", "strength": 1e-3}])
        >>> [s.name for s in MyModule().sparsity.regularizer.group_sets]
        ['0:neuron_out', '2:neuron_out']
    """

    sparsity: Sparsity | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Do what must be done also where a class overrides a hook without calling super."""
        super().__init_subclass__(**arguments)
        for name in HOOKS:
            setattr(cls, name, surrounded(cls, name))

    def sparsify(
        self,
        network: str = "",
        penalties: Sequence[Penalty | Mapping[str, Any]] = (),
        *,
        example_input: ExampleInput = None,
        input_shape: Sequence[int] | None = None,
        seed_batches: bool = True,
    ) -> None:
        """Choose the network that becomes sparse, and the penalties on its groups.

        Args:
            network: qualified name of a submodule, such as ``"backbone"`` or ``"model.encoder"``;
                ``""`` takes the module itself with all of its layers.
            penalties: mappings such as ``{kind: filter, layers: "conv*", strength: 1e-3}``, or
                penalty objects; none, to prune and compact without penalties. Layers are named
                as in the network.
            example_input: input of the network, as :func:`~ssl_lightning.make_plan` takes it;
                needed for coupled groups, compaction and ``macs/left``. By default zeros of
                ``input_shape``, or, for the module itself, its ``example_input_array``.
            input_shape: shape of one example, such as ``(3, 224, 224)``, instead.
            seed_batches: whether to seed torch's random generators at each batch (see above).

        Raises:
            ValueError: if there is no such submodule, a penalty is not known, or it was called
                before.

        Example:
            >>> class Whole(StructuredSparsity):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.hidden = nn.Linear(4, 8)
            ...         self.out = nn.Linear(8, 2)
            ...         self.sparsify(penalties=[{"kind": "neuron_out", "strength": 1e-3}])
            >>> Whole().sparsity.name
            ''
        """
        where = f"{type(self).__name__}.sparsify"
        if self.sparsity is not None:
            raise ValueError(
                f"{where}: expected one call, got a second one, for {network!r} after "
                f"{self.sparsity.name!r}. Name the module that holds both."
            )
        check_network(self, network, where)
        if example_input is not None and input_shape is not None:
            raise ValueError(
                f"{where}: expected `example_input` or `input_shape`, got both. Leave one out."
            )
        example: Callable[[], ExampleInput] = partial(same, example_input)
        if input_shape is not None:
            example = partial(torch.zeros, 1, *input_shape)
        elif example_input is None and not network:
            example = self._array_as_example
        self.sparsity = Sparsity(self, network, penalties, example, seed_batches)

    def _array_as_example(self) -> ExampleInput:
        given: Any = self.example_input_array
        return Inputs(**given) if isinstance(given, dict) else given

    def prepare_network(self, network: nn.Module) -> None:
        """Prepare a compact network that takes the network's place in training; override it.

        Called before, with what else the network had: a memory format, ``network.compile()``.
        """

    def network_recipe(self) -> Recipe:
        """Return how the network that training started from is made again; for ``SaveCompact``.

        By default of the user's own class, which the reader gives: ``load_compact(folder,
        model=...)``.
        """
        return Recipe(class_path(sparsity_of(self).network), {})

    def check_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that is not of this module, before anything is restored from it."""


def same(value: Any) -> Any:
    """Return the value."""
    return value


def check_network(module: nn.Module, name: str, where: str) -> None:
    """Refuse the name of a network that a module does not have.

    Raises:
        ValueError: with the names that are there.
    """
    try:
        found: Any = module.get_submodule(name)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Module) or type(found).forward is nn.Module.forward:
        known = ", ".join(n for n, _ in module.named_children()) or "none yet"
        raise ValueError(
            f"{where}: expected the qualified name of a submodule that is a network, got {name!r}. "
            f"Submodules: {known}. Call it after they are made."
        )


def sparsity_of(module: Any, where: str = "") -> Sparsity:
    """Return the state of a module that has the mixin and was sparsified.

    Raises:
        MisconfigurationException: saying what to do.
    """
    name, where = type(module).__name__, f"{where}: " if where else ""
    if not isinstance(module, StructuredSparsity):
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
    return module.sparsity


# --- what happens around the hooks of a module ----------------------------------------------------


def surrounded(cls: type[StructuredSparsity], name: str) -> Callable[..., Any]:
    """Return a class's hook, or the one that it inherits, with what :data:`HOOKS` puts around it.

    Of hooks that call each other through ``super()``, only the outermost is surrounded.
    """
    own = vars(cls).get(name)
    before, after = HOOKS[name]

    @wraps(getattr(cls, name))
    def wrapper(module: Any, *args: Any, **kwargs: Any) -> Any:
        hook = getattr(super(cls, module), name) if own is None else partial(own, module)
        running: set[str] = vars(module).setdefault("_hooks_running", set())
        if name in running:
            return hook(*args, **kwargs)
        running.add(name)
        try:
            before(module, *args, **kwargs)
            result = hook(*args, **kwargs)
            after(module, *args, **kwargs)
        finally:
            running.discard(name)
        return result

    return wrapper


def nothing(module: StructuredSparsity, *_: Any, **__: Any) -> None:
    """Do nothing."""


def write_whole_files(module: StructuredSparsity, *_: Any, **__: Any) -> None:
    """Let the trainer write whole checkpoints and read them safely."""
    save_whole_files_(module.trainer.strategy)


def bind_penalties(module: StructuredSparsity, *_: Any, **__: Any) -> None:
    """Bind the penalties before training starts, so that mistakes show early."""
    if module.sparsity is not None and module._trainer is not None and module.trainer.training:
        refuse_sharding(module.trainer.strategy)
        refuse_spawning(module.trainer.strategy)
        assert module.sparsity.regularizer is not None


def begin(module: StructuredSparsity, *_: Any, **__: Any) -> None:
    """Attach the penalties; fix the seed of every step's random numbers."""
    sparsity = sparsity_of(module)
    sparsity.attach_penalties()
    if not getattr(module.trainer, "fast_dev_run", False):
        sparsity.regularizer.check_active(module.trainer.max_epochs)
    if sparsity.run_seed is None:
        sparsity.run_seed = torch.initial_seed()


def begin_batch(module: StructuredSparsity, batch: Any, batch_idx: int, *_: Any, **__: Any) -> None:
    """Attach again where optimizers changed; seed the batch; log the penalties."""
    sparsity = sparsity_of(module)
    sparsity.attach_penalties()
    if sparsity.seed_batches:
        place = (sparsity.run_seed, module.current_epoch, batch_idx, module.global_rank)
        torch.manual_seed(hash(place) & 0x7FFF_FFFF_FFFF_FFFF)
    if sparsity.penalties and logs_now(module.trainer):
        values = sparsity.regularizer.values(sparsity.epoch)
        module.log_dict({f"penalty/{kind}": value for kind, value in values.items()})
        module.log_dict(
            {
                f"strength/{penalty_name(p)}": p.strength * p.schedule(sparsity.epoch)
                for p in sparsity.penalties
            }
        )


def logs_now(trainer: pl.Trainer) -> bool:
    """Whether this is one of the steps at which the trainer's loggers write."""
    every: int = getattr(trainer, "log_every_n_steps", 0)
    return every > 0 and trainer.global_step % every == 0


def log_groups(module: StructuredSparsity, *_: Any, **__: Any) -> None:
    """Log the groups that are not zero, and the multiply-adds that compaction would leave."""
    sparsity = sparsity_of(module)
    figures: dict[str, float] = {
        f"groups/{penalty_name(p)}": 0.0 for p in sparsity.penalties if isinstance(p, GroupLasso)
    }
    sets = sparsity.regularizer.group_sets
    counts = group_counts(sets, dict(sparsity.network.named_parameters()))
    for group_set in sets:
        key = f"groups/{group_set.kind}"
        figures[key] = figures.get(key, 0.0) + counts[group_set.name][0]
    module.log_dict(figures)
    share = sparsity.macs.share(sparsity)
    if share is not None:
        module.log("macs/left", share, prog_bar=True)


def enforce_locks(module: StructuredSparsity, *_: Any, **__: Any) -> None:
    """Averaged weights, swapped in for validation or at the end, have zeros in locked groups."""
    if module.sparsity is not None:
        module.sparsity.enforce_locks_()


def store(module: StructuredSparsity, checkpoint: dict[str, Any], *_: Any, **__: Any) -> None:
    """Store locks, seed and plans; the stored weights have zeros in all locked groups."""
    sparsity = module.sparsity
    if sparsity is not None:
        prefix = f"{sparsity.name}." if sparsity.name else ""
        sparsity.locks.enforce_(checkpoint["state_dict"], prefix)
        checkpoint["ssl_lightning"] = sparsity.state_dict()


def restore(module: StructuredSparsity, checkpoint: dict[str, Any], *_: Any, **__: Any) -> None:
    """Restore plans, locks and seed, after checking that the weights are numbers.

    Raises:
        ValueError: if the checkpoint is damaged or of another network.
    """
    check_state(checkpoint["state_dict"], "the checkpoint")
    module.check_checkpoint(checkpoint)
    if module.sparsity is None:
        if checkpoint.get("ssl_lightning"):
            sparsity_of(module, "The checkpoint has locks and plans")
        return
    plans, origin = module.sparsity.load_state_dict(checkpoint)
    for average in averaged_copies(module._trainer):
        sparsity_of(average).restore_plans(plans, origin)
    complete = module._trainer is not None and module.strict_loading
    check_tensors(checkpoint["state_dict"], module.state_dict(), complete=complete)


HOOKS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    "setup": (write_whole_files, bind_penalties),
    "on_fit_start": (begin, nothing),
    "on_train_batch_start": (begin_batch, nothing),
    "on_train_epoch_end": (log_groups, nothing),
    "on_validation_epoch_start": (enforce_locks, nothing),
    "on_train_end": (enforce_locks, nothing),
    "on_save_checkpoint": (store, nothing),
    "on_load_checkpoint": (restore, nothing),
}
"""Hook of a LightningModule -> what is done before and after it, whatever a class overrides."""


def averaged_copies(trainer: pl.Trainer | None) -> Iterator[StructuredSparsity]:
    """Yield the copies of the module in which Lightning's averaging callbacks keep averages."""
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, (WeightAveraging, StochasticWeightAveraging)):
            average = getattr(callback._average_model, "module", callback._average_model)
            if isinstance(average, StructuredSparsity):
                yield average
