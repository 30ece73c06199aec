"""The network interfaces that gloo and nccl take: do those exist that the environment names?"""

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline_local.errors import UserError


def check_interfaces(nccl: bool = False) -> None:
    """Refuses names of interfaces that this host does not have.

    Such a name comes with the profile of another cluster; gloo and nccl report it as if another
    rank had failed.

    Args:
        nccl: whether that is used, too.

    Raises:
        UserError: GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names no interface of this host.
    """
    here = interfaces_here()
    value = os.environ.get("GLOO_SOCKET_IFNAME", "")
    names = value.removesuffix(",").split(",") if value else []
    if missing := [name for name in names if name not in here]:
        raise _no_interface("GLOO_SOCKET_IFNAME", value, missing[0], here)
    value = os.environ.get("NCCL_SOCKET_IFNAME", "")
    if nccl and value and not any(_nccl_takes(value, name) for name in here):
        raise _no_interface("NCCL_SOCKET_IFNAME", value, value, here)


def interfaces_here() -> list[str]:
    """Returns the names of this host's interfaces that have an address."""
    return [name for _, name in socket.if_nameindex() if _has_address(name)]


def gloo_interface(first: str = "") -> str:
    """Returns the interface that gloo takes: what is named, or that of this host's own name.

    Where the name leads to no address of this host, that is the loopback interface.

    Args:
        first: the address of the first of several hosts: what leads there comes before the name,
            and the loopback interface is no choice where there is one other.
    """
    if named := os.environ.get("GLOO_SOCKET_IFNAME", ""):
        return named
    own = {_ipv4(name): name for name in interfaces_here()}
    candidates = (_own_address_towards(first) if first else []) + _addresses_of_own_name()
    found = [own[address] for address in candidates if address in own]
    if first:
        found = [name for name in found if name != LOOPBACK]
        others = [name for address, name in own.items() if address and name != LOOPBACK]
        if len(others) == 1 and all(each.startswith(("127.", "::1")) for each in candidates):
            found = others
    return next(iter(found), LOOPBACK)


@contextmanager
def towards(first: str) -> Iterator[None]:
    """Lets gloo take the interface on the way to the first host, for the time of the context.

    By itself it takes that of this host's own name, which may lead into another network.

    Args:
        first: the address of the first of several hosts; empty: gloo takes what it likes.
    """
    name = gloo_interface(first)
    if not first or name == LOOPBACK or os.environ.get("GLOO_SOCKET_IFNAME"):
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = name
    try:
        yield
    finally:
        del os.environ["GLOO_SOCKET_IFNAME"]


LOOPBACK = "lo"
"""The interface that leads to this host alone."""


def _addresses_of_own_name() -> list[str]:
    with suppress(OSError):  # the name has no address
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
        return [str(address[0]) for *_, address in found]
    return []


def _own_address_towards(host: str) -> list[str]:
    """The address of this host that another one sees; nothing is sent."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        any_socket.connect((host, _ANY_PORT))
        return [str(any_socket.getsockname()[0])]
    return []


_ANY_PORT = 9


def _has_address(name: str) -> bool:
    """Of IPv4 or IPv6. An interface without one, such as one without a cable, is no use."""
    return _ipv4(name) is not None or _has_ipv6(name)


def _ipv4(name: str) -> str | None:
    request = struct.pack("256s", name.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            return socket.inet_ntoa(fcntl.ioctl(any_socket, _SIOCGIFADDR, request)[20:24])
        except OSError:
            return None


def _has_ipv6(name: str) -> bool:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:  # a system without IPv6, or not Linux
        return False
    return name in (line.split()[-1] for line in lines)


_SIOCGIFADDR = 0x8915


def _nccl_takes(text: str, name: str) -> bool:
    """Prefixes after an optional ^ (all but these) and = (whole names, not prefixes)."""
    excludes = text.startswith("^")
    text = text.removeprefix("^")
    exactly = text.startswith("=")
    names = [each for each in text.removeprefix("=").split(",") if each]
    found = name in names if exactly else any(name.startswith(each) for each in names)
    return found != excludes


def _no_interface(variable: str, value: str, missing: str, here: list[str]) -> UserError:
    return UserError(
        f"{variable}={value}: {missing!r} is no interface with an address of this host, which has"
        f" {', '.join(here)}; unset it or name one of them"
    )
