"""An emulated terminal."""

import pyte


class Terminal:
    """An emulated terminal, which shows what is printed.

    Args:
        columns: its width.
        lines: its height.
    """

    def __init__(self, columns, lines):
        self.screen = pyte.HistoryScreen(columns, lines)
        self._stream = pyte.Stream(self.screen)

    def take(self, text):
        """As a terminal's driver passes it on."""
        self._stream.feed(text.replace("\n", "\r\n"))

    @property
    def rows(self):
        """All rows that are shown, without those that are empty."""
        return [row for row in map(str.rstrip, self.screen.display) if row]

    @property
    def history(self):
        """The rows that have left it at the top."""
        top = self.screen.history.top
        return ["".join(row[k].data for k in range(len(row))).rstrip() for row in top]
