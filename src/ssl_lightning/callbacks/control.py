"""PruneLike: a control for trained sparsity, with as many groups chosen by a simple rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from ssl_lightning.callbacks.when import Occasions, example_of
from ssl_lightning.compaction import expand, load_compact
from ssl_lightning.compaction.store import RECIPE, Recipe, is_own_class
from ssl_lightning.module import Sparsity, sparsity_of
from ssl_lightning.prune import IMPORTANCES, prune_like_
from ssl_lightning.suggest import pick
from ssl_lightning.zoo.loading import PREFIX, load_with_recipe


class PruneLike(Callback):
    """At the start of an epoch, leave as many groups as a compact network has, locked.

    Trained densely before and fine-tuned after, this is plain magnitude pruning, or with
    ``importance: random`` the control in which any groups stay.

    Args:
        like: ``zoo:<name>``, or the folder of a compact network that ``SaveCompact`` or
            ``ssl-lightning compact`` wrote.
        start: epoch (counted from 0) at whose start to prune.
        groups: what is chosen, as mappings such as ``{kind: shape, layers: "conv*"}``, one after
            the other; default: the coupled channels of all layers.
        importance: ``"l2"`` keeps the groups of the largest norm, ``"l1"`` those of the largest sum
            of absolute values, ``"random"`` any.

    Raises:
        ValueError: for an unknown importance; or at the start of training, for a start after the
            last epoch, or a compact network of another backbone.
        FileNotFoundError: at the start of training, if there is no such compact network.

    Example:
        >>> PruneLike("zoo:lenet_mnist_shape", start=5, importance="random").occasions.at(5)
        True
    """

    def __init__(
        self,
        like: str,
        start: int,
        groups: list[dict[str, Any]] | None = None,
        importance: str = "l2",
    ) -> None:
        pick("importance", importance, IMPORTANCES)
        self.like = like
        self.occasions = Occasions("PruneLike", start)
        self.groups = groups or [{"kind": "coupled"}]
        self.importance = importance

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the compact network, so that mistakes show before training."""
        self.occasions.check(trainer)
        sparsity = sparsity_of(pl_module, type(self).__name__)
        if not sparsity.plans:  # a run that is resumed after a compaction has pruned already
            self.masked(sparsity)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prune, if this is the epoch to do so."""
        if not self.occasions.at(trainer.current_epoch):
            return
        sparsity = sparsity_of(pl_module, type(self).__name__)
        like, example = self.masked(sparsity), example_of(sparsity, "PruneLike")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((sparsity.run_seed, trainer.current_epoch)) & 0x7FFF_FFFF)
            masks = prune_like_(sparsity.network, example, like, self.groups, self.importance)
        for group_set, mask in masks:
            sparsity.prune_groups_(group_set, mask, lock=True)
        zeroed = sum(int(mask.sum()) for _, mask in masks)
        rank_zero_info(f"PruneLike: {zeroed} groups zeroed in epoch {trainer.current_epoch}.")

    def masked(self, sparsity: Sparsity) -> nn.Module:
        """Return the compact network with its weights in the dense network, all others zero.

        Raises:
            ValueError: if it was made from another network than the one that is trained.
        """
        small, recipe = read_compact(self.like, sparsity.network)
        mine = {k: v.shape for k, v in sparsity.network.state_dict().items()}
        dense = recipe.create_dense(sparsity.network if is_own_class(recipe.backbone) else None)
        if mine != {k: v.shape for k, v in dense.state_dict().items()}:
            raise ValueError(
                f"PruneLike: {self.like} was made from {recipe.backbone} {recipe.arguments or ''}, "
                "which has other layers than the backbone that is trained. Train that backbone."
            )
        return expand(small, dense, recipe.plans)


def read_compact(like: str, network: nn.Module) -> tuple[nn.Module, Recipe]:
    """Return the compact network of a zoo entry or a folder, and how it is made.

    Args:
        like: ``zoo:<name>``, or the folder.
        network: what is trained, from which a network of the user's own is made.
    """
    if like.startswith(PREFIX):
        return load_with_recipe(like.removeprefix(PREFIX))
    path = Path(like) / RECIPE
    if not path.is_file():
        load_compact(like)  # which says what is missing
    recipe = Recipe.from_json(path.read_text(), f"{like}/{RECIPE}")
    own = network if is_own_class(recipe.backbone) else None
    return load_compact(like, model=own), recipe
