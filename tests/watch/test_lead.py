"""The host is one step ahead of its device at most."""

from contextlib import contextmanager

import pytest
import torch

from pipeline_local.watch.lead import Lead, lead


@pytest.fixture
def stream(monkeypatch):
    """Of a device that is not there; gives the steps whose end the host waits for, in order."""
    ends = []
    waited = []

    class Stream:
        def record_event(self):
            ends.append(self)
            return Event(len(ends))

    class Event:
        def __init__(self, step):
            self.step = step

        def synchronize(self):
            waited.append(self.step)

    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: Stream())
    return waited


def test_a_whole_step_is_queued_while_the_host_waits(stream):
    told = []

    @contextmanager
    def waiting():
        told.append("begin")
        yield
        told.append(stream[-1])

    host = Lead(torch.device("cuda", 0), waiting)
    seen = []
    for _ in range(4):
        host.queued()
        seen.append([*stream])
    assert seen == [[], [1], [1, 2], [1, 2, 3]]
    assert told == ["begin", 1, "begin", 2, "begin", 3]


def test_without_a_device_nothing_is_waited_for(stream):
    host = Lead(torch.device("cpu"), lambda: pytest.fail("a host is its own device"))
    for _ in range(3):
        host.queued()
    assert stream == []


@pytest.mark.parametrize(("kind", "steps"), [("gloo", 0), ("nccl", 1), ("python:own:one", 1)])
def test_only_gloo_is_known_to_block_the_host(kind, steps):
    assert lead(kind) == steps
