"""The command line."""

import sys
from collections.abc import Sequence

from hfcompress.cli.signals import ended_by_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Its modules are imported when it is called."""
    try:
        with ended_by_signals():
            from hfcompress.cli.commands import main as run_command

            return run_command(arguments)
    except KeyboardInterrupt as interrupt:  # before the command began
        sys.stderr.write("stopped\n")
        return interrupt.args[0] if interrupt.args else 130
