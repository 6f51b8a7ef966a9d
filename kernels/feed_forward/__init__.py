"""The feed-forward network: activations, one product tile, pointwise passes, launch choices, forward and backward."""
