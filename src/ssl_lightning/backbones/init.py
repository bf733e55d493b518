"""Weight initialisations shared by the backbones."""

from torch import nn

MAC_LAYERS = (nn.Conv2d, nn.Linear)


def init_he_(module: nn.Module) -> None:
    """Give every convolution and linear layer He weights (fan-in, ReLU gain) and zero biases.

    Reference:
        He et al., Delving Deep into Rectifiers, 2015.
    """
    for layer in module.modules():
        if isinstance(layer, MAC_LAYERS):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_xavier_caffe_(module: nn.Module) -> None:
    """Give every convolution and linear layer Caffe's ``xavier`` weights and zero biases.

    Caffe's filler is uniform with variance ``1 / fan_in`` (it leaves out the fan-out).
    """
    for layer in module.modules():
        if isinstance(layer, MAC_LAYERS):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
