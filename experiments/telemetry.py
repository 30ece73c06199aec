"""What a sample of NVML costs a step: `PYTHONPATH=. python experiments/telemetry.py`.

Trains a module on a CPU in turns: without telemetry, with a sample each second as in a run, and
with samples one after the other. NVML is the tests' fake, which sleeps for 20 ms in each of the
two questions about PCIe, outside of Python's lock, as NVML does. Prints by how much a step takes
longer than in the same round's turn without: the median, and the range that 95 % of resampled
medians lie in, of time on the clock and of the time that the process spends on CPUs. Also the
time on a CPU of a sample itself.
"""

import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from statistics import median, quantiles
from typing import ClassVar

import pytest
import torch
from torch import nn

from pipeline_local import LocalModule, Rules, Step
from pipeline_local.gpus import telemetry
from pipeline_local.gpus.telemetry import PERIOD, Reader, Sample
from pipeline_local.learning.tasks.classification import Classification
from tests.gpus.hosts import FakeNvml, h100, install

TURNS = {"none": None, "each second": PERIOD, "one after the other": 0.0}
ROUNDS = 60
"""Each has every turn once, in an order of its own."""
SECONDS = 4.0
"""Of a turn."""


class Sleeping(FakeNvml):
    """Answers about PCIe as late as NVML does."""

    def _answer(self, name: str) -> object:
        time.sleep(0.02 if name == "nvmlDeviceGetPcieThroughput" else 0.0)
        return super()._answer(name)


class Timed(Reader):
    """Notes the seconds on a CPU of each sample."""

    seconds: ClassVar[list[float]] = []

    def read(self) -> Sample:
        """Return what NVML says now."""
        begin = time.thread_time()
        sample = super().read()
        self.seconds.append(time.thread_time() - begin)
        return sample


@contextmanager
def watched(nvml: Sleeping, period: float) -> Iterator[None]:
    """A context in which a thread asks NVML."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch, nvml)
        patch.setattr(telemetry, "Reader", Timed)
        watch = telemetry.Telemetry(torch.device("cuda", 1), print, period)
    with closing(watch):
        yield


def turn(module: LocalModule, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Seconds of a step, on the clock and on CPUs."""
    count, begin, spent = 0, time.monotonic(), time.process_time()
    while time.monotonic() - begin < SECONDS:
        step = Step(count, lr=0.001)
        module(x, y, step)
        module.signal()
        module.learn()
        module.update(step)
        count += 1
    return (time.monotonic() - begin) / count, (time.process_time() - spent) / count


def main() -> None:
    """Print a line for each way to sample."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    module = LocalModule(0, body, head, torch.optim.SGD, Rules(task=Classification(10)))
    x, y = torch.randn(16, 16, 32, 32), torch.randint(10, (16,))
    turn(module, x, y)
    nvml, samples = Sleeping(h100()), dict.fromkeys(TURNS, 0)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in TURNS}
    for _ in range(ROUNDS):
        for name in random.sample(list(TURNS), len(TURNS)):
            period, before = TURNS[name], len(Timed.seconds)
            with nullcontext() if period is None else watched(nvml, period):
                found[name].append(turn(module, x, y))
            samples[name] += len(Timed.seconds) - before
    clock, cpu = (1000 * median(own) for own in zip(*found["none"], strict=True))
    print(f"a step takes {clock:.1f} ms, {cpu:.1f} ms of them on a CPU; {ROUNDS} rounds")
    print(f"a sample takes {1000 * median(Timed.seconds):.2f} ms of a CPU")
    for name in list(TURNS)[1:]:
        rate = f"{samples[name] / ROUNDS / SECONDS:.1f} samples a second"
        for kind, what in enumerate(("clock", "CPUs")):
            pairs = zip(found[name], found["none"], strict=True)
            longer = [100 * (own[kind] / plain[kind] - 1) for own, plain in pairs]
            medians = [median(random.choices(longer, k=ROUNDS)) for _ in range(2000)]
            low, *_, high = quantiles(medians, n=40)
            print(f"{rate}, {what}: {median(longer):+.2f} % ({low:+.2f} to {high:+.2f})")


if __name__ == "__main__":
    main()
