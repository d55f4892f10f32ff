"""ImageNet's ResNet-50, with gates."""

from typing import Any

from torch import Tensor, nn

from spem.models.placement import Placement
from spem.models.resnet import Bottleneck, initialise
from spem.norm import GatedBatchNorm2d

SIZE = 224
_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # planes, blocks, stride


class ImageNetResNet50(nn.Module):
    """ResNet-50, the stride of a block in its 3×3 convolution.

    Args:
        gate: a key of `GATES`, or None.
        options: keyword arguments of the gate.
        placement: of `PLACEMENTS`; None: what the authors of the gate do.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; with the
        stride where torchvision has it.
    """

    def __init__(
        self, gate: str | None, options: dict[str, Any], placement: str | None = "residual"
    ):
        super().__init__()
        gates = Placement(gate, options, placement if gate else None)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = GatedBatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.stages, width = nn.Sequential(), 64
        for planes, blocks, stride in _STAGES:
            gates.start_stage(last=planes == 512, size=SIZE // 4 * 64 // planes)
            for index in range(blocks):
                self.stages.append(Bottleneck(width, planes, 1 if index else stride, gates))
                width = 4 * planes
            self.stages.extend(gates.between(width))
        self.fc = nn.Linear(width, 1000)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, 1000), of images (N, 3, H, W)."""
        x = self.maxpool(self.bn1(self.conv1(x), relu=True))
        return self.fc(self.stages(x).mean((2, 3)))
