"""Change a network that exists: put gates in, take them out, load weights, deploy.

`attach` and `detach` put gates into a network that somebody else built and take them out again, in
place; `guard.attachment` returns what was put in, for the same in another copy. `load_backbone`
loads the weights of a network without gates into one with gates, and `convert_official` renames
those of the authors' repositories. `deploy` returns a copy for inference in which constants are
folded. `NetworkConfig` holds the arguments of `create_model` that built a network; `config_of`
reads that of a network.
"""

from spem.surgery.attachment import Report, attach, detach
from spem.surgery.backbone import Loaded, load_backbone
from spem.surgery.config import NetworkConfig, config_of
from spem.surgery.deployment import deploy
from spem.surgery.official import convert_official

__all__ = [
    "Loaded",
    "NetworkConfig",
    "Report",
    "attach",
    "config_of",
    "convert_official",
    "deploy",
    "detach",
    "load_backbone",
]
