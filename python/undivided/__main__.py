"""`python -m undivided` is the command line."""

from .cli import entry

entry()
