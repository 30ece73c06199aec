"""A slow line between two network namespaces: `python experiments/delay.py A B SECONDS` (as root).

Makes a device `far0` in each (10.8.0.1 in A, 10.8.0.2 in B) and carries every packet from one to
the other, that much later. For kernels without `netem`.
"""

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
MTU = 60000


def tunnel(namespace: str, address: str) -> int:
    """A device in a namespace; what is written to this descriptor, it receives."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(there, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"far0", IFF_TUN | IFF_NO_PI))
    libc.setns(home, CLONE_NEWNET)
    inside = ["ip", "-n", namespace]
    subprocess.run([*inside, "addr", "add", f"{address}/24", "dev", "far0"], check=True)
    subprocess.run([*inside, "link", "set", "far0", "mtu", str(MTU), "up"], check=True)
    subprocess.run([*inside, "link", "set", "far0", "txqueuelen", "10000"], check=True)
    return device


def carry(one: int, other: int, seconds: float) -> None:
    """For ever."""
    target = {one: other, other: one}
    under_way: deque[tuple[float, int, bytes]] = deque()
    while True:
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, device, packet = under_way.popleft()
            os.write(device, packet)
        patience = under_way[0][0] - now if under_way else None
        ready, _, _ = select.select([one, other], [], [], patience)
        for device in ready:
            under_way.append((time.monotonic() + seconds, target[device], os.read(device, 65536)))


if __name__ == "__main__":
    a, b, delay = sys.argv[1:]
    carry(tunnel(a, "10.8.0.1"), tunnel(b, "10.8.0.2"), float(delay))
