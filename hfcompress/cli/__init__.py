"""The command line."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Its modules are imported when it is called."""
    from hfcompress.cli.commands import main as run_command

    return run_command(arguments)
