"""The command `spem`: one function of `spem.cli.commands` for each command."""

import sys
from collections.abc import Sequence
from io import TextIOWrapper


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    0: success; 1: `bench` found wrong results, or `predict` could not read a picture; 2: wrong
    input, or an extra is not installed; 130: Ctrl-C.

    Args:
        argv: the words after `spem`; None: those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what the terminal cannot show ends no command
            stream.reconfigure(errors="backslashreplace")
    try:
        from spem.cli.dispatch import run_command
    except ImportError as error:
        print("spem: error:", error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return run_command(argv)
