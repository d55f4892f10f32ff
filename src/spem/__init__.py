"""Channel attention for image-recognition CNNs: SPEM and the modules it is compared with."""

from spem import kernels
from spem.explain import gate_report
from spem.functional import Pooled, pool, recalibrate
from spem.gates import GATES, SPEM, Attention, Gate, auxiliary_loss, create_gate, register
from spem.models import create_model, register_model
from spem.norm import GatedBatchNorm2d
from spem.surgery.attachment import attach, detach
from spem.surgery.backbone import load_backbone
from spem.surgery.deployment import deploy
from spem.surgery.official import convert_official

__all__ = [
    "GATES",
    "SPEM",
    "Attention",
    "Gate",
    "GatedBatchNorm2d",
    "Pooled",
    "attach",
    "auxiliary_loss",
    "convert_official",
    "create_gate",
    "create_model",
    "deploy",
    "detach",
    "gate_report",
    "kernels",
    "load_backbone",
    "pool",
    "recalibrate",
    "register",
    "register_model",
]

__version__ = "0.1.0"
