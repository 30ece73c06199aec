"""Learning-rate schedules: named ones by hand, one of a program's own, and the warm-up before."""

import pytest

from pipeline_local.config import OptimizerConfig
from pipeline_local.engines.schedule import SCHEDULES, learning_rate


def rates(steps, **settings):
    config = OptimizerConfig(**{"lr": 2.0, **settings})
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_named_schedules():
    half = 0.5**0.5
    cosine = [2.0, 1 + half, 1.0, 1 - half]
    assert rates(4, schedule="cosine") == pytest.approx(cosine)
    assert rates(4) == rates(4, schedule="cosine")
    assert rates(4, schedule="linear") == [2.0, 1.5, 1.0, 0.5]
    assert rates(4, schedule="constant") == [2.0] * 4
    assert rates(10, schedule="wsd") == pytest.approx([2.0] * 9 + [1.0])


def test_a_schedule_begins_after_the_warm_up():
    assert rates(8, schedule="linear", warmup=0.5) == [0.5, 1.0, 1.5, 2.0, 2.0, 1.5, 1.0, 0.5]


def test_a_schedule_of_ones_own(monkeypatch):
    monkeypatch.setitem(SCHEDULES._entries, "stairs", lambda step, num_steps: 0.1 ** (step // 2))
    assert rates(4, schedule="stairs") == pytest.approx([2.0, 2.0, 0.2, 0.2])
    assert "given" not in SCHEDULES.names()
