"""torchvision beside a CPU build of PyTorch: declare what its CUDA library would.

torchvision registers fake kernels for two operators of a library that a CPU-only PyTorch cannot
load; without their schemas its import fails, and with it that of torchmetrics and others. The
Makefile copies this file into the environment and lets a `.pth` file import it, so that every
Python there has it, commands and child processes as well.
"""

import sys
from contextlib import suppress

_NAMES = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _Declaring:
    """An entry of `sys.meta_path` that finds nothing, but declares before torchvision is found."""

    library = None

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and self.library is None:
            import torch

            with suppress(RuntimeError):  # a full build of torchvision, or a script, declares them
                self.library = torch.library.Library("torchvision", "DEF")
                for each in _NAMES:
                    self.library.define(f"{each}{_SCHEMA}")


sys.meta_path.insert(0, _Declaring())
