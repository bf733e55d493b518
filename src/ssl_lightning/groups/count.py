"""How many groups of each kind are retained in every layer."""

from __future__ import annotations

import torch
from torch import nn

from ssl_lightning.graph import layer_names
from ssl_lightning.groups.kinds import KINDS, View
from ssl_lightning.groups.sets import GroupSet, Member, nonzero_groups

COUNTED = {
    "filters": ("filter", "neuron_out"),
    "channels": ("channel", "neuron_in"),
    "columns": ("shape",),
}
"""Column of a report -> kinds of group that it counts, for convolutions and linear layers."""


@torch.no_grad()
def kept_groups(model: nn.Module) -> dict[str, dict[str, list[int]]]:
    """Count, per layer, the filters, channels and columns whose weights are not all zero.

    Args:
        model: any module; its convolutions and linear layers are looked at.

    Returns:
        Layer -> ``"filters"``, ``"channels"``, ``"columns"`` -> [retained, of]. Output and input
        neurons of linear layers count as filters and channels. ``columns`` are the filter shapes
        W[:, c, h, w], that is the rows of the lowered matrix that are retained.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> kept_groups(create_backbone("lenet"))["conv2"]
        {'filters': [50, 50], 'channels': [20, 20], 'columns': [500, 500]}
    """
    counts: dict[str, dict[str, list[int]]] = {}
    for name, inner in layer_names(model, (nn.Module,)).items():
        module = model.get_submodule(inner)
        for column, kinds in COUNTED.items():
            for kind in kinds:
                view = KINDS[kind].view(module)
                if view is not None:
                    counts.setdefault(name, {})[column] = count_groups(module, view)
    return counts


def count_groups(module: nn.Module, view: View) -> list[int]:
    """Return [retained, of] for the groups of one layer's weight."""
    group_set = GroupSet("", "", (Member("weight", *view),))
    retained = nonzero_groups(group_set, {"weight": torch.as_tensor(module.weight)})
    return [int(retained.sum()), group_set.num_groups]
