"""Look into a trained network.

`compute_cams` shows where a network finds what speaks for a class in an image (Grad-CAM, HiResCAM,
Grad-CAM++). `gate_report` measures the multipliers that the gates of a network give over a data
set, and how constant they are; it returns `GateStatistics` for every gate.
"""

from spem.explain.cam import Cams, compute_cams
from spem.explain.constancy import gate_report
from spem.gates import GateStatistics

__all__ = ["Cams", "GateStatistics", "compute_cams", "gate_report"]
