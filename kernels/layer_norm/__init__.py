"""Layer norm: its launchers, over the kernels that it shares with RMS norm in `../norm`."""
