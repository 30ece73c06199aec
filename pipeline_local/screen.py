"""What a command prints. A run goes on when nothing can be printed: the pipe is closed, the disk
with its log is full, or the terminal is gone (under nohup; else SIGHUP ends it)."""

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console

WIDTH = 140
"""The columns of a file or a pipe, such as a batch job's log."""


class Screen(Console):
    """A console for tables, as wide as the terminal, where stdout is one or COLUMNS says so."""

    def __init__(self) -> None:
        known = sys.stdout.isatty() or "COLUMNS" in os.environ
        super().__init__(width=None if known else WIDTH)

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 (as rich has it)
        """Prints a table or text to stdout, at once."""
        with self.capture() as captured:
            super().print(*objects, **options)
        say(captured.get(), end="")


def say(text: str = "", end: str = "\n") -> None:
    """Prints text to stdout, at once."""
    _write(sys.stdout, text + end)


def complain(text: str) -> None:
    """Prints a line to stderr, in one write, as other ranks may print there, too."""
    _write(sys.stderr, text + "\n")


def announce_interrupt() -> None:
    """Says what Ctrl-C does, past sys.stderr: a signal handler may come while that is in use."""
    with suppress(OSError):
        os.write(2, b"interrupted: the run is asked to stop; again, to end it at once\n")


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows of cells as a Markdown table under its columns."""
    lines = [columns, *rows]
    head, *body = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([head, "|" + "---|" * len(columns), *body])


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        _discard(stream)


def _discard(stream: TextIO) -> None:
    """Discards what was and will be printed, including what python flushes at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
