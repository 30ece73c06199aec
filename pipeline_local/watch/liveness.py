"""Liveness links: a connection of every rank to the first, which breaks when its process dies.

A heartbeat alone cannot tell a dead process from a stopped one; a connection can: the kernel closes
it with its process, keeps it while the process is merely stopped, and finds out by keepalive probes
within a few seconds when the host itself is gone.
"""

import json
import secrets
import selectors
import socket
from dataclasses import dataclass, field

from pipeline_local.user_input.json_text import Facts

CONNECT_SECONDS = 5.0
"""Longest time to connect to the first rank, and to send one message."""

_PROBES = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 4000}
"""TCP options, in seconds, seconds, a count and milliseconds."""


@dataclass(frozen=True)
class LivenessEvent:
    """A message over a liveness link, or the end of the link.

    Attributes:
        rank: the rank at the other end.
        facts: its message; None if the connection broke without a goodbye, so the rank is dead.
    """

    rank: int
    facts: Facts | None


@dataclass(eq=False)
class _Connection:
    """One end of a connection; `rank` is None until a new connection has sent its rank."""

    socket: socket.socket
    rank: int | None = None
    unread: bytearray = field(default_factory=bytearray)

    def read(self) -> list[Facts] | None:
        """Returns the messages that have arrived; None once the connection is closed or broken."""
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
        except (ValueError, TypeError):  # another program has connected to the port
            return None

    def write(self, facts: Facts) -> None:
        """Sends a message; a broken connection is noticed by the reader."""
        try:
            self.socket.sendall(json.dumps(facts).encode() + b"\n")
        except OSError:
            return


class LivenessLinks:
    """This rank's ends: the first rank has one for every other rank, the others one to the first.

    Made by `host` or `join`. Only one thread may call `events`; any may call `broadcast` and
    `wake`.
    """

    def __init__(self, server: socket.socket | None = None) -> None:
        self._token = secrets.token_hex(16)
        self._selector = selectors.DefaultSelector()
        self._links: set[_Connection] = set()
        self._server = server
        self._waker, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, self._woken)
        if server is not None:
            server.setblocking(False)
            self._selector.register(server, selectors.EVENT_READ, server)

    @classmethod
    def host(cls, count: int) -> "LivenessLinks":
        """Opens the first rank's port for `count` other ranks."""
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
        """The port and the token that the other ranks need to join."""
        assert self._server is not None
        return {"port": self._server.getsockname()[1], "token": self._token}

    @classmethod
    def join(cls, host: str, address: Facts, rank: int) -> "LivenessLinks":
        """Connects this rank to the first; if that is impossible, there is no link and no error."""
        links = cls()
        try:
            connection = socket.create_connection((host, address["port"]), CONNECT_SECONDS)
        except OSError:
            return links
        link = links._add(connection, 0)
        link.write({"rank": rank, "token": address["token"]})
        return links

    def events(self, seconds: float) -> list[LivenessEvent]:
        """Returns what was received, after waiting up to `seconds` for something to arrive."""
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
        """Ends a wait in `events`."""
        self._waker.send(b"!")

    def broadcast(self, facts: Facts) -> None:
        """Sends a message over all links."""
        for link in list(self._links):
            if link.rank is not None:
                link.write(facts)

    def close(self) -> None:
        """Says goodbye and closes the links, so that their end does not count as a death."""
        self.broadcast({"left": True})
        for link in list(self._links):
            self._drop(link)
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

    def _add(self, connection: socket.socket, rank: int | None) -> _Connection:
        connection.settimeout(CONNECT_SECONDS)
        _probe(connection)
        link = _Connection(connection, rank)
        self._links = self._links | {link}
        self._selector.register(connection, selectors.EVENT_READ, link)
        return link

    def _drop(self, link: _Connection) -> None:
        self._selector.unregister(link.socket)
        link.socket.close()
        self._links = self._links - {link}

    def _read(self, link: _Connection) -> list[LivenessEvent]:
        messages = link.read()
        if messages is None:
            self._drop(link)
            return [] if link.rank is None else [LivenessEvent(link.rank, None)]
        if link.rank is None and messages:
            hello = messages.pop(0)
            if hello.get("token") != self._token:
                self._drop(link)
                return []
            link.rank = hello["rank"]
        rank = link.rank
        if rank is None:
            return []
        if any("left" in facts for facts in messages):
            self._drop(link)
        return [LivenessEvent(rank, facts) for facts in messages]


def _probe(connection: socket.socket) -> None:
    """Makes TCP notice within about four seconds that the other host is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PROBES.items():
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
