"""The measurements behind a card, done once to publish and once more to verify."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.data import DATA_MODULES, InMemoryDataModule
from ssl_lightning.groups import kept_groups
from ssl_lightning.measure import count_macs, num_parameters
from ssl_lightning.measure.layers import layer_macs
from ssl_lightning.progress import track
from ssl_lightning.suggest import pick
from ssl_lightning.zoo.records import DataSet, SeedResult, Size

Groups = dict[str, dict[str, list[int]]]


def measure_size(model: nn.Module) -> Size:
    """Return multiply-adds of one image and the number of parameters.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> measure_size(create_backbone("lenet"))
        Size(macs=2293000, num_parameters=431080)
    """
    shape: tuple[int, ...] = model.input_shape  # type: ignore[assignment]
    return Size(count_macs(model, torch.zeros(1, *shape)), num_parameters(model))


def groups_left(dense: nn.Module, compact: nn.Module, masked: nn.Module) -> Groups:
    """Return layer -> kind -> [groups that are not zero in ``compact``, all of ``dense``].

    Args:
        dense: the network that training started from.
        compact: what is left of it.
        masked: the weights of ``compact`` in the layers of ``dense``: where low rank factors
            replaced a layer, the groups of their product are counted.
    """
    retained, modules = kept_groups(compact), dict(compact.named_modules())
    product = kept_groups(masked)
    retained |= {n: product[n] for n in product if isinstance(modules.get(n), nn.Sequential)}
    return {
        layer: {
            kind: [retained.get(layer, {}).get(kind, [0])[0], of] for kind, (_, of) in kinds.items()
        }
        for layer, kinds in kept_groups(dense).items()
    }


def measure_layers(dense: nn.Module, compact: nn.Module) -> dict[str, list[int]]:
    """Return layer -> multiply-adds of one image in the [compact, dense] network.

    Example:
        >>> from ssl_lightning.backbones import create_backbone
        >>> measure_layers(create_backbone("lenet"), create_backbone("lenet"))["conv1"]
        [288000, 288000]
    """
    shape: tuple[int, ...] = dense.input_shape  # type: ignore[assignment]
    image = torch.zeros(1, *shape)
    before = count_macs(dense, image, per_layer=True)
    models = {"compact": compact}
    after = {"compact": count_macs(compact, image, per_layer=True)}  # also inside of wrappers
    return {
        layer: [layer_macs(models, after, layer).get("compact", 0), macs]
        for layer, macs in before.items()
    }


def measure_seed(seed: int, compact: nn.Module, data: Any) -> SeedResult:
    """Measure the compact network of one run on both held-out splits."""
    size = measure_size(compact)
    loaders = [data.val_dataloader(), data.test_dataloader()]
    validation, test = [measure_error(compact, loader) for loader in track(loaders)]
    return SeedResult(seed, validation, test, size.macs, size.num_parameters)


@torch.inference_mode()
def measure_error(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the error of a classifier in percent.

    Example:
        >>> x, target = torch.eye(4), torch.tensor([0, 1, 2, 0])
        >>> measure_error(nn.Identity(), [(x, target)])
        25.0
    """
    model.eval()
    wrong, total = 0, 0
    for x, target in track(batches):
        wrong += int((model(x).argmax(1) != target).sum())
        total += len(target)
    return 100.0 * wrong / total


@torch.inference_mode()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Return the network's outputs in eval mode."""
    result: Tensor = model.eval()(x)
    return result


def open_test_split(data: DataSet, input_shape: Sequence[int]) -> Any:
    """Return the data module of a card, whose test split can be read, in images of a shape.

    MNIST's ships with the package; others are looked for in ``$SSL_DATA_DIR``.

    Raises:
        ValueError: if the data set is unknown.
        FileNotFoundError: when it is read, if it is not there.
    """
    kind: Any = pick("data set", data.name, DATA_MODULES)
    if not issubclass(kind, InMemoryDataModule):
        raise ValueError(f"The zoo cannot measure on {data.name!r} yet: give a set held in memory.")
    source = "bundled" if "bundled" in kind.sources else "local"
    sized = {"image_size": input_shape[-1]} if "image_size" in signature(kind).parameters else {}
    return kind(source=source, normalize=data.normalize, **sized)
