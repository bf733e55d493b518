"""torch-pruning and torchao's PAT, as their users call them in training: the extra ``peers``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_lightning.suggest import require

TORCH_PRUNING = "torch-pruning"
STEPS = 400
"""In which torch-pruning's script cuts a network."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def require_peer(where: str, package: str) -> None:
    """Make sure that a package of the extra ``peers`` is installed.

    Raises:
        ValueError: if it is not.
    """
    require(where, [package], "peers", "or leave it out")


def torch_pruning_regularizer(
    model: nn.Module, example_input: Tensor, num_classes: int
) -> Callable[[], None]:
    """Return what torch-pruning's users call after each backward pass: ``pruner.regularize``.

    The layers that write the classes are left out.

    Args:
        model: is put into evaluation mode, as the pruner does it.
        example_input: of the model, on its device.
        num_classes: number of classes; layers with so many outputs are ignored.

    Raises:
        Exception: what torch-pruning raises where it cannot follow the network.
    """
    last = [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == num_classes)
        or (isinstance(module, CONVOLUTIONS) and module.out_channels == num_classes)
    ]
    pruner = group_norm_pruner(model, example_input, last)
    return lambda: pruner.regularize(model)


def group_norm_pruner(
    model: nn.Module, example_input: Tensor, ignored: Sequence[str], **settings: Any
) -> Any:
    """Return torch-pruning's pruner for sparse training, made as in its own script.

    Groups of channels by their norms in units of the largest of their layers. Layers of a single
    channel are left out: its regulariser divides by zero there.

    Args:
        model: is put into evaluation mode, as the pruner does it.
        example_input: of the model, on its device.
        ignored: names of layers whose outputs are retained.
        settings: further arguments of ``GroupNormPruner``, such as ``reg``, its strength.

    Raises:
        ValueError: if it finds no groups.
        Exception: what torch-pruning raises where it cannot follow the network.

    Reference:
        Fang et al., DepGraph: Towards Any Structural Pruning, 2023.
    """
    import torch_pruning

    pruner = torch_pruning.pruner.GroupNormPruner(
        model,
        example_input,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
        ignored_layers=[model.get_submodule(name) for name in ignored],
        **settings,
    )
    pruner.update_regularizer()
    pruner._groups = [group for group in pruner._groups if len(group[0].idxs) > 1]
    if not pruner._groups:
        raise ValueError("it finds no groups of channels")
    return pruner


def cut_by_torch_pruning(
    model: nn.Module, example_input: Tensor, ignored: Sequence[str]
) -> Iterator[dict[str, set[int]]]:
    """Let torch-pruning cut a network step by step, as its own script does.

    In each of 400 steps it ranks the channels of all layers anew (``global_pruning``).

    Args:
        model: the network, which is cut, and put into evaluation mode.
        example_input: of the model, on its device.
        ignored: names of layers whose outputs are retained.

    Yields:
        At first and after each step: weight -> which of its outputs are gone, as they were numbered
        at first.

    Raises:
        Exception: as :func:`group_norm_pruner`.
    """
    from torch_pruning.pruner import function

    writing = (
        function.prune_conv_out_channels,
        function.prune_depthwise_conv_out_channels,
        function.prune_linear_out_channels,
    )
    settings = {"pruning_ratio": 1.0, "iterative_steps": STEPS, "global_pruning": True}
    pruner = group_norm_pruner(model, example_input, ignored, **settings)
    names = {module: f"{name}.weight" for name, module in model.named_modules()}
    left: dict[str, list[int]] = {}
    gone: dict[str, set[int]] = defaultdict(set)
    yield {}
    for _ in range(STEPS):
        for group in pruner.step(interactive=True):
            for dependency, numbers in group:
                if dependency.handler in writing:
                    layer = dependency.target.module
                    name, now = names[layer], set(numbers)
                    here = left.setdefault(name, list(range(len(layer.weight))))
                    gone[name] |= {here[number] for number in now}
                    left[name] = [n for place, n in enumerate(here) if place not in now]
            group.prune()
        yield {name: set(numbers) for name, numbers in gone.items()}


class PAT:
    """torchao's PAT around an optimizer: its group lasso on filters and neurons.

    From :meth:`begin` to :meth:`end`, each step of the optimizer is one of ``PruneOptimizer``: the
    step is made from the weights as they were before they were shrunk, and these are shrunk by the
    sum of all rates so far. A closure is called first, with the shrunk weights.

    Args:
        optimizer: the optimizer.
        weights: name -> weights whose rows, along their first dimension, are groups.
        strength: of the group lasso, PAT's ``reg_lambda``; each group's is multiplied by the root
            of its size.

    Reference:
        torchao.prototype.pat.
    """

    def __init__(
        self, optimizer: Optimizer, weights: Mapping[str, Tensor], strength: float
    ) -> None:
        from torchao.prototype.pat.optim import PruneOptimizer

        self.optimizer, self.weights = optimizer, dict(weights)
        group = {"params": list(weights.values()), "lr": 0.0, "reg_lambda": strength}
        group |= {"group_type": "Dim0Grouper", "prox_type": "ProxGroupLasso"}
        self.param_groups: list[dict[str, Any]] = [group]
        self.state: dict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.pruner = PruneOptimizer(self)
        self._inner: Callable[..., Any] | None = None

    def begin(self) -> None:
        """Act in the optimizer's steps from now on."""
        if self._inner is not None:
            return
        self._inner = self.optimizer.step

        @wraps(self._inner)  # with the mark of a scheduler, which expects it there
        def step(closure: Callable[[], Any] | None = None) -> Any:
            return self.pruned_step(closure)

        self.optimizer.step = step  # type: ignore[method-assign]

    def end(self) -> None:
        """Act no more; the weights are those that were shrunk."""
        if self._inner is not None:
            self.optimizer.step, self._inner = self._inner, None  # type: ignore[method-assign]

    def pruned_step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step, shrunk."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (rate,) = {group["lr"] for group in self.optimizer.param_groups}
        self.param_groups[0]["lr"] = rate
        self.pruner.step()
        return loss

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make the optimizer's own step: what ``PruneOptimizer`` calls."""
        assert self._inner is not None
        return self._inner(closure)

    def state_dict(self) -> dict[str, Any]:
        """Return weights as they were before they were shrunk, and the sum of rates so far."""
        (group,) = self.param_groups
        latent = {n: self.state[p]["latent"] for n, p in self.weights.items() if p in self.state}
        return {"latent": latent, "gamma": group["gamma"], "num_steps": group["num_steps"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.param_groups[0] |= {"gamma": state["gamma"], "num_steps": state["num_steps"]}
        for name, latent in state["latent"].items():
            self.state[self.weights[name]]["latent"] = latent.clone()
