"""Attention: which blocks are visited, one tile of scores, the launch choices, forward and backward."""
