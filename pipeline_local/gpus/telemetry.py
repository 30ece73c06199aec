"""What a rank's GPU is like while it trains: a thread asks NVML once a second."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch

from pipeline_local.errors import first_line
from pipeline_local.gpus import nvml
from pipeline_local.user_input.json_text import Facts

PERIOD = 1.0
"""Seconds from one sample to the next. A sample takes 40 ms and more, most of it in NVML, which
lets other threads run."""


@dataclass(frozen=True)
class Sample:
    """What NVML has said at one time; what it does not say of this GPU is absent.

    Attributes:
        numbers: by the names that metrics have for them.
        throttling: the reasons for which clocks are lower than they could be.
    """

    numbers: dict[str, float]
    throttling: tuple[str, ...] | None = None


class Telemetry:
    """Watches the GPU of one rank, until it is closed. No step waits for NVML.

    On a CPU it has nothing to say. Of other makers' devices, and where NVML does not answer, it
    says what torch knows.

    Args:
        device: of the rank.
        notice: takes a line that says why NVML cannot be asked.
        period: seconds from one sample to the next.
    """

    def __init__(
        self, device: torch.device, notice: Callable[[str], None], period: float = PERIOD
    ) -> None:
        self._device = device
        self._notice = notice
        self._samples: list[Sample] = []
        self._newest: Sample | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._stack = ExitStack()
        self._thread: threading.Thread | None = None
        if not nvml.knows(device):
            return
        try:
            reader = Reader(self._stack.enter_context(nvml.opened()), device)
            self._samples.append(reader.read())
        except Exception as error:  # whatever a driver does, the run goes on
            self._give_up(error)
            return
        self._thread = threading.Thread(
            target=self._watch, args=(reader, period), name="telemetry", daemon=True
        )
        self._thread.start()

    def facts(self) -> Facts:
        """Returns what has been seen since the last call, or the newest sample."""
        with self._lock:
            seen, self._samples = self._samples, []
            self._newest = seen[-1] if seen else self._newest
            seen = seen or ([self._newest] if self._newest is not None else [])
        return summed_up(seen) if seen else as_torch_sees(self._device)

    def close(self) -> None:
        """Ends the watch."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)  # a driver that hangs must not hold up the end
            if self._thread.is_alive():
                return
        with suppress(nvml.NoAnswerError):
            self._stack.close()

    def _watch(self, reader: "Reader", period: float) -> None:
        while not self._over.wait(period):
            try:
                sample = reader.read()
            except Exception as error:
                self._give_up(error)
                return
            with self._lock:
                self._samples.append(sample)

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            self._samples, self._newest = [], None
        why = first_line(error)
        self._notice(f"no telemetry of {self._device}, as NVML does not answer: {why}")


def as_torch_sees(device: torch.device) -> Facts:
    """Returns memory in use (bytes) and, if known, utilisation (percent); {} on a CPU."""
    if device.type == "cpu":
        return {}
    facts: Facts = {"gpu_memory_bytes": torch.accelerator.memory_reserved(device)}
    driver = torch.get_device_module(device)
    with suppress(Exception):  # no library of its maker, or none for a part of a GPU
        facts["gpu_memory_bytes"] = driver.device_memory_used(device)
        facts["gpu_utilization_percent"] = driver.utilization(device)
    return facts


def summed_up(samples: Sequence[Sample]) -> Facts:
    """Returns the metrics of some samples, in the order of time.

    Memory is the newest, temperature the highest, all other numbers are means. Throttling is the
    part of the samples that had each reason.
    """
    facts: Facts = {}
    for name in dict.fromkeys(name for sample in samples for name in sample.numbers):
        values = [sample.numbers[name] for sample in samples if name in sample.numbers]
        kind = _KINDS.get(name, _mean)
        facts[name] = kind(values)
    lists = [sample.throttling for sample in samples if sample.throttling is not None]
    if lists:
        reasons = Counter(reason for found in lists for reason in found)
        facts["gpu_throttling"] = {
            reason: round(count / len(lists), 3) for reason, count in sorted(reasons.items())
        }
    return facts


def _mean(values: list[float]) -> int:
    return round(sum(values) / len(values))


