"""The two small networks that come with the library, smooth so that their Hessian is whole."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Sequential):
    """Two hidden layers of 64 with GELU.

    GELU and not ReLU: autograd's Hessian of a ReLU network misses the curvature at the kinks, which
    noise feels, so trace and perturbation gap could not be held against each other.

    Args:
        features: Length of an input vector.
        classes: Number of logits.
        width: Units of a hidden layer.
    """

    def __init__(self, features: int, classes: int, width: int = 64) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(features, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, classes),
        )


class CNN(nn.Module):
    """Three 3x3 convolutions with BatchNorm and GELU, the last two of stride 2, mean pooling.

    Args:
        channels: Channels of an input image.
        classes: Number of logits.
        width: Channels of the first convolution; doubled at each of the others.
    """

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(channels, width, stride=1),
            _convolution(width, 2 * width, stride=2),
            _convolution(2 * width, 4 * width, stride=2),
        )
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (samples, classes) of images (samples, channels, height, width)."""
        pooled = self.features(images).mean(dim=(2, 3))
        logits: Tensor = self.head(self.dropout(pooled))
        return logits


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.GELU(),
    )
