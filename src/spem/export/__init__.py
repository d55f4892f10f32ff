"""Take a trained network elsewhere.

`save_network` writes a folder with the weights (safetensors) and the configuration (JSON),
`load_network` rebuilds the network from it.
"""

from spem.export.network import load_network, load_weights, save_network

__all__ = ["load_network", "load_weights", "save_network"]
