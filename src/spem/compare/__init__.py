"""Many training runs beside each other, and what a gate costs.

A `Study` is a grid of gates, networks, data sets and seeds. `compare` plans its runs, lets a
launcher train those that have no result yet (here, in processes of this machine, or on a Ray
cluster), keeps a record of each, and measures in turns what the networks cost. `measure_gates`
measures the cost alone, in any network. `spem.report` makes a page of the records.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spem.compare.comparison import compare
    from spem.compare.gate_costs import measure_gates
    from spem.compare.study import Study, load_study, study_names

__all__ = ["Study", "compare", "load_study", "measure_gates", "study_names"]

# Imported at first use: what trains needs seconds to import.
_MODULES = {"compare": "comparison", "measure_gates": "gate_costs"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'study')}"), name)
