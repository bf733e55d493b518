"""Budgets that are reached with other libraries' methods, to compare with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ssl_lightning.callbacks.budget import Budget
from ssl_lightning.callbacks.methods import Window
from ssl_lightning.callbacks.when import example_of
from ssl_lightning.graph import as_inputs, working_copy
from ssl_lightning.groups import GroupSet, zero_groups_
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.measure.peers import (
    CONVOLUTIONS,
    PAT,
    chosen_by_torch_pruning,
    group_norm_pruner,
    require_peer,
)
from ssl_lightning.module import Sparsity, sparsity_of
from ssl_lightning.prune import Choice, UnreachableError
from ssl_lightning.suggest import first_line

HALVINGS = 12
"""Of the interval of ratios of channels, in the search for the one that keeps a budget."""


class TorchPruningBudget(Budget):
    """A budget that torch-pruning's GroupNorm pruner leads to and chooses the groups for.

    Between ``start`` and ``end`` its regulariser acts before each step, with its own strength. At
    ``end`` it ranks channels over all layers; the smallest share of them that keeps the budget
    goes. All else is as in :class:`Budget`.

    Args:
        settings: of :class:`Budget`, but ``method``, ``importance`` and ``multiple``.

    Raises:
        ValueError: as :class:`Budget`; without the extra ``peers``; and at the start of training,
            if torch-pruning cannot follow the network, or couples channels that are not coupled.

    Example:
        >>> TorchPruningBudget(macs=0.5, end=2).importance
        'l2'

    Reference:
        Fang et al., DepGraph: Towards Any Structural Pruning, 2023.
    """

    def __init__(self, **settings: Any) -> None:
        require_peer("TorchPruningBudget", "torch_pruning")
        super().__init__(**settings, importance="l2")
        self._pruner: Any = None

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Add the regulariser's gradients, in the window."""
        sparsity = sparsity_of(pl_module, "Budget")
        assert self.end is not None
        if self.landed is not None or not self.start <= trainer.current_epoch < self.end:
            return
        network = sparsity.network
        if self._pruner is None or self._pruner.model is not network:
            window = self.window(trainer, sparsity)
            with in_evaluation(network):
                self._pruner = group_norm_pruner(
                    network, only_input(sparsity), retained_layers(network, window.group_sets)
                )
        self._pruner.regularize(network)

    def choose(self, trainer: pl.Trainer, sparsity: Sparsity) -> Choice:
        """Return which groups torch-pruning removes, the same in all processes.

        Raises:
            UnreachableError: if that does not keep the budget even with nearly all channels gone.
        """
        window = self.window(trainer, sparsity)
        network, example = working_copy(sparsity.network), only_input(sparsity)
        retained = retained_layers(network, window.group_sets)

        def chosen(ratio: float) -> list[Tensor]:
            try:
                outputs = chosen_by_torch_pruning(network, example, retained, ratio)
            except Exception as error:
                raise ValueError(
                    f"torch-pruning cannot follow {type(network).__name__}: {first_line(error)}"
                ) from error
            return masks_of(window.group_sets, outputs)

        found = smallest(window, chosen)
        return window.agreed(found)


class PATBudget(Budget):
    """A budget before which torchao's PAT shrinks filters and neurons, each for itself.

    From ``start`` to ``end`` the steps are those of its ``PruneOptimizer`` with a group lasso. PAT
    has no budget, and no groups over several layers: at ``end``, coupled channels of the smallest
    norms go, as many as the budget asks for.

    Args:
        strength: of the group lasso, PAT's ``reg_lambda``.
        settings: of :class:`Budget`, but ``importance``.

    Raises:
        ValueError: as :class:`Budget`; without the extra ``peers``; and at the start of training,
            for several optimizers or several rates.

    Example:
        >>> PATBudget(macs=0.5, end=2, strength=1e-4).strength
        0.0001

    Reference:
        torchao.prototype.pat.
    """

    def __init__(self, strength: float = 1e-4, **settings: Any) -> None:
        require_peer("PATBudget", "torchao")
        super().__init__(**settings, importance="l2")
        self.strength = strength
        self._pat: PAT | None = None
        self._restored: dict[str, Any] | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wrap the optimizer, which has to be one of one rate."""
        super().on_fit_start(trainer, pl_module)
        rates = {group["lr"] for each in trainer.optimizers for group in each.param_groups}
        if len(trainer.optimizers) != 1 or len(rates) != 1:
            raise ValueError(
                f"PATBudget: expected one optimizer of one rate, got {len(trainer.optimizers)} "
                f"and rates {sorted(rates)}."
            )
        network = sparsity_of(pl_module, "Budget").network
        parameters = dict(network.named_parameters())
        names = writing(self.window(trainer, sparsity_of(pl_module, "Budget")).group_sets)
        weights = {name: parameters[name] for name in names if parameters[name].requires_grad}
        self._pat = PAT(trainer.optimizers[0], weights, self.strength)
        if self._restored is not None:
            self._pat.load_state_dict(self._restored)

    def at_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let PAT act in the window, and no more after it."""
        assert self.end is not None
        assert self._pat is not None
        if self.start <= trainer.current_epoch < self.end:
            self._pat.begin()
        else:
            self._pat.end()
        super().at_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the optimizer its own step back."""
        if self._pat is not None:
            self._pat.end()
        super().on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values that :meth:`load_state_dict` reads."""
        pat = None if self._pat is None or self.landed is not None else self._pat.state_dict()
        return {**super().state_dict(), "pat": pat}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self._restored = state_dict["pat"]