def _newest(values: list[float]) -> float:
    return values[-1]


_KINDS: dict[str, Callable[[list[float]], float]] = {
    "gpu_memory_bytes": _newest,
    "gpu_temperature_celsius": max,
}


class Reader:
    """Asks NVML about one GPU, or about a part of it (MIG), of which memory is its own.

    Args:
        module: pynvml, initialised.
        device: of torch.
    """

    def __init__(self, module: Any, device: torch.device) -> None:  # noqa: ANN401
        self._nvml = module
        self._own = nvml.handle_of(module, device)
        self._whole = nvml.whole(module, self._own)
        self._before = time.monotonic(), self._nvlink_bytes()

    def read(self) -> Sample:
        """Returns what NVML says now.

        Raises:
            pynvml.NVMLError: it says nothing at all.
        """
        numbers: dict[str, float] = {}
        refusal: Exception | None = None
        for name, number in self._questions().items():
            try:
                numbers[name] = number()
            except self._nvml.NVMLError as error:  # this kind of GPU does not tell
                refusal = error
        if refusal is not None and not numbers:
            raise refusal
        return Sample(numbers | self._nvlink_rates(), self._throttling())

    def _questions(self) -> dict[str, Callable[[], float]]:
        ask, own, gpu = self._nvml, self._own, self._whole
        return {
            "gpu_memory_bytes": lambda: ask.nvmlDeviceGetMemoryInfo(own).used,
            "gpu_utilization_percent": lambda: ask.nvmlDeviceGetUtilizationRates(own).gpu,
            "gpu_power_watts": lambda: ask.nvmlDeviceGetPowerUsage(gpu) / 1000,
            "gpu_temperature_celsius": lambda: ask.nvmlDeviceGetTemperature(
                gpu, ask.NVML_TEMPERATURE_GPU
            ),
            "gpu_pcie_sent_bytes_per_second": lambda: self._pcie(ask.NVML_PCIE_UTIL_TX_BYTES),
            "gpu_pcie_received_bytes_per_second": lambda: self._pcie(ask.NVML_PCIE_UTIL_RX_BYTES),
        }

    def _pcie(self, direction: int) -> int:
        """NVML counts for 20 ms, in which it keeps this thread waiting, and says KB per second."""
        return 1000 * int(self._nvml.nvmlDeviceGetPcieThroughput(self._whole, direction))

    def _throttling(self) -> tuple[str, ...] | None:
        try:
            bits = self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._whole)
        except self._nvml.NVMLError:
            return None
        return tuple(name for bit, name in _REASONS.items() if bits & bit)

    def _nvlink_rates(self) -> dict[str, float]:
        """Since the last call; {} where there are no NVLinks."""
        (then, before), now = self._before, time.monotonic()
        counted = self._nvlink_bytes()
        self._before = now, counted
        names = ("gpu_nvlink_sent_bytes_per_second", "gpu_nvlink_received_bytes_per_second")
        return {
            name: (new - old) / max(now - then, 1e-9)
            for name, old, new in zip(names, before, counted, strict=False)
        }

    def _nvlink_bytes(self) -> tuple[int, ...]:
        """Sent and received so far by all NVLinks together: by the counters of Hopper and older
        GPUs, else by those of newer ones."""
        ask = self._nvml
        kinds = (
            (ask.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, ask.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX),
            (ask.NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES, ask.NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES),
        )
        for fields, unit in zip(kinds, (1024, 1), strict=True):
            with suppress(ask.NVMLError):
                found = ask.nvmlDeviceGetFieldValues(self._whole, [(n, _ALL) for n in fields])
                if all(value.nvmlReturn == ask.NVML_SUCCESS for value in found):
                    return tuple(unit * int(value.value.ullVal) for value in found)
        return ()


_ALL = 2**32 - 1
"""The scope of a counter that adds up all links."""
_REASONS = {
    0x4: "power_cap",
    0x8: "hardware_slowdown",
    0x10: "sync_boost",
    0x20: "software_thermal",
    0x40: "hardware_thermal",
    0x80: "power_brake",
    0x200: "board_limit",
    0x400: "reliability",
}
"""Names of nvmlClocksEventReason*; an idle GPU and clocks that a user has set are no reasons."""
