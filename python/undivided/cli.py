"""The command line: `undivided COMMAND ...` or `python -m undivided COMMAND ...`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys

from .commands import COMMANDS, CommandError
from .memory import keep_freed_memory

EXPECTED = (CommandError, ValueError, TypeError, OSError, RuntimeError, ImportError, KeyError, OverflowError)


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser; only `command`'s own arguments are loaded, so that the others cost nothing."""
    parser = argparse.ArgumentParser(prog="undivided", description="Fused attention kernels: verify, time, train.")
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        module = f"undivided.commands.{name}"
        if importlib.util.find_spec(module) is None:
            continue
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == command:
            importlib.import_module(module).add_arguments(sub)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 good, 1 failed, 2 bad input, 130 and 141 as a shell has them."""
    argv = sys.argv[1:] if argv is None else argv
    command = next((word for word in argv if not word.startswith("-")), None)
    parser = build_parser(command)
    args = parser.parse_args(argv)
    if args.version:
        from . import __version__

        print(__version__)
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    keep_freed_memory()
    try:
        code: int = importlib.import_module(f"undivided.commands.{args.command}").run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Who read the output has gone, as `head` does; what is left of it goes nowhere when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except EXPECTED as error:
        if args.debug:
            raise
        print(f"undivided {args.command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2


def entry() -> None:
    sys.exit(main())
