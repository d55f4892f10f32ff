"""The Triton kernels: in Triton's interpreter, on a CUDA device, and through its compiler."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is made for Linux"
)
POOLING = Path(__file__).with_name("triton_pooling.py")
PASSES = POOLING.with_name("triton_passes.py")
FUSED = PASSES.with_name("triton_fused.py")
RANDOM = PASSES.with_name("triton_differential.py")


# Parts, for several test processes. What takes long is left to `make test-hard` (float16,
# float64, most random cases) and to `make test-gates` (all gates but one of each family).
@pytest.mark.parametrize(
    ("bodies", "which", "marker"),
    [
        (POOLING, "test", ""),
        (PASSES, "test", ""),
        (FUSED, "test", ""),
        (RANDOM, "test", ""),
        pytest.param(RANDOM, "operations", "hard", marks=pytest.mark.hard),
        pytest.param(RANDOM, "gates", "hard", marks=pytest.mark.hard),
        pytest.param(POOLING, "test", "hard", marks=pytest.mark.hard),
        pytest.param(PASSES, "test", "hard", marks=pytest.mark.hard),
        pytest.param(FUSED, "test", "hard", marks=pytest.mark.hard),
        pytest.param(FUSED, "test", "gates", marks=pytest.mark.gates),
    ],
)
def test_in_the_interpreter(bodies, which, marker, request):
    command = [sys.executable, "-m", "pytest", str(bodies), "-q", "-k", which]
    command += ["-m", marker] if marker else []
    # numpy warns of arithmetic with NaN, which a device does in silence.
    command += ["-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]
    # Triton reads the variable at its first import, which another test of this process may have
    # caused long ago.
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        command, env=environment, cwd=request.config.rootpath, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr[-2_000:]
