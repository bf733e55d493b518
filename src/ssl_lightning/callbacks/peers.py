"""Budgets that are reached with other libraries' methods, to compare with."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from ssl_lightning.callbacks.budget import Budget
from ssl_lightning.callbacks.during_fit import as_if_begun
from ssl_lightning.callbacks.methods import Window
from ssl_lightning.callbacks.when import example_of
from ssl_lightning.graph import as_inputs, working_copy
from ssl_lightning.groups import GroupSet, zero_groups_
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.measure.peers import (
    CONVOLUTIONS,
    PAT,
    STEPS,
    cut_by_torch_pruning,
    group_norm_pruner,
    require_peer,
)
from ssl_lightning.module import Sparsity, sparsity_of
from ssl_lightning.progress import track
from ssl_lightning.prune import Choice, UnreachableError
from ssl_lightning.suggest import first_line


class PeerBudget(Budget):
    """A budget before which another library acts, between ``start`` and ``end``.

    Args:
        macs: as :class:`Budget`.
        parameters: as :class:`Budget`.
        size: as :class:`Budget`.
        start: epoch (counted from 0) from which the library acts.
        end: epoch at whose start the budget is reached; a third of the run by default.

    Raises:
        ValueError: as :class:`Budget`; at the start of training, for a window of no epochs, or
            several optimizers.
        MisconfigurationException: as :class:`Budget`; in the window, where another callback has
            replaced the network.
    """

    def __init__(
        self,
        macs: float | None = None,
        parameters: float | None = None,
        size: float | None = None,
        start: int = 0,
        end: int | None = None,
    ) -> None:
        super().__init__(macs, parameters, size, start=start, end=end, importance="l2")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a run in which the library would not act, or not once in each step."""
        super().on_fit_start(trainer, pl_module)
        assert self.end is not None
        name = type(self).__name__
        if self.start >= self.end:
            raise ValueError(
                f"{name}: expected epochs to act in, got start={self.start} and end={self.end}. "
                "Give a later `end`."
            )
        if len(trainer.optimizers) != 1:
            raise ValueError(f"{name}: expected one optimizer, got {len(trainer.optimizers)}.")

    def acts(self, trainer: pl.Trainer) -> bool:
        """Whether this is an epoch of the window."""
        assert self.end is not None
        return self.landed is None and self.start <= trainer.current_epoch < self.end

    def refuse_replaced(self, same: bool) -> None:
        """Refuse a network that is not the one that the library holds.

        Raises:
            MisconfigurationException: if it is another.
        """
        if not same:
            raise MisconfigurationException(
                f"{type(self).__name__}: another callback replaced the network in epochs "
                f"{self.start} to {self.end}, and the library would go on with the old layers. "
                f"Let it do so before, or from epoch {self.end} on."
            )


class TorchPruningBudget(PeerBudget):
    """A budget that torch-pruning's GroupNorm pruner leads to and chooses the groups for.

    Between ``start`` and ``end`` its regulariser's gradients are added before each step (and are
    clipped with the others, if that is asked for). At ``end`` it cuts a copy step by step, ranking
    channels over all layers, until the budget is kept; these channels go. All else is as in
    :class:`Budget`. Its own script trains without weight decay meanwhile; here the optimizer's
    goes on.

    Args:
        strength: of the regulariser, its ``reg``; by default that of its script.
        settings: of :class:`PeerBudget`.

    Raises:
        ValueError: as :class:`PeerBudget`; without the extra ``peers``; at the start of training
            or of epoch ``end``, if torch-pruning cannot follow the network, or couples channels
            otherwise.

    Example:
        >>> TorchPruningBudget(macs=0.5, end=2).strength
        0.0005

    Reference:
        Fang et al., DepGraph: Towards Any Structural Pruning, 2023.
    """

    def __init__(self, strength: float = 5e-4, **settings: Any) -> None:
        require_peer("TorchPruningBudget", "torch_pruning")
        super().__init__(**settings)
        self.strength = strength
        self._pruner: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a network that torch-pruning cannot follow."""
        self._pruner = None
        super().on_fit_start(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Add the regulariser's gradients, in the window."""
        if not self.acts(trainer):
            return
        sparsity = sparsity_of(pl_module, "Budget")
        network = sparsity.network
        if self._pruner is None:
            group_sets = self.window(trainer, sparsity).group_sets
            ignored, example = retained_layers(network, group_sets), only_input(sparsity)
            with in_evaluation(network):
                self._pruner = group_norm_pruner(network, example, ignored, reg=self.strength)
        self.refuse_replaced(self._pruner.model is network)
        self._pruner.regularize(network)

    def choose(self, trainer: pl.Trainer, sparsity: Sparsity) -> Choice:
        """Return which groups torch-pruning removes, the same in all processes.

        Raises:
            ValueError: if it cannot follow the network, or couples channels otherwise.
            UnreachableError: if all that it removes does not keep the budget.
        """
        window, example = self.window(trainer, sparsity), only_input(sparsity)
        ignored = retained_layers(sparsity.network, window.group_sets)
        with as_if_begun(sparsity.network, sparsity.locks):
            network = working_copy(sparsity.network).eval()
        try:
            found = cut_by_torch_pruning(working_copy(network), example, ignored)
            steps = list(track(found, "torch-pruning, steps", STEPS + 1))
        except Exception as error:
            raise ValueError(
                f"torch-pruning cannot follow {type(network).__name__}: {first_line(error)}"
            ) from error
        return window.agreed(first_within(window, network, steps))


