"""Residual networks for CIFAR: three stages of 16, 32 and 64 filters."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.backbones.init import init_he_

ZERO = -1  # in `PadShortcut.source`: this output channel reads nothing


class PadShortcut(nn.Module):
    """Subsample the map and pad its channels with zeros: the shortcut without parameters.

    Output channel ``j`` is input channel ``source[j]``, or zero where ``source[j]`` is -1. To
    take channels away later, assign ``in_channels`` (if it changes) and then ``source``; neither
    is part of the state dict.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, at least ``in_channels``; the extra ones are zero.
        stride: keep every ``stride``-th row and column.

    Raises:
        ValueError: if ``out_channels`` is smaller than ``in_channels``, or if ``source`` is
            assigned an input channel that does not exist.

    Reference:
        He et al., Deep Residual Learning for Image Recognition, 2016, option A.

    Example:
        >>> import torch
        >>> shortcut = PadShortcut(2, 4, stride=2)
        >>> shortcut.source
        (0, 1, -1, -1)
        >>> shortcut(torch.ones(1, 2, 4, 4)).sum(dim=(2, 3))
        tensor([[4., 4., 0., 0.]])
        >>> shortcut.source = (-1, 1)
        >>> shortcut(torch.ones(1, 2, 4, 4)).sum(dim=(2, 3))
        tensor([[0., 4.]])
    """

    index: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(
                f"PadShortcut: expected `out_channels` >= `in_channels`, got {out_channels} < "
                f"{in_channels}. Zero padding cannot remove channels; use shortcut B."
            )
        self.in_channels = in_channels
        self.stride = stride
        self.register_buffer("index", torch.empty(0, dtype=torch.long), persistent=False)
        self.source = (*range(in_channels), *[ZERO] * (out_channels - in_channels))

    @property
    def source(self) -> tuple[int, ...]:
        """Input channel of each output channel, -1 for a channel of zeros."""
        return self._source

    @source.setter
    def source(self, source: Sequence[int]) -> None:
        source = tuple(int(channel) for channel in source)
        if any(not ZERO <= channel < self.in_channels for channel in source):
            raise ValueError(
                f"PadShortcut.source: expected channels from -1 to {self.in_channels - 1}, got "
                f"{source}. Set `in_channels` first if the input changed."
            )
        self._source = source
        self._padding = _padding(source, self.in_channels)
        device = self.index.device
        self.index = torch.tensor(
            [self.in_channels if channel == ZERO else channel for channel in source],
            dtype=torch.long,
            device=device,
        )

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return len(self._source)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, ceil(H / stride), ceil(W / stride))``."""
        x = x[:, :, :: self.stride, :: self.stride]
        if self._padding is not None:
            return F.pad(x, (0, 0, 0, 0, *self._padding))
        return F.pad(x, (0, 0, 0, 0, 0, 1)).index_select(1, self.index)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"


def _padding(source: tuple[int, ...], in_channels: int) -> tuple[int, int] | None:
    """Return zeros (before, after) if ``source`` is all inputs in order between zeros."""
    before = source.index(0) if 0 in source else 0
    after = len(source) - before - in_channels
    padded = (*[ZERO] * before, *range(in_channels), *[ZERO] * after)
    return (before, after) if source == padded else None


class BasicBlock(nn.Module):
    """Add the shortcut to two 3 x 3 convolutions, each followed by batch norm.

    Args:
        in_channels: channels of the input.
        out_channels: filters of both convolutions.
        stride: of the first convolution.
        shortcut: ``"A"`` or ``"B"``, used where the shape changes; elsewhere it is the identity.

    Example:
        >>> BasicBlock(16, 32, 2, "A").shortcut
        PadShortcut(16, 32, stride=2)
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _make_shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(branch(x) + shortcut(x))``."""
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        return F.relu(branch + self.shortcut(x))


def _make_shortcut(in_channels: int, out_channels: int, stride: int, kind: str) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "A":
        return PadShortcut(in_channels, out_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class ResNetCIFAR(nn.Module):
    """Classify 32 x 32 images with ``depth = 6 n + 2`` layers in three stages of n blocks.

    Layers are ``conv1``, ``bn1``, ``layer1.0.conv1`` .., ``fc``. Weights get He initialisation.

    Args:
        depth: 20, 32, 44, 56, 110, ...
        num_classes: outputs of ``fc``.
        shortcut: where the shape changes, ``"A"`` (subsample and pad with zeros, no parameters)
            or ``"B"`` (1 x 1 convolution and batch norm; the paper's code).
        widths: filters of the three stages.
        in_channels: channels of the input, which is ``(N, in_channels, 32, 32)``.

    Raises:
        ValueError: if ``depth`` is not 6 n + 2, ``shortcut`` is unknown, or there are not three
            widths.

    Reference:
        He et al., Deep Residual Learning for Image Recognition, 2016, section 4.2.

    Example:
        >>> import torch
        >>> net = ResNetCIFAR(depth=20)
        >>> sum(p.numel() for p in net.parameters())
        269722
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    input_shape: tuple[int, int, int]

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        shortcut: str = "A",
        widths: Sequence[int] = (16, 32, 64),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        _check(depth, shortcut, widths)
        self.input_shape = (in_channels, 32, 32)
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        num_blocks = (depth - 2) // 6
        self.layer1 = _make_stage(widths[0], widths[0], num_blocks, 1, shortcut)
        self.layer2 = _make_stage(widths[0], widths[1], num_blocks, 2, shortcut)
        self.layer3 = _make_stage(widths[1], widths[2], num_blocks, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], num_classes)
        init_he_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _make_stage(
    in_channels: int, out_channels: int, num_blocks: int, stride: int, shortcut: str
) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    rest = [BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)


def _check(depth: int, shortcut: str, widths: Sequence[int]) -> None:
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(
            f"ResNetCIFAR: expected `depth` to be 6 n + 2 with n >= 1, got {depth}. "
            "Take 20, 32, 44, 56 or 110."
        )
    if shortcut not in ("A", "B"):
        raise ValueError(
            f"ResNetCIFAR: expected `shortcut` to be 'A' or 'B', got {shortcut!r}. "
            "A has no parameters, B is a 1x1 convolution with batch norm."
        )
    if len(widths) != 3:
        raise ValueError(
            f"ResNetCIFAR: expected three `widths`, got {tuple(widths)}. "
            "Give one number of filters per stage, such as (16, 32, 64)."
        )
