"""What other libraries do between the backward pass and the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ssl_lightning.suggest import require

TORCH_PRUNING = "torch-pruning"


def require_peers(where: str) -> None:
    """Make sure that the extra ``peers`` is installed.

    Raises:
        ValueError: if it is not.
    """
    require(f"{where}: `peers`", ["torch_pruning"], "peers", "or leave it out")


def torch_pruning_regularizer(
    model: nn.Module, example_input: Tensor, num_classes: int
) -> Callable[[], None]:
    """Return what torch-pruning's users call after each backward pass: ``pruner.regularize``.

    The pruner is made as in its own script for sparse training: groups of channels by their largest
    norm, without the layers that write the classes; its strength is its default.

    Args:
        model: is put into evaluation mode, as the pruner does it.
        example_input: of the model, on its device.
        num_classes: number of classes; layers with so many outputs are ignored.

    Raises:
        Exception: what torch-pruning raises where it cannot follow the network.

    Reference:
        Fang et al., DepGraph: Towards Any Structural Pruning, 2023.
    """
    import torch_pruning

    convs = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    last = [
        module
        for module in model.modules()
        if (isinstance(module, nn.Linear) and module.out_features == num_classes)
        or (isinstance(module, convs) and module.out_channels == num_classes)
    ]
    pruner = torch_pruning.pruner.GroupNormPruner(
        model,
        example_input,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
        ignored_layers=last,
    )
    pruner.update_regularizer()
    return lambda: pruner.regularize(model)
