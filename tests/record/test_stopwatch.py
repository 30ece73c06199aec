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
    for number in range(3):
        side.wait_stream(current)
        with side:
            y = (x * 2).sin().sum()
            done = side.record_event()
        with watch.running():
            current.wait_event(done)
        assert watch.seconds >= 0
        y.record_stream(current)
        y = y + number
    before = watch.seconds
    current.synchronize()
    assert watch.seconds >= before >= 0
    assert watch.seconds > 0
    assert watch.seconds == watch.seconds
