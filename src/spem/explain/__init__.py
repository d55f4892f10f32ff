"""Look into a trained network: which multipliers its gates give, and how constant they are."""

from spem.explain.gate_report import GateStatistics, gate_report

__all__ = ["GateStatistics", "gate_report"]
