"""Adapters to other libraries: one a file."""
