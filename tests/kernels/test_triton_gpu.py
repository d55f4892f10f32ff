"""The parity tests of the Triton kernels, compiled, on a CUDA device."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from triton_fused import *  # noqa: F403
from triton_maps import _poisoned_outputs  # noqa: F401 (of its own name, as pytest looks for it)
from triton_passes import *  # noqa: F403
from triton_pooling import *  # noqa: F403

pytestmark = pytest.mark.gpu
