"""Seconds, by the host's clock or by a device's events."""

import time

import pytest
import torch

from pipeline_local.record.stopwatch import Stopwatch


def test_on_a_cpu_the_hosts_clock_counts():
    watch = Stopwatch()
    for _ in range(2):
        with watch.running():
            time.sleep(0.01)
    time.sleep(0.01)
    seconds = watch.seconds
    assert seconds >= 0.02
    assert watch.seconds == seconds


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_stream_that_waits_counts():
    """The host goes on at once."""
    device = torch.device(torch.accelerator.current_accelerator().type, 0)
    current, side = torch.accelerator.current_stream(device), torch.Stream(device)
    watch, x = Stopwatch(device), torch.ones(1 << 22, device=device)
    for _ in range(3):
        side.wait_stream(current)
        with side:
            y = (x * 2).sum()
            if device.type == "cuda":
                torch.cuda._sleep(10**8)  # cycles, some 50 ms
            done = side.record_event()
        with watch.running():
            current.wait_event(done)
        if device.type != "cuda":
            time.sleep(0.05)  # a simulated one sees the event when somebody asks for what follows
        y.record_stream(current)
        x.add_(1)
    current.synchronize()
    assert watch.seconds >= 0.06
    assert watch.seconds == watch.seconds
