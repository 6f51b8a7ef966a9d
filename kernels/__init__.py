"""Triton kernels and their launchers: they import torch and triton, never the package around them."""
