"""How the GPUs of a host are linked, and the order in which neighbours have the fastest links."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pipeline_local.gpus.nvml import Handle

MOST_TRIED = 50_000
"""Orders up to which all are considered: all those of eight GPUs."""


@dataclass(frozen=True, order=True)
class GpuLink:
    """The way between two GPUs; the faster one is the greater.

    Attributes:
        nvlinks: the number of NVLinks between them, directly or by switches.
        peer: whether one can read the other's memory without the host's.
        nearness: how near they are on the PCI bus: NVML's level, negative.
        text: what a person calls it.
    """

    nvlinks: int
    peer: bool
    nearness: int
    text: str = field(compare=False, default="")


GpuLinks = tuple[tuple[GpuLink, ...], ...]
"""The link of each pair of GPUs."""


Pairs = Sequence[tuple[int, int]]
"""Ranks of one host that send to each other, by their numbers there."""


def order(links: Sequence[Sequence[Any]], count: int, pairs: Pairs) -> tuple[int, ...]:
    """Returns which GPU each of `count` ranks takes, so that neighbours have the fastest links.

    The slowest link in use is as fast as can be, then the second slowest, and so on. Of equally
    good orders it is the first, so where all links are equal GPUs stay as they are numbered. For
    more than `MOST_TRIED` possible orders, each rank takes the free GPU that is best for it.

    Args:
        links: of each pair of GPUs, anything that can be compared: the faster one is the greater.
        count: ranks of this host, at most as many as GPUs.
        pairs: of ranks that are neighbours.
    """
    return _Search(links, count, pairs).best()


class _Search:
    """A search among orders: depth first, and no further than to what is already too slow."""

    def __init__(self, links: Sequence[Sequence[Any]], count: int, pairs: Pairs) -> None:
        gpus = range(len(links))
        speeds = sorted({links[a][b] for a in gpus for b in gpus if a != b}, reverse=True)
        # a link costs more than all neighbours have of the next faster kind: the slowest decide
        cost = {speed: (len(pairs) + 1) ** level for level, speed in enumerate(speeds)}
        self._cost = [[cost.get(links[a][b], 0) for b in gpus] for a in gpus]
        self._gpus = gpus
        self._before = [[min(pair) for pair in pairs if max(pair) == rank] for rank in range(count)]
        self._to_come = [sum(map(len, self._before[rank:])) for rank in range(count + 1)]
        self._best: tuple[int, ...] = ()
        self._least = math.inf

    def best(self) -> tuple[int, ...]:
        if math.perm(len(self._gpus), len(self._before)) <= MOST_TRIED:
            self._extend((), 0)
            return self._best
        return min((self._nearest(first) for first in self._gpus), key=self._total)

    def _extend(self, path: tuple[int, ...], cost: int) -> None:
        if cost + self._to_come[len(path)] >= self._least:  # each link costs at least one
            return
        if len(path) == len(self._before):
            self._best, self._least = path, cost
            return
        for gpu in self._gpus:
            if gpu not in path:
                self._extend((*path, gpu), cost + self._added(path, gpu))

    def _added(self, path: tuple[int, ...], gpu: int) -> int:
        """What the next rank costs on a GPU, with its neighbours among the earlier ranks."""
        return sum(self._cost[path[other]][gpu] for other in self._before[len(path)])

    def _nearest(self, first: int) -> tuple[int, ...]:
        path: tuple[int, ...] = (first,)
        while len(path) < len(self._before):
            free = [gpu for gpu in self._gpus if gpu not in path]
            added = [self._added(path, gpu) for gpu in free]
            path = (*path, free[added.index(min(added))])
        return path

    def _total(self, path: tuple[int, ...]) -> int:
        return sum(self._added(path[:rank], path[rank]) for rank in range(len(path)))


def read(nvml: Any, handles: Sequence[Handle]) -> GpuLinks:  # noqa: ANN401 (pynvml has no types)
    """Returns the link of each pair of GPUs, as NVML says it.

    Raises:
        pynvml.NVMLError: it does not say how they are connected.
    """
    ends = [_NvLinks(nvml, handle) for handle in handles]
    places = [_place(nvml.nvmlDeviceGetPciInfo(handle)) for handle in handles]

    def link(a: int, b: int) -> GpuLink:
        if a == b:
            return GpuLink(0, False, 0)
        nvlinks = ends[a].to(places[b]) + min(ends[a].switched, ends[b].switched)
        level = nvml.nvmlDeviceGetTopologyCommonAncestor(handles[a], handles[b])
        way = nvml.NVML_P2P_CAPS_INDEX_NVLINK if nvlinks else nvml.NVML_P2P_CAPS_INDEX_READ
        peer = _reaches(nvml, handles[a], handles[b], way)
        return _named(nvlinks if peer else 0, peer, level)

    numbers = range(len(handles))
    return tuple(tuple(link(a, b) for b in numbers) for a in numbers)


class _NvLinks:
    """The active NVLinks of one GPU, by what is at their other ends."""

    def __init__(self, nvml: Any, handle: Handle) -> None:  # noqa: ANN401
        self.switched = 0
        self._places: list[str] = []
        for number in range(nvml.NVML_NVLINK_MAX_LINKS):
            with suppress(nvml.NVMLError):  # it has no such link
                if nvml.nvmlDeviceGetNvLinkState(handle, number) != nvml.NVML_FEATURE_ENABLED:
                    continue
                kind = nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, number)
                self.switched += kind == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
                if kind == nvml.NVML_NVLINK_DEVICE_TYPE_GPU:
                    remote = nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, number)
                    self._places.append(_place(remote))

    def to(self, place: str) -> int:
        """How many go directly to the GPU at a place."""
        return self._places.count(place)


def _place(pci: Any) -> str:  # noqa: ANN401 (pynvml has no types)
    """On the PCI bus; NVML writes it in small letters or capital ones, as bytes or text."""
    found = pci.busId
    text = found.decode() if isinstance(found, bytes) else str(found)
    domain, _, rest = text.lower().partition(":")
    return f"{domain:0>8}:{rest}"


def _reaches(nvml: Any, one: Handle, other: Handle, way: int) -> bool:  # noqa: ANN401
    with suppress(nvml.NVMLError):
        return bool(nvml.nvmlDeviceGetP2PStatus(one, other, way) == nvml.NVML_P2P_STATUS_OK)
    return False


_LEVELS = {
    0: "one board",
    10: "PCIe switch",
    20: "PCIe switches",
    30: "PCIe host bridge",
    40: "one NUMA node",
    50: "between NUMA nodes",
}
"""By NVML_TOPOLOGY_*; nvidia-smi says PIX, PXB, PHB, NODE and SYS from the second on."""


def _named(nvlinks: int, peer: bool, level: int) -> GpuLink:
    if nvlinks:
        return GpuLink(nvlinks, peer, -level, f"NVLink x{nvlinks}")
    through = "" if peer else " without peer access"
    return GpuLink(0, peer, -level, _LEVELS.get(level, f"level {level}") + through)
