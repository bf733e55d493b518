"""DepthCollapse: a residual block whose branch became zero is not computed any more."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from ssl_lightning.callbacks.when import EpochStartCallback, Occasions, example_of
from ssl_lightning.compaction.modules import zero_like_layer
from ssl_lightning.graph import ResidualBranch, residual_branches, trace
from ssl_lightning.groups import resolve_groups
from ssl_lightning.module import Sparsity, sparsity_of


class DepthCollapse(EpochStartCallback):
    """Collapse residual blocks whose branch is zero: they become their shortcut.

    A branch whose function no longer depends on its input, because the weights of one of its
    layers are all zero, still adds the shift of its last batch norm. At the start of chosen
    epochs this callback zeroes such a branch as a whole, locks it there, and stops computing it:
    its layers return zeros at once. Keys and shapes of the state dict stay as they are; ``compact``
    removes the branch for good.

    Args:
        start: first epoch (counted from 0) at whose start to look for zero branches.
        every_n_epochs: look again every so many epochs; 0 looks once.

    Raises:
        ValueError: for a negative occasion, a start after the last epoch, or a network without
            residual branches.

    Reference:
        Wen et al., 2016, section 3.1, "depth-wise".

    Example:
        >>> DepthCollapse(start=10).occasions.at(11)
        True
    """

    def __init__(self, start: int = 0, every_n_epochs: int = 1) -> None:
        self.occasions = Occasions("DepthCollapse", start, every_n_epochs)
        self.collapsed: list[str] = []
        self._branches: list[ResidualBranch] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the last run; one that is resumed restores which branches were collapsed."""
        if stage == "fit":
            self.collapsed, self._branches = [], None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute the branches of another checkpoint, in which they are not zero."""
        if trainer.state.fn != TrainerFn.FITTING:
            compute_again_(sparsity_of(pl_module, type(self).__name__).network)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute the branches of another checkpoint, in which they are not zero."""
        compute_again_(sparsity_of(pl_module, type(self).__name__).network)

    on_predict_start = on_test_start

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the branches; on a resumed run, collapse again those that were."""
        sparsity = sparsity_of(pl_module, type(self).__name__)
        self.occasions.check(trainer)
        self.look_again(sparsity)

    def look_again(self, sparsity: Sparsity) -> None:
        """Find the branches of a backbone that is another now, and skip the collapsed ones."""
        self._branches = None
        compute_again_(sparsity.network, always=True)
        for branch in self.branches(sparsity):
            if self.is_collapsed(branch) and has_zero_layer(sparsity.network, branch):
                skip_branch(sparsity.network, branch)

    def is_collapsed(self, branch: ResidualBranch) -> bool:
        """Whether a branch was collapsed before."""
        return set(branch.weighted) <= set(self.collapsed)

    def branches(self, sparsity: Sparsity) -> list[ResidualBranch]:
        """Return the residual branches of the backbone (traced once, and after a compaction)."""
        if self._branches is None:
            example = example_of(sparsity, "DepthCollapse")
            self._branches = residual_branches(trace(sparsity.network, example))
        if not self._branches and not sparsity.plans:
            name = type(sparsity.network).__name__
            raise ValueError(
                f"DepthCollapse: {name} has no residual additions, so no "
                "block can be collapsed. Remove the callback."
            )
        return self._branches

    def at_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collapse the branches that became zero."""
        if not self.occasions.at(trainer.current_epoch):
            return
        sparsity = sparsity_of(pl_module, type(self).__name__)
        for branch in self.branches(sparsity):
            if not self.is_collapsed(branch) and has_zero_layer(sparsity.network, branch):
                self.collapsed += [name for name in branch.weighted if name not in self.collapsed]
                lock_branch_(sparsity, branch)
                skip_branch(sparsity.network, branch)
                rank_zero_info(
                    f"DepthCollapse: {', '.join(branch.weighted)} removed in epoch "
                    f"{trainer.current_epoch}."
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the layers of collapsed branches."""
        return {"collapsed": list(self.collapsed)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the layers of collapsed branches."""
        self.collapsed = list(state_dict["collapsed"])


def has_zero_layer(backbone: nn.Module, branch: ResidualBranch) -> bool:
    """Whether some layer of the branch has only zero weights."""
    weights = [backbone.get_submodule(name).weight for name in branch.weighted]
    return any(isinstance(w, Tensor) and not bool(w.any()) for w in weights)


def lock_branch_(sparsity: Sparsity, branch: ResidualBranch) -> None:
    """Zero and lock everything that the branch's layers and their norms hold."""
    selector = {"kind": "depth", "layers": list(branch.weighted)}
    for group_set in resolve_groups(sparsity.network, [selector], sparsity.example_input()):
        sparsity.prune_groups_(group_set, torch.ones(1, dtype=torch.bool), lock=True)


def skip_branch(backbone: nn.Module, branch: ResidualBranch) -> None:
    """Let the modules of a zero branch return zeros without computing.

    The first of them adds 0 times one element of each of the branch's parameters, so that all of
    them still get a (zero) gradient, as distributed training expects.
    """
    layers = [m for name in branch.modules if is_skipped(m := backbone.get_submodule(name))]
    parameters = [p for layer in layers for p in layer.parameters(recurse=False)]
    for layer in layers:
        layer.forward = Skip(layer, parameters)
        parameters = []
    torch.compiler.reset()


def compute_again_(backbone: nn.Module, *, always: bool = False) -> None:
    """Let modules of branches that are not zero compute again; ``always``: those of zero ones too.

    A network that was trained with collapsed branches may be given other weights.
    """
    skipped = [m for m in backbone.modules() if isinstance(m.__dict__.get("forward"), Skip)]
    parameters = (p for layer in skipped for p in layer.parameters(recurse=False))
    if skipped and (always or any(bool(p.any()) for p in parameters)):
        for layer in skipped:
            del layer.forward
        torch.compiler.reset()


def is_skipped(module: nn.Module) -> bool:
    """Whether a module of a zero branch returns zeros without computing."""
    return zero_like_layer(module) is not None


class Skip:
    """The ``forward`` of a layer in a collapsed branch: zeros of the right shape."""

    equivalent = (
        True  # to the layer's own forward: the analysis of the graph may see the layer itself
    )

    def __init__(self, layer: nn.Module, parameters: list[nn.Parameter]) -> None:
        zero = zero_like_layer(layer)
        assert zero is not None
        self.zero = zero
        self.parameters = parameters

    def __call__(self, x: Tensor) -> Tensor:
        """Return zeros; all parameters of the branch get zero gradients through it."""
        zeros: Tensor = self.zero(x)
        if self.parameters and torch.is_grad_enabled():
            zeros = zeros + sum(p.reshape(-1)[0] for p in self.parameters) * 0.0
        return zeros
