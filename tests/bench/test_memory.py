"""Peak bytes on a CPU: live storages, counted once each, until they are freed."""

import pytest
import torch

from pipeline_local.bench.memory import Footprint, peak_bytes

CPU = torch.device("cpu")
MEGA = 1000 * 1000 * 4


def test_temporaries_are_freed_and_views_cost_nothing():
    def work():
        a = torch.zeros(1000, 1000)
        b = a + 1
        del a
        c = b * 2
        del b
        assert c.view(-1).shape == (1_000_000,)

    assert peak_bytes(work, CPU) == 2 * MEGA


def test_what_backward_needs_stays_alive():
    weights = [torch.zeros(1000, 1000, requires_grad=True) for _ in range(4)]

    def forward(grad):
        def work():
            with torch.set_grad_enabled(grad):
                x = torch.ones(1000, 1000)
                for weight in weights:
                    x = (x * weight).exp()

        return work

    assert peak_bytes(forward(grad=False), CPU) == 3 * MEGA  # x, the product, its exponential
    assert peak_bytes(forward(grad=True), CPU) == 6 * MEGA  # four exponentials, x, one product


def test_a_footprint_is_what_stays_and_the_peak_of_the_work():
    before = torch.zeros(1000, 1000)
    with Footprint(CPU) as footprint:
        kept = before + (before + before).sum()  # a temporary of making it
        (before + 1), (before + 2)  # more of them than the work below holds
        footprint.made()
        (kept * 2).add_(1)
    assert footprint.peak == pytest.approx(2 * MEGA, abs=100)


def test_a_footprint_sees_the_process_grow():
    with Footprint(CPU) as footprint:
        footprint.made()
        torch.ones(30 * 1000 * 1000)
    if footprint.resident is not None:  # Linux only
        assert footprint.resident > 20 * MEGA
