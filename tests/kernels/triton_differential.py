"""Random operations, gates and norms by Triton's kernels against the reference in float64.

Collected as `triton_maps.py` says, but not on a CUDA device.
"""

import pytest
from drawn_maps import check_cases
from drawn_modules import Module
from drawn_operations import Operations
from proof import cases


@pytest.mark.parametrize("numbers", cases(1_000, 4))
def test_operations(numbers):
    check_cases(Operations, numbers, ["triton"])


@pytest.mark.parametrize("numbers", cases(1_000, 0))
def test_gates_and_norms(numbers):
    # Ten cases of each kind, rather than a hundred.
    check_cases(Module, [10 * number for number in numbers], ["triton"])
