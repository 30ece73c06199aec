"""The check of network interfaces: which are there, and which one do ranks talk over?"""

from collections.abc import Iterator

import torch

from pipeline_local.doctor.finding import Finding, passed, warned
from pipeline_local.ranks.interfaces import check_interfaces, gloo_interface, interfaces_here
from pipeline_local.ranks.rank import RankInfo

_LOOPBACK = "lo"


def interfaces() -> Iterator[Finding]:
    """Whether the interfaces that the environment names exist, and which one gloo takes."""
    check_interfaces(nccl=torch.accelerator.is_available())
    names, taken = interfaces_here(), gloo_interface()
    found = f"{', '.join(names)}; gloo takes {taken}"
    others = [name for name in names if name != _LOOPBACK]
    rank_info = RankInfo.from_environment()
    if taken != _LOOPBACK or not others:
        yield passed(found, interfaces=names, gloo=taken)
        return
    remedy = f"set GLOO_SOCKET_IFNAME, such as {others[0]}, on each host"
    if rank_info.world_size > rank_info.local_world_size:
        yield warned(f"{found}, which no other host reaches", remedy, interfaces=names, gloo=taken)
    else:
        shown = f"{found}, enough for one host (for several {remedy})"
        yield passed(shown, interfaces=names, gloo=taken)
