"""Distill: train a network to answer as a larger one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from ssl_lightning.callbacks.during_fit import refuse_compiled
from ssl_lightning.callbacks.when import example_of
from ssl_lightning.checkpoints import load_backbone
from ssl_lightning.measure import count_macs
from ssl_lightning.module import sparsity_of
from ssl_lightning.suggest import nearest, pick
from ssl_lightning.zoo.loading import PREFIX, load

BACKWARD = 2
"""Multiply-adds of a backward pass, in those of the forward pass."""


def soft_targets(output: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the divergence of softened classes, times the squared temperature.

    Args:
        output: logits ``(N, classes, ...)``.
        teacher: the same of the teacher.
        temperature: that both are divided by.

    Reference:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> soft_targets(logits, logits, 4.0), soft_targets(logits, torch.zeros(1, 2), 1.0)
        (tensor(0.), tensor(0.4338))
    """
    log_p, log_q = (F.log_softmax(z / temperature, 1) for z in (teacher, output))
    return (log_p.exp() * (log_p - log_q)).sum(1).mean() * temperature**2


def squared_difference(output: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean squared difference of outputs; for tasks that are no classification."""
    return F.mse_loss(output, teacher)


LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "soft_targets": soft_targets,
    "squared_difference": squared_difference,
}


def attention(features: Tensor) -> Tensor:
    """Return where in an image a layer is active, whatever the number of its channels.

    Args:
        features: ``(N, C, ...)`` with positions.

    Returns:
        ``(N, positions)``, each row of norm 1.

    Reference:
        Zagoruyko & Komodakis, Paying More Attention to Attention, 2017, equation 2.

    Example:
        >>> attention(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]))
        tensor([[0.9138, 0.4061]])
    """
    return F.normalize(features.square().mean(1).flatten(1))


class Distill(Callback):
    """Add to the loss of a training step how far the network is from a teacher.

    The loss becomes ``(1 - weight) * loss + weight * distance``, and with ``features`` also
    ``feature_weight`` times the squared differences of attention maps. The teacher is in inference
    mode, sees the inputs that the network sees, and is not part of checkpoints. Logs
    ``distill/loss``. Works for any LightningModule with :class:`StructuredSparsity`, before and
    after compaction.

    Args:
        teacher: ``zoo:<name>``, a checkpoint that ``fit`` wrote, or a module.
        weight: of the distance to the teacher's outputs, 0 to 1.
        temperature: of the softened classes. Where a teacher is sure of its answer, the gradient is
            up to so many times that of cross-entropy: a network with fresh weights and no norms
            may need a lower learning rate or temperature.
        loss: ``"soft_targets"`` for classifiers, ``"squared_difference"`` for other outputs.
        features: layers of which attention maps are compared: names that network and teacher have
            in common, or network's name -> teacher's.
        feature_weight: of each of them.

    Raises:
        ValueError: for a number out of range, or an unknown loss; at the start of training, if
            there is no such teacher or layer; in the first step, if the outputs differ in shape.
        MisconfigurationException: if the network is compiled, the module optimizes by hand, or a
            training step does not call the network.

    Reference:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015; Zagoruyko & Komodakis,
        Paying More Attention to Attention, 2017.

    Example:
        >>> Distill("zoo:resnet20_cifar10_dense", temperature=2.0).weight
        0.9
    """

    def __init__(
        self,
        teacher: str | nn.Module,
        weight: float = 0.9,
        temperature: float = 4.0,
        loss: Literal["soft_targets", "squared_difference"] = "soft_targets",
        features: list[str] | dict[str, str] | None = None,
        feature_weight: float = 1000.0,
    ) -> None:
        pick("loss", loss, LOSSES)
        if not 0 <= weight <= 1 or temperature <= 0 or feature_weight < 0:
            raise ValueError(
                "Distill: expected 0 <= weight <= 1, temperature > 0 and feature_weight >= 0, got "
                f"weight={weight}, temperature={temperature} and feature_weight={feature_weight}."
            )
        self.teacher, self.weight, self.temperature, self.loss = teacher, weight, temperature, loss
        names = features or {}
        self.features = dict(names) if isinstance(names, Mapping) else {n: n for n in names}
        self.feature_weight = feature_weight
        self.network: nn.Module | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a network whose calls cannot be seen."""
        if stage == "fit":
            refuse_compiled(pl_module, "Distill")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the teacher, and let the module's training step add the distance to it."""
        sparsity = sparsity_of(pl_module, "Distill")
        student = sparsity.network
        self.network = teacher_of(self.teacher)
        for name, other in self.features.items():
            for network, layer, whose in (
                (student, name, "network"),
                (self.network, other, "teacher"),
            ):
                known = [n for n, _ in network.named_modules()]
                if layer not in known:
                    raise ValueError(
                        f"Distill: expected layers of the {whose} as features, got {layer!r}. "
                        f"{nearest(layer, known)}"
                    )
        kind = next(student.parameters()).dtype
        self.network.to(pl_module.device, kind).eval().requires_grad_(False)
        example = example_of(sparsity, "Distill")
        mine, its = count_macs(student, example), count_macs(self.network, example)
        rank_zero_info(
            f"Distill: the teacher adds {its / 1e6:,.4g} million multiply-adds per input to each "
            f"training step, {its / ((1 + BACKWARD) * max(mine, 1)):.0%} of the network's own."
        )
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"Distill: expected automatic optimization, got {type(pl_module).__name__} with "
                "`automatic_optimization = False`, whose steps return no loss to add the teacher's "
                "to. Call the teacher in its training step."
            )
        own = pl_module.training_step
        pl_module.training_step = partial(self.training_step, pl_module, own)  # type: ignore[method-assign]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the module as it was."""
        pl_module.__dict__.pop("training_step", None)
        self.network = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        self.on_fit_end(trainer, pl_module)

    def training_step(
        self, pl_module: pl.LightningModule, own: Callable[..., Any], *arguments: Any, **named: Any
    ) -> Any:
        """Return what the module's own step returns, with the distance in its loss."""
        student, teacher = sparsity_of(pl_module).network, self.network
        assert teacher is not None
        with seeing(student, list(self.features)) as seen:
            result = own(*arguments, **named)
        loss = result["loss"] if isinstance(result, Mapping) else result
        if loss is None:  # the step is skipped
            return result
        if not seen.calls:
            raise MisconfigurationException(
                "Distill: the training step did not call the network, so there is nothing to "
                "compare with the teacher."
            )
        distance, maps = self.distances(seen, teacher)
        pl_module.log("distill/loss", distance.detach())
        loss = (1 - self.weight) * loss + self.weight * distance + self.feature_weight * maps
        return {**result, "loss": loss} if isinstance(result, Mapping) else loss

    def distances(self, seen: Seen, teacher: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the distance of outputs and that of attention maps, means over the calls."""
        outputs, maps = [], []
        for call in seen.calls:
            with seeing(teacher, list(self.features.values())) as its, torch.no_grad():
                expected = teacher(*call.arguments, **call.named)
            check_outputs(call.output, expected)
            outputs.append(LOSSES[self.loss](call.output, expected, self.temperature))
            pairs = [(call.features[n], its.calls[0].features[o]) for n, o in self.features.items()]
            maps.append(sum((distance_of_maps(mine, other) for mine, other in pairs), 0.0))
        return torch.stack(outputs).mean(), torch.as_tensor(sum(maps) / len(maps))


@dataclass
class Seen:
    """What was seen of a network: its calls.

    Attributes:
        calls: arguments, output and features of each.
    """

    calls: list[Call] = field(default_factory=list)
    features: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One call of a network."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    output: Any
    features: dict[str, Tensor]


@contextmanager
def seeing(network: nn.Module, layers: Sequence[str]) -> Iterator[Seen]:
    """Note the calls of a network in the block, and the outputs of some of its layers."""
    seen = Seen()

    def note(module: nn.Module, arguments: Any, named: Any, output: Any) -> None:
        seen.calls.append(Call(arguments, named, output, seen.features))
        seen.features = {}

    def note_layer(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        seen.features[name] = output

    with ExitStack() as hooks:
        for name in layers:
            layer = network.get_submodule(name)
            hooks.callback(layer.register_forward_hook(partial(note_layer, name)).remove)
        hooks.callback(network.register_forward_hook(note, with_kwargs=True).remove)
        yield seen


def distance_of_maps(features: Tensor, expected: Tensor) -> Tensor:
    """Return the mean squared difference of two attention maps.

    Raises:
        ValueError: if they have no positions, or not the same.
    """
    if features.dim() < 3 or features.shape[2:] != expected.shape[2:]:
        raise ValueError(
            "Distill: expected features with the same positions in network and teacher, got "
            f"{tuple(features.shape)} and {tuple(expected.shape)}. Give other layers."
        )
    return (attention(features) - attention(expected)).square().mean()


def check_outputs(output: Any, expected: Any) -> None:
    """Refuse outputs that cannot be compared.

    Raises:
        ValueError: if they are no tensors of the same shape.
    """
    shapes = [
        tuple(o.shape) if isinstance(o, Tensor) else type(o).__name__ for o in (output, expected)
    ]
    if not isinstance(output, Tensor) or shapes[0] != shapes[1]:
        raise ValueError(
            f"Distill: expected outputs of one shape, got {shapes[0]} of the network and "
            f"{shapes[1]} of the teacher. Give a teacher of the same task."
        )


def teacher_of(given: str | nn.Module) -> nn.Module:
    """Return the teacher.

    Raises:
        FileNotFoundError, ValueError: if there is none of that name.
    """
    if isinstance(given, nn.Module):
        return given
    if given.startswith(PREFIX):
        return load(given.removeprefix(PREFIX))
    return load_backbone(given).model
