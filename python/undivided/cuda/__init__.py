"""Launchers of the CUDA C++ kernels in `undivided._C`: they allocate with torch, and pass addresses and numbers."""