def first_within(
    window: Window, network: nn.Module, steps: Sequence[Mapping[str, set[int]]]
) -> Choice:
    """Return the groups that are gone after the first step that keeps a budget.

    Args:
        window: with the budget and the groups.
        network: a copy, whose groups are zeroed.
        steps: weight -> which of its outputs are gone, more in each step.

    Raises:
        ValueError: as :func:`masks_of`.
        UnreachableError: if the last step does not keep it.
    """
    costs, before = window.costs, copy.deepcopy(network.state_dict())

    def choice(step: int) -> Choice:
        masks = masks_of(window.group_sets, steps[step])
        network.load_state_dict(before)
        for group_set, mask in zip(window.group_sets, masks, strict=True):
            zero_groups_(group_set, mask, named_tensors(network))
        found = window.form.ask(network, costs.of)
        return Choice(masks, found, costs.shares(found))

    step = bisect_left(range(len(steps)), True, key=lambda s: costs.worst(choice(s).costs) <= 1)
    if step == len(steps):
        raise UnreachableError(
            f"Budget: torch-pruning does not reach {', '.join(map(str, costs.targets))}, with all "
            "that it removes gone. Give a larger budget."
        )
    return choice(step)


class PATBudget(PeerBudget):
    """A budget before which torchao's PAT shrinks filters and neurons, each for itself.

    From ``start`` to ``end`` the steps are those of its ``PruneOptimizer`` with a group lasso. PAT
    has no budget, and no groups over several layers: at ``end``, coupled channels of the smallest
    norms go, as many as the budget asks for. What other callbacks write to the weights meanwhile is
    lost in the next step, which begins with weights that PAT holds.

    Args:
        strength: of the group lasso, PAT's ``reg_lambda``.
        settings: of :class:`PeerBudget`.

    Raises:
        ValueError: as :class:`PeerBudget`; without the extra ``peers``; at the start of training,
            for several rates.

    Example:
        >>> PATBudget(macs=0.5, end=2, strength=1e-4).strength
        0.0001

    Reference:
        torchao.prototype.pat.
    """

    def __init__(self, strength: float = 1e-4, **settings: Any) -> None:
        require_peer("PATBudget", "torchao")
        super().__init__(**settings)
        self.strength = strength
        self._pat: PAT | None = None
        self._restored: dict[str, Any] | None = None

    def begin_anew(self) -> None:
        """Forget another module's run."""
        super().begin_anew()
        self._pat = self._restored = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wrap the optimizer, which has to have one rate."""
        super().on_fit_start(trainer, pl_module)
        if self.landed is not None:
            return
        (optimizer,) = trainer.optimizers
        rates = sorted({group["lr"] for group in optimizer.param_groups})
        if len(rates) > 1:
            raise ValueError(f"PATBudget: expected one rate for all parameters, got {rates}.")
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        sparsity = sparsity_of(pl_module, "Budget")
        parameters = sparsity.parameters()
        names = writing(self.window(trainer, sparsity).group_sets)
        weights = {name: parameters[name] for name in names if id(parameters[name]) in trained}
        self._pat = PAT(optimizer, weights, self.strength)
        if self._restored is not None:
            self._pat.load_state_dict(self._restored)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let PAT act in the window, and no more after it."""
        if self._pat is not None and self.acts(trainer):
            parameters = sparsity_of(pl_module, "Budget").parameters()
            held = self._pat.weights.items()
            self.refuse_replaced(all(parameters.get(name) is weight for name, weight in held))
            self._pat.begin()
        elif self._pat is not None:
            self._pat.end()
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

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


PEERS: tuple[type[PeerBudget], ...] = (TorchPruningBudget, PATBudget)


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
