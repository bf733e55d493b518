"""AlexNet in two geometries: Caffe's CaffeNet (the paper's) and torchvision's."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.backbones.init import init_he_
from ssl_lightning.backbones.response_norm import ChannelResponseNorm


@dataclass(frozen=True)
class Geometry:
    """The numbers in which the two AlexNets differ."""

    widths: tuple[int, int, int, int, int]  # filters of conv1..conv5
    groups: int  # of conv2, conv4 and conv5
    image_size: int
    padding: int  # of conv1
    response_norm: bool  # after the first two poolings
    dropout_first: bool  # before fc6 and fc7 (torchvision) or after them (Caffe)


GEOMETRIES = {
    "caffenet": Geometry((96, 256, 384, 384, 256), 2, 227, 0, True, False),
    "torchvision": Geometry((64, 192, 384, 256, 256), 1, 224, 2, False, True),
}


class AlexNet(nn.Module):
    """Classify images with five convolutions and three linear layers.

    Layers are ``conv1`` .. ``conv5``, ``fc6`` .. ``fc8`` in both geometries. The classifier reads
    a 6 x 6 map through adaptive pooling (the identity at the native image size), so other image
    sizes, as in progressive resizing, work too. Weights get He initialisation.

    Args:
        geometry: ``"caffenet"`` (grouped, pooling before response norm, 227 pixels) or
            ``"torchvision"`` (ungrouped, no response norm, 224 pixels).
        num_classes: outputs of ``fc8``.
        groups: conv-groups of ``conv2``, ``conv4``, ``conv5``; None takes the geometry's own
            (2 in CaffeNet, 1 in torchvision).
        dropout: probability of dropping a neuron around ``fc6`` and ``fc7``.
        in_channels: channels of the input.

    Raises:
        ValueError: if the geometry is unknown or ``groups`` does not divide the filters.

    Reference:
        Krizhevsky et al., 2012, as in BVLC Caffe ``models/bvlc_reference_caffenet``; Krizhevsky,
        One weird trick for parallelizing convolutional neural networks, 2014 (torchvision).

    Example:
        >>> AlexNet(num_classes=10).conv2
        Conv2d(96, 256, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), groups=2)
        >>> AlexNet("torchvision").input_shape
        (3, 224, 224)
    """

    input_shape: tuple[int, int, int]

    def __init__(
        self,
        geometry: str = "caffenet",
        num_classes: int = 1000,
        groups: int | None = None,
        dropout: float = 0.5,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if geometry not in GEOMETRIES:
            raise ValueError(
                f"AlexNet: expected `geometry` to be one of {sorted(GEOMETRIES)}, "
                f"got {geometry!r}. The paper's network is 'caffenet'."
            )
        self.geometry = GEOMETRIES[geometry]
        self.input_shape = (in_channels, self.geometry.image_size, self.geometry.image_size)
        self.num_classes = num_classes
        self._add_convolutions(self.geometry.groups if groups is None else groups)
        self.fc6 = nn.Linear(self.geometry.widths[-1] * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)
        self.dropout = nn.Dropout(dropout)
        init_he_(self)

    def _add_convolutions(self, groups: int) -> None:
        """Add conv1..conv5 with their poolings and response norms."""
        w1, w2, w3, w4, w5 = self.geometry.widths
        if groups < 1 or any(width % groups for width in (w1, w2, w3, w4, w5)):
            raise ValueError(
                f"AlexNet: expected `groups` to divide the filters {self.geometry.widths}, "
                f"got {groups}. Take 1 (ungrouped) or 2 (as CaffeNet)."
            )
        self.conv1 = nn.Conv2d(self.input_shape[0], w1, 11, stride=4, padding=self.geometry.padding)
        self.pool1 = nn.MaxPool2d(3, stride=2)
        self.norm1 = _response_norm(self.geometry)
        self.conv2 = nn.Conv2d(w1, w2, 5, padding=2, groups=groups)
        self.pool2 = nn.MaxPool2d(3, stride=2)
        self.norm2 = _response_norm(self.geometry)
        self.conv3 = nn.Conv2d(w2, w3, 3, padding=1)
        self.conv4 = nn.Conv2d(w3, w4, 3, padding=1, groups=groups)
        self.conv5 = nn.Conv2d(w4, w5, 3, padding=1, groups=groups)
        self.pool5 = nn.MaxPool2d(3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)``."""
        x = self.norm1(self.pool1(F.relu(self.conv1(x))))
        x = self.norm2(self.pool2(F.relu(self.conv2(x))))
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = self.pool5(F.relu(self.conv5(x)))
        x = self.avgpool(x).flatten(1)
        if self.geometry.dropout_first:
            x = F.relu(self.fc6(self.dropout(x)))
            x = F.relu(self.fc7(self.dropout(x)))
        else:
            x = self.dropout(F.relu(self.fc6(x)))
            x = self.dropout(F.relu(self.fc7(x)))
        logits: Tensor = self.fc8(x)
        return logits


def _response_norm(geometry: Geometry) -> nn.Module:
    return (
        ChannelResponseNorm(5, alpha=1e-4, beta=0.75) if geometry.response_norm else nn.Identity()
    )
