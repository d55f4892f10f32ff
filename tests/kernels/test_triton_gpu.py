"""The parity tests of the Triton kernels, compiled, on a CUDA device."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from triton_fused import *  # noqa: F403
from triton_parity import *  # noqa: F403
from triton_parity import _poisoned_outputs  # noqa: F401 (an asterisk leaves it out)

pytestmark = pytest.mark.gpu
