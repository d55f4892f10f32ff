"""VGG with batch normalisation and a single linear layer, for CIFAR."""

from torch import Tensor, nn

from spem.models.placement import Placement, build_conv
from spem.models.resnet import check_images, initialise
from spem.norm import GatedBatchNorm2d

# Convolutions of each of the five stages of 64, 128, 256, 512 and 512 channels.
PLANS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGGLayer(nn.Module):
    """A 3×3 convolution with bias, its norm and ReLU; the gate sits between the last two."""

    def __init__(self, in_channels: int, channels: int, gates: Placement):
        super().__init__()
        self.conv = build_conv(in_channels, channels, 3, 1, gates, bias=True, last=True)
        gate = gates.residual(channels, in_channels) or gates.norm(channels)
        self.bn = GatedBatchNorm2d(channels, gate=gate)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H, W)."""
        return self.bn(self.conv(x), relu=True, source=x)


class VGG(nn.Module):
    """VGG-BN of depth 11, 13, 16 or 19 with an optional gate behind every norm.

    Args:
        depth: a key of `PLANS`.
        gates: builds the gates.
        num_classes: width of the classifier.
        in_channels: channels of the images.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
        Recognition", ICLR 2015, in its usual form for CIFAR; the gate's place is this library's
        definition.
    """

    def __init__(self, depth: int, gates: Placement, num_classes: int = 10, in_channels: int = 3):
        super().__init__()
        self.in_channels = in_channels
        self.features = nn.Sequential()
        width = in_channels
        for stage, count in enumerate(PLANS[depth]):
            channels = min(64 << stage, 512)
            gates.start_stage(last=stage == 4, size=32 >> stage)
            for _ in range(count):
                self.features.append(VGGLayer(width, channels, gates))
                width = channels
            self.features.extend(gates.between(width))
            self.features.append(nn.MaxPool2d(2))
        self.fc = nn.Linear(512, num_classes)
        initialise(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.fc.weight, 0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W), H, W >= 32."""
        check_images(x, self.in_channels, 32)
        return self.fc(self.features(x).mean((2, 3)))
