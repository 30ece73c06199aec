"""The network interfaces that the environment names for gloo and nccl: do they exist here?"""

import fcntl
import os
import socket
import struct
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


def gloo_interface() -> str:
    """Returns the interface that gloo takes: what is named, or that of this host's own name.

    Where the name leads to no address of this host, that is the loopback interface.
    """
    if named := os.environ.get("GLOO_SOCKET_IFNAME", ""):
        return named
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:  # the name has no address
        found = []
    own = {_ipv4(name): name for name in interfaces_here()}
    addresses = [str(address[0]) for *_, address in found]
    return next((own[address] for address in addresses if address in own), "lo")


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
