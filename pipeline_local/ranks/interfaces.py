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
    here = [name for _, name in socket.if_nameindex() if _has_address(name)]
    value = os.environ.get("GLOO_SOCKET_IFNAME", "")
    names = value.removesuffix(",").split(",") if value else []
    if missing := [name for name in names if name not in here]:
        raise _no_interface("GLOO_SOCKET_IFNAME", value, missing[0], here)
    value = os.environ.get("NCCL_SOCKET_IFNAME", "")
    if nccl and value and not any(_nccl_takes(value, name) for name in here):
        raise _no_interface("NCCL_SOCKET_IFNAME", value, value, here)


def _has_address(name: str) -> bool:
    """Of IPv4 or IPv6; one without, as of a cable that is not plugged in, is of no use."""
    request = struct.pack("256s", name.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, _SIOCGIFADDR, request)
            return True
        except OSError:
            return _has_ipv6(name)


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
