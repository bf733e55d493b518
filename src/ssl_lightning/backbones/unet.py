"""UNet: an encoder and a decoder with concatenated skip connections, for dense prediction."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.backbones.init import init_he_


class ConvBlock(nn.Sequential):
    """Two 3 x 3 convolutions, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """Give every pixel logits; images of any size that ``2 ** depth`` divides.

    Args:
        num_classes: channels of the output.
        in_channels: channels of the images.
        width: channels at full resolution, twice as many at each level below.
        depth: number of times that the resolution is halved.

    Raises:
        ValueError: if a number is smaller than 1.

    Reference:
        Ronneberger et al., U-Net, 2015; padded, with batch norm and nearest upsampling.

    Example:
        >>> net = UNet(num_classes=4, width=8)
        >>> net(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 4, 32, 32])
    """

    input_shape: tuple[int, int, int]

    def __init__(
        self, num_classes: int = 2, in_channels: int = 1, width: int = 16, depth: int = 2
    ) -> None:
        super().__init__()
        if min(num_classes, in_channels, width, depth) < 1:
            raise ValueError(
                "UNet: expected num_classes, in_channels, width and depth of at least 1, got "
                f"{num_classes}, {in_channels}, {width} and {depth}. Correct them."
            )
        self.input_shape = (in_channels, 32 * 2 ** max(0, depth - 5), 32 * 2 ** max(0, depth - 5))
        self.num_classes = num_classes
        widths = [width * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(
            ConvBlock(before, after)
            for before, after in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.decoder = nn.ModuleList(
            ConvBlock(below + skip, skip)
            for below, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(width, num_classes, 1)
        init_he_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes, H, W)`` for images ``(N, in_channels, H, W)``."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.decoder:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], 1))
        logits: Tensor = self.head(x)
        return logits
