"""Look into a trained network.

`gate_report` measures the multipliers that the gates of a network give over a data set, and how
constant they are; it returns `GateStatistics` for every gate.
"""

from spem.explain.constancy import gate_report
from spem.gates import GateStatistics

__all__ = ["GateStatistics", "gate_report"]
