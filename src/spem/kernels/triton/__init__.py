"""The operations on maps and their backward passes as Triton kernels, for CUDA devices.

Importing this module imports triton. Everything is deterministic: no atomics, no autotuning.
"""

from spem.kernels.triton.backward import input_gradient, sums
from spem.kernels.triton.pool import Moments, moments, pool, pool_stack
from spem.kernels.triton.recalibrate import recalibrate

__all__ = ["Moments", "input_gradient", "moments", "pool", "pool_stack", "recalibrate", "sums"]
