"""Controls for trained sparsity: as many groups as in another network, chosen by a simple rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.compaction import expand, plan_and_compact
from ssl_lightning.compaction.planning import check_finite
from ssl_lightning.graph import ExampleInput
from ssl_lightning.groups import (
    GroupSet,
    Selector,
    group_counts,
    resolve_groups,
    zero_groups_,
)
from ssl_lightning.groups.resolve import named_tensors
from ssl_lightning.prune.importance import IMPORTANCES
from ssl_lightning.suggest import pick

Masks = list[tuple[GroupSet, Tensor]]


@torch.no_grad()
def prune_like_(
    model: nn.Module,
    example_input: ExampleInput,
    like: nn.Module,
    groups: Sequence[Selector | Mapping[str, Any]] = ({"kind": "coupled"},),
    importance: str = "l2",
) -> Masks:
    """Zero the least important groups of each set, down to the numbers of another network.

    A control for trained sparsity: the same numbers of groups, chosen by a simple rule. Selectors
    are worked off one after the other; before each, what nothing reads any more is zeroed too, so
    that columns, say, are chosen among those of the retained channels.

    Args:
        model: to prune in place.
        example_input: its inputs, as :func:`~ssl_lightning.make_plan` takes them, shape such as
            ``(1, C, H, W)``.
        like: network of the same architecture, with zeros.
        groups: selectors as :func:`resolve_groups` takes them.
        importance: ``"l2"``, ``"l1"``, ``"random"`` or ``"uniform"``.

    Returns:
        The group sets with the masks ``(num_groups,)`` of what was zeroed.

    Raises:
        ValueError: if the importance is unknown, a selector matches nothing, weights are not
            finite, or the architectures differ.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> from ssl_lightning.prune import prune_
        >>> net, like = create_backbone("lenet"), create_backbone("lenet")
        >>> _ = prune_(like, torch.zeros(1, 1, 28, 28), fraction=0.5)
        >>> masks = prune_like_(net, torch.zeros(1, 1, 28, 28), like)
        >>> sum(int(mask.sum()) for _, mask in masks)
        285
    """
    score = pick("importance", importance, IMPORTANCES)
    check_finite(model)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, like)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"prune_like_: expected a {type(like).__name__} of the same sizes as the model, "
            f"{type(model).__name__}, got another. Prune the backbone that it was made from."
        )
    parameters, masks = named_tensors(model), Masks()
    for selector in groups:
        clear_dead_(model, example_input)
        group_sets = resolve_groups(model, [selector], example_input)
        counts = group_counts(group_sets, named_tensors(like))
        for group_set in group_sets:
            retained = score(group_set, parameters).topk(counts[group_set.name][0]).indices.cpu()
            mask = torch.ones(group_set.num_groups, dtype=torch.bool)
            mask[retained] = False
            zero_groups_(group_set, mask, parameters)
            masks.append((group_set, mask))
    return masks


def clear_dead_(model: nn.Module, example_input: ExampleInput) -> None:
    """Zero in place what could be removed without changing the function."""
    plan, small = plan_and_compact(model, example_input)
    masked = expand(small, model, plan)
    for parameter, cleared in zip(model.parameters(), masked.parameters(), strict=True):
        parameter.copy_(cleared)
