"""Channel attention for image-recognition CNNs: SPEM and the modules it is compared with."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spem import kernels
    from spem.explain import gate_report
    from spem.functional import Pooled, pool, recalibrate
    from spem.gates import (
        GATES,
        SPEM,
        Attention,
        Gate,
        auxiliary_loss,
        create_gate,
        record_gates,
        register,
    )
    from spem.gates.groups import parameter_groups
    from spem.models import create_model, register_model
    from spem.norm import GatedBatchNorm2d
    from spem.surgery.attachment import attach, detach
    from spem.surgery.backbone import load_backbone
    from spem.surgery.deployment import deploy
    from spem.surgery.guard import attachment
    from spem.surgery.official import convert_official

__all__ = [
    "GATES",
    "SPEM",
    "Attention",
    "Gate",
    "GatedBatchNorm2d",
    "Pooled",
    "attach",
    "attachment",
    "auxiliary_loss",
    "convert_official",
    "create_gate",
    "create_model",
    "deploy",
    "detach",
    "gate_report",
    "kernels",
    "load_backbone",
    "parameter_groups",
    "pool",
    "recalibrate",
    "record_gates",
    "register",
    "register_model",
]

__version__ = "0.1.0"

# The public names and their modules, imported at the first use of one: PyTorch needs more than a
# second, which `spem --help` should not.
_MODULES = {
    "explain": ("gate_report",),
    "functional": ("Pooled", "pool", "recalibrate"),
    "gates": (
        *("GATES", "SPEM", "Attention", "Gate"),
        *("auxiliary_loss", "create_gate", "record_gates", "register"),
    ),
    "gates.groups": ("parameter_groups",),
    "models": ("create_model", "register_model"),
    "norm": ("GatedBatchNorm2d",),
    "surgery.attachment": ("attach", "detach"),
    "surgery.backbone": ("load_backbone",),
    "surgery.deployment": ("deploy",),
    "surgery.guard": ("attachment",),
    "surgery.official": ("convert_official",),
}
_SUBPACKAGES = ("explain", "export", "functional", "gates", "kernels", "models", "norm", "surgery")


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"spem.{name}")
    for module, names in _MODULES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"spem.{module}"), name)
            return value
    raise AttributeError(f"module 'spem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
