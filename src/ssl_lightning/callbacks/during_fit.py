"""CompactDuringFit: the network becomes smaller in the middle of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ssl_lightning.callbacks.depth import DepthCollapse
from ssl_lightning.callbacks.other_uses import refuse_other_uses
from ssl_lightning.callbacks.when import EpochStartCallback, check_reached, example_of
from ssl_lightning.compaction import (
    Plan,
    carried_out,
    check_sliceable,
    compact,
    make_plan,
    slice_optimizer_,
)
from ssl_lightning.graph import trace
from ssl_lightning.locks import GroupLocks
from ssl_lightning.measure import num_parameters
from ssl_lightning.module import Sparsity, averaged_copies, sparsity_of


class CompactDuringFit(EpochStartCallback):
    """At the start of chosen epochs, replace the backbone by its compact network and train on.

    What is zero by then is removed, so that the remaining epochs are faster. (What is constant but
    not zero is retained: in train mode, batch norms would give another constant.) Training
    continues as if nothing had happened: optimizer state is sliced as the weights are,
    learning-rate schedulers and gradient scalers keep what they hold, averaged weights
    (``WeightAveraging`` and its kin) shrink too, locked groups remain locked, and penalties act
    with the strengths that they had. What is removed cannot come back. Checkpoints taken afterwards
    hold the plan; ``fit --ckpt_path``, ``test``, ``compact`` and ``benchmark`` read them. Under
    DDP, all processes carry out the first one's plan.

    Callbacks that zero groups at the start of the same epoch (``ThresholdPruning``,
    ``DepthCollapse``) go before this one in the list of callbacks.

    Args:
        at: epoch (counted from 0) at whose start to compact, or several.

    Raises:
        ValueError: for no epoch or a negative one; at the start of training, for an epoch after
            the last, a backbone that cannot be traced or whose input shape is not known, or an
            optimizer whose state cannot be sliced.
        MisconfigurationException: at the start of training, for a strategy other than one device
            or DDP, a module that was given compiled, or one that uses parts of the network apart
            from it.

    Example:
        >>> CompactDuringFit(at=[20, 40]).epochs
        (20, 40)
    """

    def __init__(self, at: int | list[int]) -> None:
        self.epochs = tuple(sorted({at} if isinstance(at, int) else set(at)))
        if not self.epochs or self.epochs[0] < 0:
            raise ValueError(
                f"CompactDuringFit: expected `at` to be an epoch, or a list of epochs, counted "
                f"from 0, got {at}."
            )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what would hold the old parameters: other strategies, a compiled module."""
        if stage == "fit":
            refuse_strategies(trainer.strategy, "CompactDuringFit")
            refuse_compiled(pl_module, "CompactDuringFit")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a run in which compaction would fail, or never happen."""
        sparsity = sparsity_of(pl_module, type(self).__name__)
        check_reached(trainer, "CompactDuringFit", "at", self.epochs[-1])
        example = example_of(sparsity, "CompactDuringFit")
        for optimizer in trainer.optimizers:
            check_sliceable(optimizer)
        refuse_other_uses(sparsity)
        trace(sparsity.network, example)

    def at_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compact, if this is one of the epochs to do so and something can go."""
        if trainer.current_epoch not in self.epochs:
            return
        sparsity = sparsity_of(pl_module, type(self).__name__)
        plan = plan_in_training(trainer, sparsity, "CompactDuringFit")
        before = num_parameters(sparsity.network)
        if plan.removed():
            compact_in_place_(trainer, sparsity, plan)
        share = sparsity.macs_left()
        macs = "" if share is None else f", {share:.1f} % of the dense network's MACs left,"
        after = num_parameters(sparsity.network)
        rank_zero_info(
            f"CompactDuringFit: {before:,} -> {after:,} parameters{macs} "
            f"in epoch {trainer.current_epoch}."
        )


def compact_in_place_(trainer: pl.Trainer, sparsity: Sparsity, plan: Plan) -> None:
    """Carry a plan out on everything that a running training holds."""
    old = sparsity.network
    alone = trainer.world_size == 1  # else the plan is of the first process
    replace_in_place_(
        trainer, sparsity, plan, carried_out(old, plan) if alone else compact(old, plan)
    )


