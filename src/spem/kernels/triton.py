"""The operations on maps and their backward passes as Triton kernels, for CUDA devices.

Importing this module imports triton. Everything is deterministic: no atomics, no autotuning.
"""

from spem.kernels.triton_backward import input_gradient, sums
from spem.kernels.triton_pool import Moments, moments, pool, pool_stack
from spem.kernels.triton_recalibrate import recalibrate

__all__ = ["Moments", "input_gradient", "moments", "pool", "pool_stack", "recalibrate", "sums"]
