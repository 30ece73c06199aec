"""Where a command's words go. Who closes the pipe has read enough: a run goes on unheard."""

import os
import sys

from rich.console import Console

WIDTH = 140
"""Columns of a file or a pipe, such as a batch job's log."""


class Screen(Console):
    """A console for tables, as wide as the terminal, where stdout is one or COLUMNS says so."""

    def __init__(self) -> None:
        known = sys.stdout.isatty() or "COLUMNS" in os.environ
        super().__init__(width=None if known else WIDTH)

    def on_broken_pipe(self) -> None:
        """Go on; rich would end the process."""
        _speak_to_nobody()


def say(text: str = "", end: str = "\n") -> None:
    """Print to stdout, at once."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        _speak_to_nobody()


def _speak_to_nobody() -> None:
    """What was and will be printed goes nowhere, python's last flush included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
