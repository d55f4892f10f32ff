"""The page of a comparison: statistics, tables, figures and the published results beside them."""

from spem.report.writer import report

__all__ = ["report"]
