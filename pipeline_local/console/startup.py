"""What the seconds before a run are spent on, so that no start is silent: torch takes some to load,
and more where many ranks load it on few cores."""

import threading
import time

from pipeline_local.console.screen import say

SILENCE = 1.9
"""Longest silence of the process that a user has started, in seconds."""
SILENCE_OF_RANKS = 4.0
"""The same of the ranks that it starts; the first of them speaks."""


class Startup:
    """Says what is being done, and again for how long, until it is over.

    Args:
        who: speaks.
        silence: seconds until the same is said again.
    """

    def __init__(self, who: str, silence: float) -> None:
        self._who = who
        self._silence = silence
        self._doing = ""
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._said = self._begun = 0.0

    def at(self, doing: str) -> None:
        """Says what is done from now on."""
        with self._lock:
            first, self._doing = not self._doing, doing
            self._said = self._begun = time.monotonic()
            say(f"{self._who}: {doing}")
        if first:
            threading.Thread(target=self._repeat, name="startup", daemon=True).start()

    def over(self) -> None:
        """Says nothing from now on."""
        with self._lock:
            self._over.set()

    def _repeat(self) -> None:
        while not self._over.wait(self._silence / 20):
            with self._lock:
                now = time.monotonic()
                if now - self._said >= self._silence and not self._over.is_set():
                    self._said = now
                    say(f"{self._who}: still {self._doing} ({now - self._begun:.0f} s)")


_begun: list[Startup] = []
"""That of this process, if a command has begun one."""


def begin(who: str, silence: float) -> None:
    """Begins to say what is done, in this process."""
    _begun.append(Startup(who, silence))


def at(doing: str) -> None:
    """Says what is done from now on, in a process that has begun to say so."""
    for startup in _begun:
        startup.at(doing)


def over() -> None:
    """Says nothing more: the run says what it does, or its ranks do."""
    while _begun:
        _begun.pop().over()
