"""StructuredSparsity: penalties, locks, compaction and checkpoints for any LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from ssl_lightning.backbones import class_path
from ssl_lightning.compaction.store import Recipe
from ssl_lightning.graph import ExampleInput, Inputs
from ssl_lightning.module.hooks import HOOKS, sparsity_of
from ssl_lightning.module.sparsity import Sparsity
from ssl_lightning.penalties import Penalty


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
    at each training epoch and batch with a function of the run's seed, the epoch, the batch and
    the rank, so that a resumed run draws the numbers that the whole run would have drawn, the
    order of a loader with ``shuffle=True`` among them. This sets torch's
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
                before with another network or penalties (``setup`` is called for each stage).

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
        if self.sparsity is not None:
            there = self.sparsity
            if there.name != network or not there.choose(penalties, example, seed_batches):
                raise ValueError(
                    f"{where}: expected one call, got a second one, for {network!r} after "
                    f"{there.name!r}, which says something else. Name the module that "
                    "holds both, with all penalties."
                )
            return
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
    if "_orig_mod" in getattr(found, "_modules", ()):
        raise ValueError(
            f"{where}: {name!r} was compiled by `torch.compile`, which wraps the network. Name "
            f"what is inside, '{name}._orig_mod'; or, to compact while training, give it uncompiled"
            " and compile it in place (`network.compile()`), here and in `prepare_network`."
        )
    if not isinstance(found, nn.Module) or type(found).forward is nn.Module.forward:
        known = ", ".join(n for n, _ in module.named_children()) or "none yet"
        raise ValueError(
            f"{where}: expected the qualified name of a submodule that is a network, got {name!r}. "
            f"Submodules: {known}. Call it after they are made."
        )


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
