"""CIFAR ResNet: basic blocks at depth 6n+2, bottlenecks at depth 9n+2."""

from typing import Protocol

from torch import Tensor, nn

from spem.models.placement import GatedConv2d, Placement
from spem.norm import GatedBatchNorm2d


def conv3x3(in_channels: int, channels: int, stride: int, gates: Placement) -> GatedConv2d:
    """Return a 3×3 convolution that keeps the size at stride 1, without bias."""
    conv = GatedConv2d(in_channels, channels, 3, stride, padding=1, bias=False)
    conv.input_gate = gates.conv(in_channels)
    return conv


def conv1x1(in_channels: int, channels: int, stride: int, gates: Placement) -> GatedConv2d:
    """Return a 1×1 convolution without bias."""
    conv = GatedConv2d(in_channels, channels, 1, stride, bias=False)
    conv.input_gate = gates.conv(in_channels)
    return conv


def _build_shortcut(
    in_channels: int, channels: int, stride: int, gates: Placement
) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    conv = conv1x1(in_channels, channels, stride, gates)
    return nn.Sequential(conv, GatedBatchNorm2d(channels))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; the gate sits on the second norm, before the addition."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, gates: Placement):
        super().__init__()
        self.conv1 = conv3x3(in_channels, planes, stride, gates)
        self.bn1 = GatedBatchNorm2d(planes, gate=gates.norm(planes))
        self.conv2 = conv3x3(planes, planes, 1, gates)
        last = gates.residual(planes, in_channels) or gates.norm(planes)
        self.bn2 = GatedBatchNorm2d(planes, gate=last)
        self.downsample = _build_shortcut(in_channels, planes, stride, gates)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = self.bn1(self.conv1(x), relu=True)
        residual = x if self.downsample is None else self.downsample(x)
        return self.bn2(self.conv2(out), residual, True, source=x)


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride) and 1×1 convolutions; the gate sits on the third norm."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, gates: Placement):
        super().__init__()
        channels = planes * self.expansion
        self.conv1 = conv1x1(in_channels, planes, 1, gates)
        self.bn1 = GatedBatchNorm2d(planes, gate=gates.norm(planes))
        self.conv2 = conv3x3(planes, planes, stride, gates)
        self.bn2 = GatedBatchNorm2d(planes, gate=gates.norm(planes))
        self.conv3 = conv1x1(planes, channels, 1, gates)
        last = gates.residual(channels, in_channels) or gates.norm(channels)
        self.bn3 = GatedBatchNorm2d(channels, gate=last)
        self.downsample = _build_shortcut(in_channels, channels, stride, gates)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = self.bn1(self.conv1(x), relu=True)
        out = self.bn2(self.conv2(out), relu=True)
        residual = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv3(out), residual, True, source=x)


class BlockType(Protocol):
    """A class of residual blocks; a block ends in expansion · planes channels."""

    expansion: int

    def __call__(self, in_channels: int, planes: int, stride: int, gates: Placement) -> nn.Module:
        """Build a block."""
        ...


def build_stages(block: BlockType, blocks: int, gates: Placement) -> list[nn.Sequential]:
    """Build the three stages: planes 16, 32, 64, the first block of stages 2 and 3 at stride 2."""
    built, width = [], 16
    for planes, stride in ((16, 1), (32, 2), (64, 2)):
        gates.start_stage(last=planes == 64, size=512 // planes)
        stage = nn.Sequential()
        for index in range(blocks):
            stage.append(block(width, planes, stride if index == 0 else 1, gates))
            width = planes * block.expansion
        built.append(stage)
    return built


def initialise(model: nn.Module) -> None:
    """Draw the convolutions from Normal(0, √(2 / (k·k·C_out))); the rest keeps its start."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def check_images(x: Tensor, in_channels: int, side: int = 8) -> None:
    """Raise ValueError unless x is (N, in_channels, H, W) with H and W of at least `side`."""
    if x.dim() != 4 or x.shape[1] != in_channels or min(x.shape[2:]) < side:
        raise ValueError(
            f"the input is {tuple(x.shape)}, must be (N, {in_channels}, H, W) with H, W >= {side}"
        )


class ResNet(nn.Module):
    """CIFAR ResNet with an optional gate at the end of every residual branch.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        blocks: n, the blocks of each of the three stages.
        gates: builds the gates.
        num_classes: width of the classifier.
        in_channels: channels of the images.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2; with
        1×1 projections where the shape changes.
    """

    # Whether the norm outside of the blocks follows the last of them instead of the first
    # convolution, as in pre-activation networks.
    norm_last = False

    def __init__(
        self,
        block: BlockType,
        blocks: int,
        gates: Placement,
        num_classes: int = 10,
        in_channels: int = 3,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.conv1 = conv3x3(in_channels, 16, 1, gates)
        if not self.norm_last:
            self.bn1 = GatedBatchNorm2d(16, gate=gates.norm(16))
        self.layer1, self.layer2, self.layer3 = build_stages(block, blocks, gates)
        width = 64 * block.expansion
        if self.norm_last:
            self.bn = GatedBatchNorm2d(width, gate=gates.norm(width))
        self.fc = nn.Linear(width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W), H, W >= 8."""
        check_images(x, self.in_channels)
        x = self.conv1(x)
        x = x if self.norm_last else self.bn1(x, relu=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.bn(x, relu=True) if self.norm_last else x
        return self.fc(x.mean((2, 3)))