def replace_in_place_(
    trainer: pl.Trainer, sparsity: Sparsity, plan: Plan, small: nn.Module
) -> None:
    """Put a network in the place of the one that is trained, in everything that training holds.

    Averages of low rank factors begin anew.
    """
    old = sparsity.network
    sparsity.adopt_(plan, small)
    for optimizer in trainer.optimizers:
        slice_optimizer_(optimizer, old, plan, small)
    for average in averaged_copies(trainer):
        sparsity_of(average).follow_(plan)
        for layer in plan.factors:
            parts = sparsity_of(average).network.get_submodule(layer)
            parts.load_state_dict(small.get_submodule(layer).state_dict())
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, DepthCollapse):
            callback.look_again(sparsity)
    if isinstance(trainer.strategy.model, DistributedDataParallel):
        assert isinstance(trainer.strategy, DDPStrategy)
        wrap_again(trainer.strategy, sparsity.module)


def plan_in_training(trainer: pl.Trainer, sparsity: Sparsity, where: str) -> Plan:
    """Return what can be removed of a network that is trained on, the same on all processes."""
    with as_if_begun(sparsity.network, sparsity.locks):
        plan = make_plan(sparsity.network, example_of(sparsity, where), constants=False)
    return common_plan(trainer.strategy, plan)


def common_plan(strategy: Strategy, plan: Plan) -> Plan:
    """Return the plan of the first process: statistics of batch norms differ between processes."""
    return Plan.from_json(strategy.broadcast(plan.to_json()))


@contextmanager
def as_if_begun(network: nn.Module, locks: GroupLocks) -> Iterator[None]:
    """Let the scales of batch norms that begin at zero be 1, but for those that are locked.

    Residual networks may begin so, each branch at zero (Goyal et al., Accurate, large minibatch
    SGD, 2017; timm's ResNets). Such zeros are not what training has found, and it will move them.

    Example:
        >>> norm = nn.BatchNorm2d(2)
        >>> _ = nn.init.zeros_(norm.weight)
        >>> with as_if_begun(norm, GroupLocks()):
        ...     print(norm.weight.tolist())
        [1.0, 1.0]
        >>> norm.weight.tolist()
        [0.0, 0.0]
    """
    norms = (module for module in network.modules() if isinstance(module, _BatchNorm))
    begun = [norm.weight for norm in norms if norm.affine and is_unused(norm)]
    with torch.no_grad():
        for weight in begun:
            weight.fill_(1.0)
        if begun:
            locks.enforce_(dict(network.named_parameters(remove_duplicate=False)))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight in begun:
                weight.zero_()


def is_unused(norm: _BatchNorm) -> bool:
    """Whether a batch norm has seen no batch, and all of its scales are zero."""
    seen = norm.num_batches_tracked
    return seen is not None and int(seen) == 0 and not bool(norm.weight.any())


def wrap_again(strategy: DDPStrategy, module: pl.LightningModule) -> None:
    """Let DDP reduce the gradients of the new parameters; weights become those of process 0."""
    strategy.model = module
    strategy.configure_ddp()


def refuse_strategies(strategy: Strategy, where: str) -> None:
    """Refuse strategies that go on with the parameters that they saw first.

    Raises:
        MisconfigurationException: naming the way out.
    """
    if not isinstance(strategy, SingleDeviceStrategy) and type(strategy) is not DDPStrategy:
        raise MisconfigurationException(
            f"{where} needs one device or DDP, got {type(strategy).__name__}, which keeps "
            "the parameters that it saw at the start of training. Train with `strategy: "
            "ddp` or `devices: 1`, or compact after training: `ssl-lightning compact CHECKPOINT`."
        )


def refuse_compiled(module: nn.Module, where: str) -> None:
    """Refuse a module, or a backbone, that went through ``torch.compile`` already.

    Raises:
        MisconfigurationException: naming the way out.
    """
    wrapped = any("_orig_mod" in part._modules for part in module.modules())
    if wrapped or getattr(module, "_compiler_ctx", None) is not None:
        raise MisconfigurationException(
            f"{where}: the module, or a part of its backbone, was compiled by "
            "`torch.compile`, which would go on with the old layers. Pass the plain module and "
            "compile in `prepare_network` (SSLLightningModule: `compile: true`)."
        )
