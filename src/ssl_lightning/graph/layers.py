"""Layer types: torch's, in one list, and the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONVS, *TRANSPOSED, nn.Linear)
"""Layers with a matrix of weights: they mix channels."""

FOLDING = (*CONVS, nn.Linear)
"""Layers that constants can be folded into, and that can skip channels."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
CHANNEL_NORMS = (*BATCH_NORMS, *INSTANCE_NORMS)
"""Norms that normalise each channel alone."""

ANY_BATCH_NORM = nn.modules.batchnorm._BatchNorm
"""Base of all batch norms, those of several processes too."""

ANY_CHANNEL_NORM = nn.modules.batchnorm._NormBase
"""Base of all batch and instance norms."""

WIDE_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
"""Norms that normalise several channels together."""

BUILT_IN = (
    *(*WEIGHTED, *CHANNEL_NORMS, *WIDE_NORMS, nn.PReLU, nn.LocalResponseNorm, nn.Unflatten),
    *(nn.Embedding, nn.MultiheadAttention, nn.LSTM, nn.GRU, nn.RNN),
)
"""Types of torch that compaction shrinks."""

CONV_KINDS = frozenset({"conv1d", "conv2d", "conv3d"})
TRANSPOSED_KINDS = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
FOLDING_KINDS = CONV_KINDS | {"linear"}
"""Operations of :data:`FOLDING`: their result is their bias if they read nothing."""

WEIGHTED_KINDS = FOLDING_KINDS | TRANSPOSED_KINDS
"""Operations of :data:`WEIGHTED`."""

LAYER_KINDS = WEIGHTED_KINDS | {"batch_norm", "instance_norm", "prelu"}
"""Operations of layers that are shrunk in place, so that they may be called by a function too."""


@dataclass(frozen=True)
class LayerType:
    """How the tensors of a layer number its channels; see ``register_shrinker``.

    Attributes:
        outputs: parameter or buffer -> its dimension that numbers the layer's output channels.
        inputs: parameter or buffer -> its dimension that numbers the input channels.
        counts: attribute that holds a number of channels -> ``"inputs"`` or ``"outputs"``.
        channel_dim: dimension of the layer's input and result that numbers the channels.
        written: the tensors of which a slice must be zero for an output channel to be zero; None:
            all parameters in ``outputs``.
    """

    outputs: Mapping[str, int]
    inputs: Mapping[str, int]
    counts: Mapping[str, str]
    channel_dim: int = 1
    written: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if wrong := set(self.counts.values()) - {"inputs", "outputs"}:
            raise ValueError(
                "register_shrinker: expected 'inputs' or 'outputs' in `counts`, got "
                f"{min(wrong)!r}."
            )
        if not self.outputs or not set(self.written or ()) <= set(self.outputs):
            raise ValueError(
                "register_shrinker: expected tensors in `outputs`, and some of them in `written`, "
                f"got {dict(self.outputs)} and {self.written}."
            )

    def matrices(self) -> list[str]:
        """Return the tensors that have a dimension for inputs and one for outputs."""
        return [name for name in self.inputs if name in self.outputs]

    def written_in(self, module: nn.Module) -> tuple[str, ...]:
        """Return the tensors of a layer of which a slice must be zero for an output to be."""
        if self.written is not None:
            return self.written
        return tuple(n for n in self.outputs if isinstance(getattr(module, n, None), nn.Parameter))

    def sizes(self, module: nn.Module) -> tuple[int, int]:
        """Return how many input and output channels a layer of this type has.

        Raises:
            ValueError: if its tensors do not agree on that, or an attribute of ``counts`` is none
                of the two.
        """
        outputs = self.size(module, self.outputs, "output")
        inputs = self.size(module, self.inputs, "input") if self.inputs else outputs
        for name, side in self.counts.items():
            wanted, found = inputs if side == "inputs" else outputs, getattr(module, name)
            if found != wanted:
                raise ValueError(
                    f"register_shrinker: expected the attribute `{name}` of "
                    f"{type(module).__name__} to be {wanted}, the number of its {side}, found "
                    f"{found!r}. Correct `counts`."
                )
        return inputs, outputs

    def size(self, module: nn.Module, dims: Mapping[str, int], side: str) -> int:
        """Return the number of channels that tensors number in these dimensions."""
        tensors = {name: getattr(module, name) for name in dims}
        found = {
            name: tensor.shape[dims[name]]
            for name, tensor in tensors.items()
            if isinstance(tensor, Tensor) and -tensor.dim() <= dims[name] < tensor.dim()
        }
        if len(set(found.values())) != 1:
            raise ValueError(
                f"register_shrinker: expected the {side} dimensions {dict(dims)} of "
                f"{type(module).__name__} to have one size, found {found}. Name the parameter's "
                "dimension that numbers the channels."
            )
        return next(iter(found.values()))


OWN_LAYERS: dict[type[nn.Module], LayerType | None] = {}
"""Types that users registered: one operation in a trace; None: there is nothing to shrink."""


def own_layer(module: nn.Module | None) -> LayerType | None:
    """Return what was registered of a module's type; a subclass may do more, so has nothing."""
    return OWN_LAYERS.get(type(module)) if module is not None else None


def mixes_channels(module: nn.Module) -> bool:
    """Whether a layer has a matrix of weights."""
    own = own_layer(module)
    return isinstance(module, WEIGHTED) or (own is not None and bool(own.inputs))


def class_name(kind: Any) -> str:
    """Return a class's name with its module's."""
    return f"{kind.__module__}.{kind.__qualname__}"
