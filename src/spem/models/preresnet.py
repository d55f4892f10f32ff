"""CIFAR pre-activation ResNet: norm and ReLU before each convolution."""

from torch import Tensor, nn

from spem.gates import Attention, Gate
from spem.models.resnet import (
    BlockType,
    GateFactory,
    check_images,
    conv1x1,
    conv3x3,
    initialise,
    stages,
)
from spem.norm import GatedBatchNorm2d


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Conv2d | None:
    if stride == 1 and in_channels == channels:
        return None
    return conv1x1(in_channels, channels, stride)


class _PreBlock(nn.Module):
    """What both blocks share: the end, where the gate follows a convolution."""

    gate: Attention | None
    downsample: nn.Conv2d | None

    def branch(self, x: Tensor) -> Tensor:
        """Return the residual branch of x, before the gate."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        residual = x if self.downsample is None else self.downsample(x)
        out = self.branch(x)
        if self.gate is None:
            return out.add_(residual)
        if isinstance(self.gate, Gate):
            return self.gate(out, residual)
        return self.gate(out) + residual


class PreBasicBlock(_PreBlock):
    """Two 3×3 convolutions, each after norm and ReLU; the gate sits on the second."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, gate: GateFactory):
        super().__init__()
        self.bn1 = GatedBatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, planes, stride)
        self.bn2 = GatedBatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.gate = gate(planes)
        self.downsample = _shortcut(in_channels, planes, stride)

    def branch(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = self.conv1(self.bn1(x, relu=True))
        return self.conv2(self.bn2(out, relu=True))


class PreBottleneck(_PreBlock):
    """1×1, 3×3 and 1×1 convolutions, each after norm and ReLU; the gate sits on the third."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, gate: GateFactory):
        super().__init__()
        channels = planes * self.expansion
        self.bn1 = GatedBatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, planes)
        self.bn2 = GatedBatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn3 = GatedBatchNorm2d(planes)
        self.conv3 = conv1x1(planes, channels)
        self.gate = gate(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    def branch(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = self.conv1(self.bn1(x, relu=True))
        out = self.conv2(self.bn2(out, relu=True))
        return self.conv3(self.bn3(out, relu=True))


class PreResNet(nn.Module):
    """CIFAR pre-activation ResNet with an optional gate at the end of every residual branch.

    Takes the arguments of `ResNet`, with `PreBasicBlock` or `PreBottleneck`.

    Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016. The gate's place,
        the last convolution's output, is this library's definition.
    """

    def __init__(
        self,
        block: BlockType,
        blocks: int,
        gate: GateFactory,
        num_classes: int = 10,
        in_channels: int = 3,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.conv1 = conv3x3(in_channels, 16)
        self.layer1, self.layer2, self.layer3 = stages(block, blocks, gate)
        self.bn = GatedBatchNorm2d(64 * block.expansion)
        self.fc = nn.Linear(64 * block.expansion, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W), H, W >= 8."""
        check_images(x, self.in_channels)
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.bn(x, relu=True).mean((2, 3)))
