"""Rotary position embedding: one kernel that turns forward, and backward by the negative angle."""
