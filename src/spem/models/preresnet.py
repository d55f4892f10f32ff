"""CIFAR pre-activation ResNet: norm and ReLU before each convolution."""

from torch import Tensor

from spem.gates.gate import gated
from spem.models.placement import Placement, build_conv
from spem.models.resnet import Block, ResNet
from spem.norm import GatedBatchNorm2d


class PreBlock(Block):
    """The base of both blocks: the end of the branch, where the gate follows a convolution."""

    bn1: GatedBatchNorm2d
    gate_attribute = "branch_gate"
    # Whether the projection of the shortcut reads relu(norm(x)) instead of x.
    projects_activated = False

    def close(self, in_channels: int, channels: int, stride: int, gates: Placement) -> None:
        """Build the gate, with a norm before it where its class asks for one, and the shortcut."""
        gate = gates.residual(channels, in_channels)
        normed = gate is not None and gate.needs_norm
        self.bn_additional = GatedBatchNorm2d(channels, gate=gate) if normed else None
        self.branch_gate = None if normed else gate
        changes = stride != 1 or in_channels != channels
        self.downsample = build_conv(in_channels, channels, 1, stride, gates) if changes else None

    def branch(self, x: Tensor) -> Tensor:
        """Return the residual branch of relu(norm(x)), before the gate."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        activated = self.bn1(x, relu=True)
        residual = x
        if self.downsample is not None:
            residual = self.downsample(activated if self.projects_activated else x)
        out = self.branch(activated)
        if self.bn_additional is not None:
            return self.bn_additional(out, residual, source=x)
        return gated(self.branch_gate, out, residual, source=x)


class PreBasicBlock(PreBlock):
    """Two 3×3 convolutions, each after norm and ReLU; the gate sits on the second."""

    def __init__(self, in_channels: int, planes: int, stride: int, gates: Placement):
        super().__init__()
        self.bn1 = GatedBatchNorm2d(in_channels, gate=gates.norm(in_channels))
        self.conv1 = build_conv(in_channels, planes, 3, stride, gates)
        self.bn2 = GatedBatchNorm2d(planes, gate=gates.norm(planes))
        self.conv2 = build_conv(planes, planes, 3, 1, gates, last=True)
        self.close(in_channels, planes, stride, gates)

    def branch(self, x: Tensor) -> Tensor:
        """Return the residual branch of relu(norm(x)), before the gate."""
        return self.conv2(self.bn2(self.conv1(x), relu=True))


class PreBottleneck(PreBlock):
    """1×1, 3×3 and 1×1 convolutions, each after norm and ReLU; the gate sits on the third."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, gates: Placement):
        super().__init__()
        channels = planes * self.expansion
        self.bn1 = GatedBatchNorm2d(in_channels, gate=gates.norm(in_channels))
        self.conv1 = build_conv(in_channels, planes, 1, 1, gates)
        self.bn2 = GatedBatchNorm2d(planes, gate=gates.norm(planes))
        self.conv2 = build_conv(planes, planes, 3, stride, gates, last=True)
        self.bn3 = GatedBatchNorm2d(planes, gate=gates.norm(planes))
        self.conv3 = build_conv(planes, channels, 1, 1, gates)
        self.close(in_channels, channels, stride, gates)

    def branch(self, x: Tensor) -> Tensor:
        """Return the residual branch of relu(norm(x)), before the gate."""
        out = self.conv2(self.bn2(self.conv1(x), relu=True))
        return self.conv3(self.bn3(out, relu=True))


class PreResNet(ResNet):
    """CIFAR pre-activation ResNet with an optional gate at the end of every residual branch.

    Takes the arguments of `ResNet`, with `PreBasicBlock` or `PreBottleneck`.

    Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016. The gate's place,
        the last convolution's output, is this library's definition.
    """

    norm_last = True
