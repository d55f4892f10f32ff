"""Take a trained network elsewhere: a folder with its weights and its configuration."""

from spem.export.network import load_network, load_weights, save_network

__all__ = ["load_network", "load_weights", "save_network"]
