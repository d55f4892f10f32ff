"""CIFAR ResNet: basic blocks at depth 6n+2, bottlenecks at depth 9n+2."""

from torch import Tensor, nn

from spem._checks import check_tensor, sizes_are_known
from spem.functional import check_map
from spem.models.placement import Placement, build_conv
from spem.norm import GatedBatchNorm2d


class Block(nn.Module):
    """The base of residual blocks, built of (in_channels, planes, stride, gates).

    A block ends in expansion · planes channels.
    """

    expansion = 1


def _build_shortcut(
    in_channels: int, channels: int, stride: int, gates: Placement
) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    conv = build_conv(in_channels, channels, 1, stride, gates)
    return nn.Sequential(conv, GatedBatchNorm2d(channels))


class BasicBlock(Block):
    """Two 3×3 convolutions; the gate sits on the second norm, before the addition."""

    def __init__(self, in_channels: int, planes: int, stride: int, gates: Placement):
        super().__init__()
        self.conv1 = build_conv(in_channels, planes, 3, stride, gates)
        self.bn1 = GatedBatchNorm2d(planes, gate=gates.norm(planes))
        self.conv2 = build_conv(planes, planes, 3, 1, gates, last=True)
        last = gates.residual(planes, in_channels) or gates.norm(planes)
        self.bn2 = GatedBatchNorm2d(planes, gate=last)
        self.downsample = _build_shortcut(in_channels, planes, stride, gates)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = self.bn1(self.conv1(x), relu=True)
        residual = x if self.downsample is None else self.downsample(x)
        return self.bn2(self.conv2(out), residual, True, source=x)


class Bottleneck(Block):
    """1×1, 3×3 (with the stride) and 1×1 convolutions; the gate sits on the third norm."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, gates: Placement):
        super().__init__()
        channels = planes * self.expansion
        self.conv1 = build_conv(in_channels, planes, 1, 1, gates)
        self.bn1 = GatedBatchNorm2d(planes, gate=gates.norm(planes))
        self.conv2 = build_conv(planes, planes, 3, stride, gates, last=True)
        self.bn2 = GatedBatchNorm2d(planes, gate=gates.norm(planes))
        self.conv3 = build_conv(planes, channels, 1, 1, gates)
        last = gates.residual(channels, in_channels) or gates.norm(channels)
        self.bn3 = GatedBatchNorm2d(channels, gate=last)
        self.downsample = _build_shortcut(in_channels, channels, stride, gates)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = self.bn1(self.conv1(x), relu=True)
        out = self.bn2(self.conv2(out), relu=True)
        residual = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv3(out), residual, True, source=x)


def initialise(model: nn.Module) -> None:
    """Draw the convolutions from Normal(0, √(2 / (k·k·C_out))); the rest keeps its start.

    So do layers of gates that `spem.gates.attention.keep_start` names.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not getattr(module, "keeps_start", False):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def check_images(x: Tensor, in_channels: int, side: int = 8) -> None:
    """Raise ValueError unless x is (N, in_channels, H, W) with H and W of at least `side`."""
    if not sizes_are_known(x):
        return
    check_tensor("x", x)
    if x.dim() != 4 or x.shape[1] != in_channels or min(x.shape[2:]) < side:
        raise ValueError(
            f"the input is {tuple(x.shape)}, must be (N, {in_channels}, H, W) with H, W >= {side}"
        )
    check_map("x", x)


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
        block: type[Block],
        blocks: int,
        gates: Placement,
        num_classes: int = 10,
        in_channels: int = 3,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.conv1 = build_conv(in_channels, 16, 3, 1, gates)
        if not self.norm_last:
            self.bn1 = GatedBatchNorm2d(16, gate=gates.norm(16))
        stages, width = [nn.Sequential() for _ in range(3)], 16
        for stage, planes in zip(stages, (16, 32, 64), strict=True):
            gates.start_stage(last=planes == 64, size=512 // planes)
            for index in range(blocks):
                stride = 1 if index or planes == 16 else 2
                stage.append(block(width, planes, stride, gates))
                width = planes * block.expansion
            stage.extend(gates.between(width))
        self.layer1, self.layer2, self.layer3 = stages
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
