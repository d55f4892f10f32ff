"""Residual Attention Network for CIFAR: soft masks on a trunk of pre-activation units."""

from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from spem.models.placement import Placement, build_conv
from spem.models.preresnet import PreBottleneck
from spem.models.resnet import check_images, initialise
from spem.norm import GatedBatchNorm2d

# Attention modules of the stages at 32×32, 16×16 and 8×8.
PLANS = {56: (1, 1, 1), 92: (1, 2, 3)}


class _Unit(PreBottleneck):
    projects_activated = True


def _build_unit(in_channels: int, channels: int, stride: int, gates: Placement) -> _Unit:
    return _Unit(in_channels, channels // _Unit.expansion, stride, gates)


def _build_units(count: int, channels: int, gates: Placement) -> nn.Sequential:
    return nn.Sequential(*(_build_unit(channels, channels, 1, gates) for _ in range(count)))


def _halve(x: Tensor) -> Tensor:
    return max_pool2d(x, 3, stride=2, padding=1)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


class _Mask(nn.Module):
    """The soft mask (N, C, H, W) of a stage: the smaller its feature maps, the less deep it is."""

    def __init__(self, channels: int, depth: int):
        super().__init__()
        none = Placement(None, {})
        self.depth = depth
        self.bottom = _build_units(2, channels, none)
        if depth == 2:
            self.first = _build_units(1, channels, none)
            self.skip = _build_units(1, channels, none)
            self.upper = _build_units(1, channels, none)
        self.bn1 = GatedBatchNorm2d(channels)
        self.conv1 = build_conv(channels, channels, 1, 1, none)
        self.bn2 = GatedBatchNorm2d(channels)
        self.conv2 = build_conv(channels, channels, 1, 1, none)

    def forward(self, x: Tensor, trunk: Tensor) -> Tensor:
        z = self._hourglass(x, trunk)
        z = self.conv1(self.bn1(z, relu=True))
        return self.conv2(self.bn2(z, relu=True)).sigmoid()

    def _hourglass(self, x: Tensor, trunk: Tensor) -> Tensor:
        if self.depth == 0:
            return self.bottom(x)
        if self.depth == 1:
            return _resize(self.bottom(_halve(x)), trunk) + trunk
        first = self.first(_halve(x))
        bottom = _resize(self.bottom(_halve(first)), first)
        return _resize(self.upper(bottom + first + self.skip(first)), trunk) + trunk


class _AttentionModule(nn.Module):
    """A unit, then (1 + mask) · trunk, then another unit."""

    def __init__(self, channels: int, depth: int, gates: Placement):
        super().__init__()
        self.first = _build_units(1, channels, gates)
        self.trunk = _build_units(2, channels, gates)
        self.mask = _Mask(channels, depth)
        self.last = _build_units(1, channels, gates)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        trunk = self.trunk(x)
        return self.last((1 + self.mask(x, trunk)) * trunk)


class ResidualAttentionNet(nn.Module):
    """Residual Attention Network, with an optional gate in every unit outside the masks.

    Args:
        modules: attention modules of each of the three stages.
        gates: builds the gates.
        num_classes: width of the classifier.
        in_channels: channels of the images.

    Source: Wang et al., "Residual Attention Network for Image Classification", CVPR 2017 (arXiv
        1704.06904). The layout for CIFAR is that of a widely used port, whose author calls it his
        own reading, without the port's unused shortcut weights. The gate's place is this library's
        definition.
    """

    def __init__(
        self,
        modules: tuple[int, int, int],
        gates: Placement,
        num_classes: int = 10,
        in_channels: int = 3,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.conv1 = build_conv(in_channels, 32, 3, 1, gates)
        self.bn1 = GatedBatchNorm2d(32, gate=gates.norm(32))
        layers, width = [], 32
        for stage, (channels, count) in enumerate(zip((128, 256, 512), modules, strict=True)):
            gates.start_stage(last=False, size=32 >> stage)
            layers.append(_build_unit(width, channels, 2 if stage else 1, gates))
            layers += [_AttentionModule(channels, 2 - stage, gates) for _ in range(count)]
            layers += gates.between(channels)
            width = channels
        gates.start_stage(last=True, size=8)
        layers += [_build_unit(512, 1024, 1, gates), *_build_units(2, 1024, gates)]
        self.layers = nn.Sequential(*layers)
        self.bn = GatedBatchNorm2d(1024, gate=gates.norm(1024))
        self.fc = nn.Linear(1024, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W), H, W >= 8."""
        check_images(x, self.in_channels)
        x = self.layers(self.bn1(self.conv1(x), relu=True))
        return self.fc(self.bn(x, relu=True).mean((2, 3)))
