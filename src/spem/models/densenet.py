"""DenseNet-BC for CIFAR: every layer adds 12 channels to those it reads."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from spem.gates.gate import gated
from spem.models.placement import Placement, build_conv
from spem.models.resnet import check_images, initialise
from spem.norm import GatedBatchNorm2d

GROWTH = 12


class DenseLayer(nn.Module):
    """Two convolutions, each after norm and ReLU, whose 12 channels join those it read."""

    gate_attribute = "branch_gate"

    def __init__(self, in_channels: int, gates: Placement):
        super().__init__()
        self.bn1 = GatedBatchNorm2d(in_channels, gate=gates.norm(in_channels))
        self.conv1 = build_conv(in_channels, 4 * GROWTH, 1, 1, gates)
        self.bn2 = GatedBatchNorm2d(4 * GROWTH, gate=gates.norm(4 * GROWTH))
        self.conv2 = build_conv(4 * GROWTH, GROWTH, 3, 1, gates, last=True)
        self.branch_gate = gates.residual(GROWTH, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, in_channels + 12, H, W)."""
        new = self.conv1(self.bn1(x, relu=True))
        new = self.conv2(self.bn2(new, relu=True))
        return torch.cat([x, gated(self.branch_gate, new, source=x)], 1)


class _Transition(nn.Module):
    def __init__(self, in_channels: int, channels: int, gates: Placement):
        super().__init__()
        self.bn1 = GatedBatchNorm2d(in_channels, gate=gates.norm(in_channels))
        self.conv1 = build_conv(in_channels, channels, 1, 1, gates)

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(self.conv1(self.bn1(x, relu=True)), 2)


class DenseNet(nn.Module):
    """DenseNet-BC with growth 12 and an optional gate on the new channels of every layer.

    Args:
        layers: layers of each of the three dense blocks, (depth − 4) / 6.
        gates: builds the gates.
        num_classes: width of the classifier.
        in_channels: channels of the images.

    Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017; the gate's place is
        this library's definition.
    """

    def __init__(self, layers: int, gates: Placement, num_classes: int = 10, in_channels: int = 3):
        super().__init__()
        self.in_channels = in_channels
        width = 2 * GROWTH
        self.conv1 = build_conv(in_channels, width, 3, 1, gates)
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for stage in range(3):
            gates.start_stage(last=stage == 2, size=32 >> stage)
            dense = [DenseLayer(width + i * GROWTH, gates) for i in range(layers)]
            width += layers * GROWTH
            self.blocks.append(nn.Sequential(*dense, *gates.between(width)))
            if stage < 2:
                self.transitions.append(_Transition(width, width // 2, gates))
                width //= 2
        self.bn = GatedBatchNorm2d(width, gate=gates.norm(width))
        self.fc = nn.Linear(width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W), H, W >= 8."""
        check_images(x, self.in_channels)
        x = self.conv1(x)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index < len(self.transitions):
                x = self.transitions[index](x)
        return self.fc(self.bn(x, relu=True).mean((2, 3)))
