"""The check of network interfaces: which are there, and which one do ranks talk over?"""

from collections.abc import Iterator

import torch

from pipeline_local.doctor.finding import Finding, passed, warned
from pipeline_local.ranks.interfaces import (
    LOOPBACK,
    check_interfaces,
    gloo_interface,
    interfaces_here,
)
from pipeline_local.ranks.rank import RankInfo


def interfaces() -> Iterator[Finding]:
    """Whether the interfaces that the environment names exist, and which one gloo takes."""
    check_interfaces(nccl=torch.accelerator.is_available())
    rank_info = RankInfo.from_environment()
    names, taken = interfaces_here(), gloo_interface(rank_info.first_host)
    found = f"{', '.join(names)}; gloo takes {taken}"
    others = [name for name in names if name != LOOPBACK]
    if taken != LOOPBACK or not others:
        yield passed(found, interfaces=names, gloo=taken)
        return
    remedy = f"set GLOO_SOCKET_IFNAME, such as {others[0]}, on each host"
    if rank_info.world_size > rank_info.local_world_size:
        yield warned(f"{found}, which no other host reaches", remedy, interfaces=names, gloo=taken)
    else:
        shown = f"{found}, enough for one host (on several, the one that leads to the first host)"
        yield passed(shown, interfaces=names, gloo=taken)
