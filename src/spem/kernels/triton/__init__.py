"""The operations and their backward passes as Triton kernels, for CUDA devices.

Its modules import triton. Everything is deterministic: no atomics, no autotuning.
"""
