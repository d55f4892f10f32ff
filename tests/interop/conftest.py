"""torchvision beside a CPU build of PyTorch: declare what its CUDA library would."""

import torch

# torchvision registers fake kernels for two operators of a library that a CPU-only PyTorch cannot
# load; without their schemas its import fails.
_LIBRARY = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    try:
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # a full build of torchvision has declared it
        pass
