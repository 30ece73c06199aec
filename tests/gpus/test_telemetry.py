"""What a GPU is like while it trains: every answer finds its name, and no step waits for one."""

import threading

import pynvml
import pytest
import torch

from pipeline_local.gpus import telemetry
from pipeline_local.gpus.telemetry import Sample, Telemetry, summed_up
from tests.gpus import hosts
from tests.gpus.hosts import FakeNvml, install

GPU = torch.device("cuda", 1)


@pytest.fixture
def nvml(monkeypatch):
    return install(monkeypatch, FakeNvml(hosts.h100()))


@pytest.fixture
def told():
    return []


def test_every_answer_is_a_metric(nvml, told):
    watch = Telemetry(GPU, told.append)
    facts = watch.facts()
    watch.close()
    rates = [facts.pop(f"gpu_nvlink_{way}_bytes_per_second") for way in ("sent", "received")]
    assert min(rates) >= 1024 * 1000, "counters of KiB, over less than a second"
    assert facts == {
        "gpu_memory_bytes": 3 * 2**30,
        "gpu_utilization_percent": 80,
        "gpu_power_watts": 312,
        "gpu_temperature_celsius": 61,
        "gpu_pcie_sent_bytes_per_second": 5_000_000,
        "gpu_pcie_received_bytes_per_second": 5_000_000,
        "gpu_throttling": {"power_cap": 1.0},
    }
    assert not told


def test_only_its_own_thread_asks(nvml, told):
    """The trainer calls `facts`; what that costs does not depend on NVML."""
    watch = Telemetry(GPU, told.append, period=0)
    nvml.callers.clear()
    with nvml.called:
        assert nvml.called.wait_for(lambda: nvml.calls > 30, timeout=60)
    for _ in range(3):
        assert watch.facts()["gpu_power_watts"] == 312
    assert threading.get_ident() not in nvml.callers
    watch.close()
    assert nvml.opened == 0
    assert threading.current_thread().name != "telemetry"
    assert not [thread for thread in threading.enumerate() if thread.name == "telemetry"]


def test_samples_are_summed_up():
    def sample(used, power, heat, *reasons):
        names = ("gpu_memory_bytes", "gpu_power_watts", "gpu_temperature_celsius")
        return Sample(dict(zip(names, (used, power, heat), strict=True)), reasons)

    found = summed_up([sample(1, 100, 70), sample(3, 301, 60, "power_cap"), sample(2, 300, 65)])
    assert found == {
        "gpu_memory_bytes": 2,
        "gpu_power_watts": 234,
        "gpu_temperature_celsius": 70,
        "gpu_throttling": {"power_cap": 0.333},
    }
    assert summed_up([Sample({})]) == {}


def test_between_two_samples_the_newest_stays(nvml, told):
    watch = Telemetry(GPU, told.append, period=3600)
    assert watch.facts() == watch.facts() != {}
    watch.close()


def test_each_sample_is_counted_once(nvml, told, monkeypatch):
    """What was hot and slow in one window is not told again in the next one."""
    asked, goes_on = threading.Semaphore(1), threading.Semaphore(0)
    hot = Sample({"gpu_power_watts": 100, "gpu_temperature_celsius": 90}, ("power_cap",))
    cool = Sample({"gpu_power_watts": 300, "gpu_temperature_celsius": 50}, ())
    samples = iter((hot, cool, cool))

    def read(_):
        goes_on.release()  # the sample before this one is there
        asked.acquire()
        return next(samples)

    def power_and_heat(facts):
        return facts["gpu_power_watts"], facts["gpu_temperature_celsius"]

    monkeypatch.setattr(telemetry.Reader, "read", read)
    watch = Telemetry(GPU, told.append, period=0)
    assert power_and_heat(watch.facts()) == (100, 90)
    asked.release()
    for _ in range(3):
        assert goes_on.acquire(timeout=60)
    second = watch.facts()
    asked.release()
    watch.close()
    assert power_and_heat(second) == (300, 50)
    assert second["gpu_throttling"] == {}


@pytest.mark.parametrize("unknown", list(hosts.ANSWERS))
def test_what_a_gpu_does_not_say_is_left_out(nvml, told, unknown):
    nvml.broken = {unknown: pynvml.NVML_ERROR_NOT_SUPPORTED}
    nvml.broken["nvmlDeviceGetFieldValues"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    watch = Telemetry(GPU, told.append)
    facts = watch.facts()
    watch.close()
    assert len(facts) == (5 if unknown == "nvmlDeviceGetPcieThroughput" else 6)
    assert not told


def test_a_part_of_a_gpu_has_memory_of_its_own(monkeypatch, told):
    """MIG: power, temperature and links are those of the whole GPU."""
    nvml = install(monkeypatch, FakeNvml(hosts.h100()), visible=[0, "part3"])
    asked = {}

    def ask(name):
        def answer(handle, *_):
            asked.setdefault(name, handle)
            return hosts.ANSWERS[name]

        return answer

    for name in hosts.ANSWERS:
        monkeypatch.setattr(nvml, name, ask(name), raising=False)
    Telemetry(GPU, told.append).close()
    own = {name for name, handle in asked.items() if handle == "MIG-part3"}
    assert own == {"nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUtilizationRates"}
    assert {asked[name] for name in asked.keys() - own} == {7}


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_nvml_that_does_not_answer_is_one_line(monkeypatch, told, broken):
    nvml = install(monkeypatch, FakeNvml(hosts.h100(), **{broken: pynvml.NVML_ERROR_UNKNOWN}))
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByPciBusId", nvml.nvmlDeviceGetHandleByUUID)
    monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda _: 5)
    watch = Telemetry(GPU, told.append)
    assert watch.facts() == {"gpu_memory_bytes": 5}, "what torch knows by itself"
    watch.close()
    assert told == ["no telemetry of cuda:1, as NVML does not answer: Unknown Error"]
    assert nvml.opened == 0


def test_without_the_library_there_is_one_line(monkeypatch, told):
    install(monkeypatch, None)
    monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda _: 5)
    watch = Telemetry(GPU, told.append)
    watch.close()
    assert len(told) == 1
    assert "pynvml" in told[0]


def test_nvml_that_stops_answering_is_one_line(nvml, told, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda _: 5)
    said = threading.Event()
    watch = Telemetry(GPU, lambda line: (told.append(line), said.set()), period=0)
    nvml.broken = dict.fromkeys(hosts.ANSWERS, pynvml.NVML_ERROR_GPU_IS_LOST)
    assert said.wait(60)
    assert watch.facts() == {"gpu_memory_bytes": 5}
    watch.close()
    assert told == ["no telemetry of cuda:1, as NVML does not answer: GPU is lost"]
    assert nvml.opened == 0


def test_a_cpu_has_nothing_to_say(told):
    watch = Telemetry(torch.device("cpu"), told.append)
    assert watch.facts() == {}
    watch.close()
    assert not told


def test_other_makers_gpus_are_left_to_torch(monkeypatch, told):
    monkeypatch.setattr(torch.version, "cuda", None)  # ROCm calls its devices cuda, too
    monkeypatch.setattr(telemetry, "as_torch_sees", lambda device: {"gpu_memory_bytes": 6})
    watch = Telemetry(GPU, told.append)
    assert watch.facts() == {"gpu_memory_bytes": 6}
    watch.close()
    assert not told
