"""Random operations, gates and norms: every backend of the CPU against the reference in float64."""

import pytest
from drawn_maps import check_cases
from drawn_modules import OPTIONS, Module
from drawn_operations import Operations
from proof import cases

from spem import kernels
from spem.gates import GATES, gate_options


@pytest.fixture(scope="module")
def backends():
    return ["eager"] if kernels.why_not("compiled") else ["eager", "compiled"]


def test_every_option_of_every_gate_is_drawn():
    assert {option for name in GATES for option in gate_options(name)} == OPTIONS.keys()


@pytest.mark.parametrize("numbers", cases(100_000, 100))
def test_operations(numbers, backends):
    check_cases(Operations, numbers, [*backends, "custom"] if len(backends) > 1 else backends)


@pytest.mark.parametrize("numbers", cases(100_000, 30))
def test_gates_and_norms(numbers, backends):
    check_cases(Module, numbers, backends)
