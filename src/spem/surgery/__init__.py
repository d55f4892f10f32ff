"""Change a network in place: insert and remove gates, load weights without losing any, deploy.

`attach` and `detach` put gates into a network that somebody else built and take them out again,
`load_backbone` and `convert_official` read checkpoints, and `deploy` returns a copy for inference.
"""

from spem.surgery.attachment import Report, attach, detach
from spem.surgery.backbone import load_backbone
from spem.surgery.deployment import deploy
from spem.surgery.official import convert_official

__all__ = ["Report", "attach", "convert_official", "deploy", "detach", "load_backbone"]
