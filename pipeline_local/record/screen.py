"""Where tables go."""

import os
import sys

from rich.console import Console

WIDTH = 140
"""Columns of a file or a pipe, such as a batch job's log."""


def screen() -> Console:
    """As wide as the terminal, where stdout is one or COLUMNS says so."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else WIDTH)
