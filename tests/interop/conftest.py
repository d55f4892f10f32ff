"""torchvision beside a CPU build of PyTorch: declare what its CUDA library would."""

from contextlib import suppress

import torch

# torchvision registers fake kernels for two operators of a library that a CPU-only PyTorch cannot
# load; without their schemas its import fails.
_LIBRARY = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    with suppress(RuntimeError):  # a full build of torchvision has declared it
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
