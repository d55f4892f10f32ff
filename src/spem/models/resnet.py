"""CIFAR ResNet: basic blocks at depth 6n+2, bottlenecks at depth 9n+2."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from spem.gates import Attention
from spem.norm import GatedBatchNorm2d

GateFactory = Callable[[int], Attention | None]


def conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3×3 convolution that keeps the size at stride 1, without bias."""
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1×1 convolution without bias."""
    return nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(conv1x1(in_channels, channels, stride), GatedBatchNorm2d(channels))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; the gate sits on the second norm, before the addition."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, gate: GateFactory):
        super().__init__()
        self.conv1 = conv3x3(in_channels, planes, stride)
        self.bn1 = GatedBatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = GatedBatchNorm2d(planes, gate=gate(planes))
        self.downsample = _shortcut(in_channels, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = self.bn1(self.conv1(x), relu=True)
        residual = x if self.downsample is None else self.downsample(x)
        return self.bn2(self.conv2(out), residual=residual, relu=True)


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride) and 1×1 convolutions; the gate sits on the third norm."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, gate: GateFactory):
        super().__init__()
        channels = planes * self.expansion
        self.conv1 = conv1x1(in_channels, planes)
        self.bn1 = GatedBatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = GatedBatchNorm2d(planes)
        self.conv3 = conv1x1(planes, channels)
        self.bn3 = GatedBatchNorm2d(channels, gate=gate(channels))
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = self.bn1(self.conv1(x), relu=True)
        out = self.bn2(self.conv2(out), relu=True)
        residual = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv3(out), residual=residual, relu=True)


class BlockType(Protocol):
    """A class of residual blocks; a block ends in expansion · planes channels."""

    expansion: int

    def __call__(
        self, in_channels: int, planes: int, stride: int, gate: GateFactory
    ) -> nn.Module:
        """Build a block."""
        ...


def stages(block: BlockType, blocks: int, gate: GateFactory) -> list[nn.Sequential]:
    """Build the three stages: planes 16, 32, 64, the first block of stages 2 and 3 at stride 2."""
    built, width = [], 16
    for planes, stride in ((16, 1), (32, 2), (64, 2)):
        stage = nn.Sequential()
        for index in range(blocks):
            stage.append(block(width, planes, stride if index == 0 else 1, gate))
            width = planes * block.expansion
        built.append(stage)
    return built


def initialise(model: nn.Module) -> None:
    """Draw the convolutions from Normal(0, √(2 / (k·k·C_out))); the rest keeps its start."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def check_images(x: Tensor, in_channels: int) -> None:
    """Raise ValueError unless x is (N, in_channels, H, W) with H and W of at least 8."""
    if x.dim() != 4 or x.shape[1] != in_channels or min(x.shape[2:]) < 8:
        raise ValueError(
            f"the input is {tuple(x.shape)}, must be (N, {in_channels}, H, W) with H, W >= 8"
        )


class ResNet(nn.Module):
    """CIFAR ResNet with an optional gate at the end of every residual branch.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        blocks: n, the blocks of each of the three stages.
        gate: called with a width, returns the gate for it or None.
        num_classes: width of the classifier.
        in_channels: channels of the images.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2; with
        1×1 projections where the shape changes.
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
        self.bn1 = GatedBatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = stages(block, blocks, gate)
        self.fc = nn.Linear(64 * block.expansion, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W), H, W >= 8."""
        check_images(x, self.in_channels)
        x = self.bn1(self.conv1(x), relu=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))
