"""RMS norm: its launchers, over the kernels that it shares with layer norm in `../norm`."""
