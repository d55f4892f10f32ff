"""Channel attention for image-recognition CNNs: SPEM and the modules it is compared with."""

from spem import kernels
from spem.functional import Pooled, pool, recalibrate
from spem.gates import GATES, SPEM, Gate, auxiliary_loss, create_gate
from spem.models import create_model
from spem.norm import GatedBatchNorm2d

__all__ = [
    "GATES",
    "SPEM",
    "Gate",
    "GatedBatchNorm2d",
    "Pooled",
    "auxiliary_loss",
    "create_gate",
    "create_model",
    "kernels",
    "pool",
    "recalibrate",
]

__version__ = "0.1.0"
