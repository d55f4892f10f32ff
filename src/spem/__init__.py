"""Channel attention for image-recognition CNNs: SPEM and the modules it is compared with."""

from spem import kernels
from spem.attach import attach, detach
from spem.backbone import load_backbone
from spem.constancy import gate_report
from spem.convert import convert_official
from spem.deploy import deploy
from spem.functional import Pooled, pool, recalibrate
from spem.gates import GATES, SPEM, Attention, Gate, auxiliary_loss, create_gate, register
from spem.models import create_model
from spem.norm import GatedBatchNorm2d

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
]

__version__ = "0.1.0"
