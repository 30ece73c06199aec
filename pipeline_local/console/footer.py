"""Rows that stay at the bottom of a terminal, whoever prints.

They lie below the terminal's scroll region. So the lines of other ranks, of libraries and of
callbacks scroll above them: nothing of those is overwritten, and nothing breaks the rows.
"""

import os
from collections.abc import Sequence
from contextlib import suppress

from pipeline_local.console.screen import height, say, width

ALL_ROWS = "\x1b7\x1b[r\x1b8"
"""Makes the scroll region the whole terminal again, and leaves the cursor where it is."""
_SPARED = 2
"""Rows that the others keep: a scroll region has no fewer."""
_CLEAR_BELOW = "\x1b[J"
_FREE_PLACE, _BACK = "\x1b7\x1b[?7l", "\x1b[?7h\x1b8"
"""Keeps the cursor, and cuts rows that are too long; and the end of both."""


class Footer:
    """The rows of one program; there is only one at a time."""

    def __init__(self) -> None:
        self._rows: Sequence[str] = ()
        self._held = (0, 0, 0)

    def draw(self, rows: Sequence[str]) -> None:
        """Shows these rows in place of those before, as many as there is room for.

        The place is taken anew where the terminal has another size by now.
        """
        lines = height()
        rows = rows[: max(0, lines - _SPARED)]
        before, self._held = self._held, (lines, width(), len(rows))
        place = "" if self._held == before else self._placed(lines, len(rows))
        first = lines - len(rows) + 1
        drawn = "".join(f"\x1b[{first + k};1H\x1b[2K{row}" for k, row in enumerate(rows))
        self._rows = rows
        say(f"{place}{_FREE_PLACE}{drawn}{_BACK}", end="")
        _shown[:] = [self]

    def close(self) -> None:
        """Leaves the rows as the last lines printed; what follows is printed below them."""
        say(self._farewell(), end="")

    def _placed(self, lines: int, count: int) -> str:
        """Frees so many lines at the bottom, and keeps all others out of them."""
        free = "\n" * count + (f"\x1b[{count}A" if count else "")
        return f"{ALL_ROWS}{_CLEAR_BELOW}{free}\x1b7\x1b[1;{lines - count}r\x1b8"

    def _farewell(self) -> str:
        rows, self._rows, self._held = self._rows, (), (0, 0, 0)
        _shown.clear()
        return "".join([ALL_ROWS, _CLEAR_BELOW, *(f"{row}\n" for row in rows)]) if rows else ""


_shown: list[Footer] = []


def leave_terminal() -> None:
    """Closes what is shown, in a process that ends at once.

    It is written past sys.stdout, whose lock a thread that hangs may hold.
    """
    for footer in [*_shown]:
        with suppress(OSError):
            os.write(1, footer._farewell().encode(errors="replace"))
