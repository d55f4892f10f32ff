"""Feature maps and comparisons for the tests of the Triton kernels.

These are not collected by their names: `test_triton.py` runs them in an interpreter of its own,
because Triton decides at its first import whether it interprets, and `test_triton_gpu.py` on a CUDA
device.
"""

import os

import pytest
import torch
from parity import assert_parity
from torch.testing import assert_close

from spem.kernels.triton import layout as triton_layout

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 1, 1),
    (2, 3, 7, 7),
    (1, 64, 7, 7),
    (2, 17, 13, 17),
    (3, 16, 4, 8),
    (2, 32, 8, 8),
    (0, 3, 2, 2),
]
# Enough positions and few enough maps that each is split over several programs; the last split
# of the first shape is short, the last tile of the second is not full.
SPLIT_SHAPES = [(1, 2, 172, 196), pytest.param((1, 3, 183, 201), marks=pytest.mark.hard)]
FORMATS = ["contiguous", "channels_last"]
# Brought to one of the two before any kernel sees them: one shape shows it.
GAPPED = [((2, 3, 7, 7), layout) for layout in ("sliced", "sliced_channels_last", "transposed")]
CASES = [(shape, layout) for shape in SHAPES for layout in FORMATS] + GAPPED
# In `make test` float32, and bfloat16 in `test_the_whole_segment_equals_autograd`.
_OTHERS = (torch.bfloat16, torch.float16, torch.float64)
DTYPES = [torch.float32, *(pytest.param(t, marks=pytest.mark.hard) for t in _OTHERS)]


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch):
    """Fill what the kernels shall write with NaN: an element that they leave out shows."""

    def poisoned(allocate):
        def call(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else -(2**20))

        return call

    for name in ("empty", "empty_map"):
        monkeypatch.setattr(triton_layout, name, poisoned(getattr(triton_layout, name)))


def maps(shape, layout="contiguous", dtype=torch.float32, ties=False):
    n, c, h, w = shape
    if layout.startswith("sliced"):
        shape = (n, 2 * c, h + 1, w + 2)
    elif layout == "transposed":
        shape = (n, c, w, h)
    x = torch.randn(shape, dtype=torch.float64)
    x = (x.round() if ties else x).to(DEVICE, dtype)
    if layout.endswith("channels_last"):
        x = x.to(memory_format=torch.channels_last)
    if layout.startswith("sliced"):
        return x[:, ::2, 1:, 2:]
    return x.transpose(2, 3) if layout == "transposed" else x


def values(shape, dtype=torch.float32):
    return torch.randn(shape[:2], dtype=torch.float64).to(DEVICE, wide(dtype))


def wide(dtype):
    return torch.promote_types(dtype, torch.float32)


def spread(value):
    """(N, C) -> (N, C, 1, 1)."""
    return value[:, :, None, None]


def check(actual, naive, truth, what):
    if actual.dtype == torch.float64:
        # Nothing is wider than this: the rule cannot judge it.
        scale = max(1, truth.abs().amax().item()) if truth.numel() else 1
        assert_close(actual, truth, rtol=0, atol=1e-13 * scale, msg=what)
        return
    # The interpreter cuts float32 to bfloat16 off where a device rounds: one ulp more.
    ulps = 5 if INTERPRETED and actual.dtype == torch.bfloat16 else 4
    assert_parity(actual, naive, truth, what, ulps)
