"""Where ranks meet."""

import random
import socket


def free_port() -> int:
    """A port below those that Linux gives to outgoing connections: one of those could be taken by
    another test before the ranks listen at it."""
    while True:
        port = random.SystemRandom().randint(20_000, 32_000)
        with socket.socket() as s:
            try:
                s.bind(("localhost", port))
            except OSError:
                continue
            return port
