"""torch's own kernels as a backend."""
