"""Lifelines: a connection of every rank with the first, which breaks the moment a process dies.

A heartbeat alone cannot tell a dead process from a stopped one; a connection can: the kernel closes
it with its process, keeps it while the process is merely stopped, and finds out by keepalive probes
within a few seconds when the host itself is gone.
"""

import json
import secrets
import selectors
import socket
from dataclasses import dataclass, field
from typing import Any

Facts = dict[str, Any]

CONNECT_SECONDS = 5.0

_PROBES = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 4000}
"""Seconds, seconds, a count, milliseconds."""


@dataclass(frozen=True)
class LivenessEvent:
    """What came over a lifeline.

    Attributes:
        rank: at its other end.
        facts: its message; None: the connection broke without a farewell, so the rank is dead.
    """

    rank: int
    facts: Facts | None


@dataclass(eq=False)
class _Line:
    """One end of a connection; `rank` is None until a newcomer has said who it is."""

    socket: socket.socket
    rank: int | None = None
    unread: bytearray = field(default_factory=bytearray)

    def read(self) -> list[Facts] | None:
        """The messages that have arrived since; None once the connection is closed or broken."""
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, rest = (bytes(self.unread) + data).split(b"\n")
        self.unread = bytearray(rest)
        try:
            return [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError):  # a stranger knocks at the port
            return None

    def write(self, facts: Facts) -> None:
        """Send a message; a broken connection is noticed by the reader."""
        try:
            self.socket.sendall(json.dumps(facts).encode() + b"\n")
        except OSError:
            return


class LivenessLinks:
    """This rank's ends: the first rank has one with everybody, everybody else one with the first.

    Made by `host` or `join`. `news` belongs to one thread; `tell` and `wake` to any.
    """

    def __init__(self, server: socket.socket | None = None) -> None:
        self._token = secrets.token_hex(16)
        self._selector = selectors.DefaultSelector()
        self._lines: set[_Line] = set()
        self._server = server
        self._waker, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, self._woken)
        if server is not None:
            server.setblocking(False)
            self._selector.register(server, selectors.EVENT_READ, server)

    @classmethod
    def host(cls, count: int) -> "LivenessLinks":
        """Open the first rank's port for `count` others."""
        if socket.has_dualstack_ipv6():
            family, dualstack = socket.AF_INET6, True
        else:
            family, dualstack = socket.AF_INET, False
        server = socket.create_server(
            ("", 0), family=family, backlog=count + 16, dualstack_ipv6=dualstack
        )
        return cls(server)

    @property
    def address(self) -> Facts:
        """What the others need to join: port and token."""
        assert self._server is not None
        return {"port": self._server.getsockname()[1], "token": self._token}

    @classmethod
    def join(cls, host: str, address: Facts, rank: int) -> "LivenessLinks":
        """Connect this rank with the first; without a way through, there simply is no lifeline."""
        lines = cls()
        try:
            connection = socket.create_connection((host, address["port"]), CONNECT_SECONDS)
        except OSError:
            return lines
        line = lines._add(connection, 0)
        line.write({"rank": rank, "token": address["token"]})
        return lines

    def news(self, seconds: float) -> list[LivenessEvent]:
        """What has happened, waiting up to `seconds` for something to happen."""
        found: list[LivenessEvent] = []
        for key, _ in self._selector.select(seconds):
            if key.data is self._woken:
                self._woken.recv(64)
            elif key.data is self._server:
                self._accept()
            else:
                found += self._read(key.data)
        return found

    def wake(self) -> None:
        """End a wait for news."""
        self._waker.send(b"!")

    def tell(self, facts: Facts) -> None:
        """Send a message over all lifelines."""
        for line in list(self._lines):
            if line.rank is not None:
                line.write(facts)

    def close(self) -> None:
        """Take leave: from now on, the connections' end is no death."""
        self.tell({"left": True})
        for line in list(self._lines):
            self._drop(line)
        self._selector.close()
        for end in (self._waker, self._woken, self._server):
            if end is not None:
                end.close()

    def _accept(self) -> None:
        assert self._server is not None
        try:
            connection, _ = self._server.accept()
        except OSError:
            return
        self._add(connection, None)

    def _add(self, connection: socket.socket, rank: int | None) -> _Line:
        connection.settimeout(CONNECT_SECONDS)
        _probe(connection)
        line = _Line(connection, rank)
        self._lines = self._lines | {line}
        self._selector.register(connection, selectors.EVENT_READ, line)
        return line

    def _drop(self, line: _Line) -> None:
        self._selector.unregister(line.socket)
        line.socket.close()
        self._lines = self._lines - {line}

    def _read(self, line: _Line) -> list[LivenessEvent]:
        messages = line.read()
        if messages is None:
            self._drop(line)
            return [] if line.rank is None else [LivenessEvent(line.rank, None)]
        if line.rank is None and messages:
            hello = messages.pop(0)
            if hello.get("token") != self._token:
                self._drop(line)
                return []
            line.rank = hello["rank"]
        rank = line.rank
        if rank is None:
            return []
        if any("left" in facts for facts in messages):
            self._drop(line)
        return [LivenessEvent(rank, facts) for facts in messages]


def _probe(connection: socket.socket) -> None:
    """Find out within about four seconds that the other host is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PROBES.items():
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
