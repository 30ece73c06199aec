"""What a command prints. A run goes on when nothing can be printed: the pipe is closed, the disk
with its log is full, or the terminal is gone (under nohup; else SIGHUP ends it)."""

import io
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

WIDTH = 140
"""The columns of what does not say how wide it is, such as a batch job's log."""
ROWS = 24
"""The rows of a terminal that does not say how many it has."""
_FOR_LINES = 100
"""Columns from which on tables have lines; below, their text needs all of them."""
NARROWEST = 40
"""Columns; containers and editors that know none say 0 or 1, and a table would have no text."""


def is_terminal() -> bool:
    """Whether stdout is one; a notebook, or a program that takes what is printed, has put its own
    object there."""
    try:
        return bool(sys.stdout.isatty())
    except (AttributeError, ValueError):  # not a file, none at all, or closed
        return False


def draws() -> bool:
    """Whether stdout is a terminal on which rows can be drawn again."""
    return is_terminal() and os.environ.get("TERM") != "dumb"


def width(least: int = NARROWEST) -> int:
    """The columns that COLUMNS or the terminal has; `WIDTH` where neither has at least so many."""
    said = os.environ.get("COLUMNS", "").strip()
    known = int(said) if said.isdecimal() and len(said) < 6 else 0
    if known < least and is_terminal():
        with suppress(OSError, ValueError):
            known = os.get_terminal_size(sys.stdout.fileno()).columns
    return known if known >= least else WIDTH


def height() -> int:
    """The rows that the terminal has; `ROWS` where it does not say."""
    known = 0
    with suppress(AttributeError, OSError, ValueError):  # no terminal, or none at all
        known = os.get_terminal_size(sys.stdout.fileno()).lines
    return known if known > 1 else ROWS


class Screen(Console):
    """A console for tables, as wide as `width` says."""

    def __init__(self) -> None:
        shows = is_terminal() or None  # None: rich looks for what forces it, such as FORCE_COLOR
        # with a height, too, or rich asks TERM; a notebook's cell gets text, as from any program
        super().__init__(
            file=io.StringIO(),
            width=width(),
            height=25,
            force_terminal=shows,
            force_jupyter=False,
        )

    @property
    def encoding(self) -> str:
        """That of stdout, by which the lines of a table are chosen."""
        return str(getattr(sys.stdout, "encoding", None) or "utf-8").lower()

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 (as rich has it)
        """Prints a table or text to stdout, at once."""
        say(self.drawn(*objects, **options), end="")

    def sentence(self, text: str) -> None:
        """Prints text as a line, which on a terminal is broken between words only."""
        self.print(text, soft_wrap=not is_terminal(), highlight=False, markup=False)

    def drawn(self, *objects: Any, **options: Any) -> str:  # noqa: ANN401
        """The text of a table, with the terminal's colours if it has some."""
        with self.capture() as captured:
            super().print(*objects, **options)
        return captured.get()


def new_table(title: str = "") -> Table:
    """Returns an empty table, with lines where there is room for them."""
    table = Table(title=title or None, title_justify="left")
    if width() < _FOR_LINES:
        table.box, table.padding, table.pad_edge = None, (0, 1, 0, 0), False
        table.title = f"\n{title}" if title else None
    return table


def say(text: str = "", end: str = "\n") -> None:
    """Prints text to stdout, at once."""
    _write(sys.stdout, text + end)


def complain(text: str) -> None:
    """Prints a line to stderr, in one write, as other ranks may print there, too."""
    _write(sys.stderr, text + "\n")


def warn(*lines: str) -> None:
    """Prints warnings to stderr, one line each."""
    for line in lines:
        complain(f"warning: {line}")


def announce_interrupt() -> None:
    """Says what Ctrl-C does, past sys.stderr: a signal handler may come while that is in use."""
    with suppress(OSError):
        os.write(2, b"interrupted: the run is asked to stop; again, to end it at once\n")


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows of cells as a Markdown table under its columns."""
    lines = [columns, *rows]
    head, *body = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([head, "|" + "---|" * len(columns), *body])


def _write(stream: TextIO | None, text: str) -> None:
    try:
        _write_encoded(stream, text)
    except OSError:
        _discard(stream)
    except (AttributeError, ValueError):  # no stream, or it is closed: nobody listens
        return


def _write_encoded(stream: Any, text: str) -> None:  # noqa: ANN401 (whatever stands there)
    """With marks in place of the letters that the stream's encoding does not have."""
    try:
        stream.write(text)
    except UnicodeEncodeError as error:
        stream.write(text.encode(error.encoding, "replace").decode(error.encoding))
    stream.flush()


def _discard(stream: TextIO | None) -> None:
    """Discards what was and will be printed, including what python flushes at exit."""
    with suppress(OSError, AttributeError, ValueError):  # it may have no file
        number = stream.fileno()  # type: ignore[union-attr]
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
