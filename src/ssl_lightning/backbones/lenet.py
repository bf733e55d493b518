"""LeNet as in BVLC Caffe, the network of the paper's MNIST experiments."""

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.backbones.init import init_xavier_caffe_


class LeNet(nn.Module):
    """Classify 28 x 28 digits with two convolutions and two linear layers (20-50-500-10).

    As in Caffe there is no ReLU between a convolution and its pooling; the only one follows
    ``fc1``. Weights are drawn as Caffe's ``xavier`` filler does.

    Args:
        num_classes: outputs of ``fc2``.
        in_channels: channels of the input, which is ``(N, in_channels, 28, 28)``.

    Reference:
        BVLC Caffe, ``examples/mnist/lenet_train_test.prototxt``; Wen et al., 2016, section 4.1.

    Example:
        >>> import torch
        >>> LeNet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    input_shape: tuple[int, int, int]

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.input_shape = (in_channels, 28, 28)
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)
        init_xavier_caffe_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)``."""
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(x))
        x = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc2(x)
        return logits
