"""What layer norm and RMS norm share: their kernels, which differ by a constant, and the launch choices."""
