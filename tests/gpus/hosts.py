"""Hosts of eight GPUs, and a pynvml that replays their answers."""

# ruff: noqa: N802 (names as NVML has them)
import sys
import threading
from types import SimpleNamespace

import pynvml
import torch

PIX, PXB, PHB, NODE, SYS = 10, 20, 30, 40, 50
"""As `nvidia-smi topo -m` writes NVML's levels."""


def bus(number):
    return f"{0x1000 + number:08X}:0{number}:00.0"


class Host:
    """What NVML says of a host.

    Args:
        switched: NVLinks from every GPU to the switches.
        direct: NVLinks between two GPUs, by the pair.
        level: of the PCI bus, for any two GPUs.
        refused: P2P capabilities that no pair has.
    """

    def __init__(self, level, switched=0, direct=None, refused=()):
        self.count = 8
        self.level = level
        self.refused = refused
        self.ends = {number: ["switch"] * switched for number in range(self.count)}
        for (a, b), links in (direct or {}).items():
            self.ends[a] += [b] * links
            self.ends[b] += [a] * links


def halves(a, b):
    return NODE if a // 4 == b // 4 else SYS


def h100():
    """HGX H100: 18 links of each GPU go to four NVSwitches."""
    return Host(halves, switched=18)


def dgx1():
    """DGX-1 with V100: the hybrid cube mesh, with one or two links between some of the GPUs."""
    single = [(0, 1), (0, 2), (1, 3), (2, 6), (3, 7), (4, 5), (4, 6), (5, 7)]
    double = [(0, 3), (0, 4), (1, 2), (1, 5), (2, 3), (4, 7), (5, 6), (6, 7)]
    links = dict.fromkeys(single, 1) | dict.fromkeys(double, 2)

    def level(a, b):
        return PIX if a // 2 == b // 2 else PHB if a // 4 == b // 4 else SYS

    return Host(level, direct=links)


def bridges():
    """A PCIe host: pairs with an NVLink bridge that are no neighbours by number, two sockets."""
    return Host(halves, direct=dict.fromkeys([(0, 3), (1, 2), (4, 7), (5, 6)], 4))


def pcie():
    """Neither NVLinks nor peer access, as with consumer GPUs: pairs share a PCIe switch."""

    def level(a, b):
        return PIX if {a, b} in ({0, 2}, {1, 3}, {4, 6}, {5, 7}) else halves(a, b)

    return Host(level, refused=(pynvml.NVML_P2P_CAPS_INDEX_READ,))


ANSWERS = {
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3 * 2**30),
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=80),
    "nvmlDeviceGetPowerUsage": 312_400,
    "nvmlDeviceGetTemperature": 61,
    "nvmlDeviceGetPcieThroughput": 5_000,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4 | 0x1,
}


class FakeNvml:
    """Stands for the module pynvml. A handle is the number of a GPU, or the UUID of a part.

    Args:
        host: of which it tells.
        broken: functions that raise, by the number of the error.
    """

    def __init__(self, host, **broken):
        self.host = host
        self.broken = broken
        self.answers = dict(ANSWERS)
        self.callers = set()
        self.opened = 0
        self.nvlink_kib = 0
        self.calls = 0
        self.called = threading.Condition()

    def __getattr__(self, name):
        if not name.startswith("nvmlDevice"):
            return getattr(pynvml, name)  # constants and errors
        if name not in self.answers:
            raise AssertionError(f"{name} is not replayed")
        return lambda handle, *_: self._answer(name)

    def _answer(self, name):
        self.callers.add(threading.get_ident())
        self._refuse(name)
        with self.called:
            self.calls += 1
            self.called.notify_all()
        return self.answers[name]

    def _refuse(self, name):
        if name in self.broken:
            raise pynvml.NVMLError(self.broken[name])

    def nvmlInit(self):
        self._refuse("nvmlInit")
        self.opened += 1

    def nvmlShutdown(self):
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self):
        return "580.65.06"

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self._refuse("nvmlDeviceGetHandleByUUID")
        kind, number = uuid.split("-")
        if kind == "GPU" and number.isdecimal():
            return int(number)
        if kind == "MIG" and number.startswith("part"):
            return uuid
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetHandleByPciBusId(self, place):
        return next(n for n in range(self.host.count) if bus(n).lower() == place)

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle):
        if isinstance(handle, int):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return 7

    def nvmlDeviceGetPciInfo(self, handle):
        return SimpleNamespace(busId=bus(handle))

    def nvmlDeviceGetNvLinkState(self, handle, link):
        if link >= len(self.host.ends[handle]):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return pynvml.NVML_FEATURE_ENABLED

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle, link):
        switch = self.host.ends[handle][link] == "switch"
        return (
            pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH if switch else pynvml.NVML_NVLINK_DEVICE_TYPE_GPU
        )

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle, link):
        short = bus(self.host.ends[handle][link])[4:].encode()  # of four digits, as NVML has both
        return SimpleNamespace(busId=short)

    def nvmlDeviceGetTopologyCommonAncestor(self, one, other):
        self._refuse("nvmlDeviceGetTopologyCommonAncestor")
        return self.host.level(one, other)

    def nvmlDeviceGetP2PStatus(self, one, other, way):
        refused = way in self.host.refused
        return pynvml.NVML_P2P_STATUS_NOT_SUPPORTED if refused else pynvml.NVML_P2P_STATUS_OK

    def nvmlDeviceGetFieldValues(self, handle, fields):
        self._refuse("nvmlDeviceGetFieldValues")
        self.nvlink_kib += 1000
        known = (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,)
        known += (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX,)
        assert all(scope == 2**32 - 1 for _, scope in fields)
        return [
            SimpleNamespace(
                nvmlReturn=0 if number in known else pynvml.NVML_ERROR_NOT_SUPPORTED,
                value=SimpleNamespace(ullVal=self.nvlink_kib),
            )
            for number, _ in fields
        ]


def install(monkeypatch, nvml, visible=range(8)):
    """Torch sees these GPUs of the fake's host, in this order; numbers, or UUIDs of parts."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: len(visible))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    places = [n if isinstance(n, int) else 7 for n in visible]
    found = [
        SimpleNamespace(
            uuid=f"{number}",
            pci_domain_id=0x1000 + place,
            pci_bus_id=place,
            pci_device_id=0,
        )
        for number, place in zip(visible, places, strict=True)
    ]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: found[torch.device(d).index])
    return nvml
