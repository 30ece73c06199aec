"""Pipelined multi-GPU training without a global backward pass."""

__version__ = "0.1.0"