@contextmanager
def in_evaluation(network: nn.Module) -> Iterator[None]:
    """Restore the modes of modules afterwards."""
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def only_input(sparsity: Sparsity) -> Tensor:
    """Return a network's input, on its device.

    Raises:
        ValueError: if it takes several.
    """
    leaves = as_inputs(example_of(sparsity, "Budget")).leaves()
    if len(leaves) != 1 or not isinstance(leaves[0], Tensor):
        raise ValueError("torch-pruning: expected a network of one tensor, got several inputs.")
    device = next(sparsity.network.parameters()).device
    return leaves[0].to(device)


def retained_layers(network: nn.Module, group_sets: Sequence[GroupSet]) -> list[str]:
    """Return the names of layers none of whose outputs are in a group."""
    names = set(writing(group_sets))
    kinds = (nn.Linear, *CONVOLUTIONS)
    modules = network.named_modules()
    return [name for name, m in modules if isinstance(m, kinds) and f"{name}.weight" not in names]


def writing(group_sets: Sequence[GroupSet]) -> dict[str, list[tuple[int, Tensor]]]:
    """Return weight -> sets that number some of its outputs, and these outputs' numbers."""
    found: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for number, group_set in enumerate(group_sets):
        for member in group_set.members:
            if member.index_dims == (0,) and len(member.shape) > 1:
                positions = member.index or range(member.num_groups)
                found[member.parameter].append((number, torch.tensor(list(positions))))
    return found


def masks_of(group_sets: Sequence[GroupSet], outputs: Mapping[str, set[int]]) -> list[Tensor]:
    """Return which groups hold outputs of layers, one mask per set.

    Args:
        group_sets: coupled groups of channels.
        outputs: weight -> numbers of its outputs.

    Raises:
        ValueError: if an output is in no group, or others of its group are not among the outputs.
    """
    masks = [torch.zeros(s.num_groups, dtype=torch.bool) for s in group_sets]
    places = writing(group_sets)
    for name, numbers in outputs.items():
        for number, positions in places[name]:
            masks[number] |= torch.isin(positions, torch.tensor(sorted(numbers), dtype=torch.long))
    for name, parts in places.items():
        ours = {int(n) for number, positions in parts for n in positions[masks[number]]}
        theirs = outputs.get(name, set())
        if ours != theirs:
            layer = name.removesuffix(".weight")
            raise ValueError(
                f"torch-pruning couples channels otherwise: of {layer} it removes "
                f"{numbered(theirs)}, and with all that belongs to them that would be "
                f"{numbered(ours)}."
            )
    return masks


def numbered(numbers: Collection[int]) -> str:
    """Return numbers in words, the first of many.

    Example:
        >>> numbered({2, 1}), numbered(set()), numbered(range(9))
        ('1, 2', 'none', '0, 1, 2, 3 and 5 more')
    """
    first = ", ".join(map(str, sorted(numbers)[:4])) or "none"
    return first if len(numbers) <= 4 else f"{first} and {len(numbers) - 4} more"


def smallest(window: Window, chosen: Callable[[float], list[Tensor]]) -> Choice:
    """Return the groups of the smallest ratio of channels that keeps the budget.

    Args:
        window: with the budget and the groups.
        chosen: ratio -> which groups go then, one mask per set.

    Raises:
        UnreachableError: if there is none.
    """
    costs, before = window.costs, window.network.state_dict()
    copy = working_copy(window.network)
    low, high = 0.0, 1.0
    found: Choice | None = None
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        masks = chosen(ratio)
        copy.load_state_dict(before)
        for group_set, mask in zip(window.group_sets, masks, strict=True):
            zero_groups_(group_set, mask, named_tensors(copy))
        cost = window.form.ask(copy, costs.of)
        if costs.worst(cost) <= 1:
            high, found = ratio, Choice(masks, cost, costs.shares(cost))
        else:
            low = ratio
    if found is None:
        raise UnreachableError(
            f"torch-pruning does not reach {', '.join(map(str, costs.targets))}, even with "
            f"{high:.0%} of the channels gone. Give a larger budget."
        )
    return found
