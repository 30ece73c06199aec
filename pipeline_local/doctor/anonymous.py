"""Text that may be shown to anyone: without names of hosts and users, and without addresses."""

import getpass
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress

_SAY_NOTHING = {"root", "localhost", ""}
"""Names that half the world has, and that are words of other things, too (`data.root`)."""
_ADDRESS = r"\b(?!127\.)\d{1,3}(?:\.\d{1,3}){3}\b"


def anonymous(text: str) -> str:
    """Return the text with `~` for the home folder and marks for the names of this process."""
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    for name, mark in _names():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", mark, text)
    return re.sub(_ADDRESS, "ADDRESS", text)


def _names() -> Iterator[tuple[str, str]]:
    """Names and what stands in their place, the longer ones first."""
    for host in (socket.gethostname(), os.environ.get("MASTER_ADDR", "")):
        for name in (host, host.partition(".")[0]):
            if name not in _SAY_NOTHING and not name.isdigit():
                yield name, "HOST"
    with suppress(KeyError, OSError):  # a container's user may have no name
        if (user := getpass.getuser()) not in _SAY_NOTHING:
            yield user, "USER"
