"""Look into a trained network.

`compute_cams` shows where a network finds what speaks for a class in an image (Grad-CAM, HiResCAM,
Grad-CAM++), and `check_cams` whether its answer depends on that. `profile_gates` measures the
multipliers of each gate over a data set, by channel, class and value; it returns a `GateProfile`
for every gate. `gate_report` measures how constant they are; it returns `GateStatistics`.
"""

from spem.explain.cam import Cams, compute_cams
from spem.explain.checks import CamChecks, check_cams
from spem.explain.constancy import gate_report
from spem.explain.profile import GateProfile, profile_gates
from spem.gates import GateStatistics

__all__ = [
    "CamChecks",
    "Cams",
    "GateProfile",
    "GateStatistics",
    "check_cams",
    "compute_cams",
    "gate_report",
    "profile_gates",
]
