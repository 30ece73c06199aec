"""Where a command's words go. Nobody need listen: a run goes on when the pipe is closed, the disk
with its log is full, or its terminal is gone (under nohup: else SIGHUP ends it, as any process)."""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console

WIDTH = 140
"""Columns of a file or a pipe, such as a batch job's log."""


class Screen(Console):
    """A console for tables, as wide as the terminal, where stdout is one or COLUMNS says so."""

    def __init__(self) -> None:
        known = sys.stdout.isatty() or "COLUMNS" in os.environ
        super().__init__(width=None if known else WIDTH)

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 (as rich has it)
        """Print a table or text to stdout, at once."""
        with self.capture() as captured:
            super().print(*objects, **options)
        say(captured.get(), end="")


def say(text: str = "", end: str = "\n") -> None:
    """Print to stdout, at once."""
    _write(sys.stdout, text + end)


def complain(text: str) -> None:
    """A line on stderr; written at once, as other ranks may say something, too."""
    _write(sys.stderr, text + "\n")


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
        _speak_to_nobody(stream)


def _speak_to_nobody(stream: TextIO) -> None:
    """What was and will be printed goes nowhere, python's last flush included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
