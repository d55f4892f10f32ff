"""The page of a comparison, made of its records.

`report` reads a folder of `spem.compare` and writes one HTML page, the same as Markdown, its
numbers as CSV, and the figures. `significance` has the statistics, `tables` and `figures` what is
shown, `published` the accuracies of papers that stand beside ours. Nothing here trains, and the
page needs no network.
"""

from spem.report.writer import report

__all__ = ["report"]
