"""Take a trained network elsewhere.

`save_network` writes a folder with the weights (safetensors) and the configuration (JSON), as every
run does; `load_network` rebuilds the network from it. Another format is one more module here, which
starts from `spem.deploy`: exporters trace the reference backend.
"""

from spem.export.network import load_network, save_network
from spem.export.weights import load_weights

__all__ = ["load_network", "load_weights", "save_network"]
