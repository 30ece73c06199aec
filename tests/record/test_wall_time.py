"""What a rank spends its time on."""

import time

import pytest

from pipeline_local.record.wall_time import WallTime


def test_clock_separates_training_from_waiting_and_saving():
    up, down = iter([0.5, 10.5, 10.75]), iter([0.0, 3.0, 3.0])
    clock = WallTime(lambda: next(up), lambda: next(down))
    with clock.training():
        time.sleep(0.001)
    with clock.evaluating():
        pass
    with clock.training():
        time.sleep(0.001)
    with clock.saving():
        time.sleep(0.001)
    facts = clock.facts()
    assert facts["waited"] == 0.75
    assert facts["seconds"] >= 0.002
    assert facts["checkpoint_stall_seconds"] >= 0.001
    pace, waits = clock.pace(100)
    assert pace == pytest.approx(200 / facts["seconds"], rel=0.01)
    assert waits == [1.0, 0.0], "more than the time itself, as this test says so"
    assert clock.pace(100) == (0, [0.0, 0.0])
