"""Fill, steady state and drain of a few stages."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

from pipeline_local.pipeline.costs import ModuleCost
from pipeline_local.planning.timeline import timeline


def stage(*costs):
    return SimpleNamespace(modules=[SimpleNamespace(cost=cost) for cost in costs])


EVEN = ModuleCost(forward=1, signal=1, learn=2, added=0, update=0)


def test_equal_stages_wait_only_at_the_start():
    rows = timeline([stage(EVEN)] * 3, 4)
    assert [row[0].begin for row in rows] == [0, 1, 2]
    for row in rows:
        assert all(a.end == b.begin for a, b in pairwise(row))
    assert [bar.act for bar in rows[0][:4]] == ["F", "S", "L", "F"]


def test_the_third_act_waits_for_the_signal():
    slow_head = replace(EVEN, signal=5)
    first, second = timeline([stage(slow_head), stage(EVEN)], 1)
    assert second[1].end == 3
    assert second[2].begin == first[1].end == 6


def test_a_quick_stage_is_held_back():
    slow = ModuleCost(forward=10, signal=10, learn=20, added=0, update=0)
    first, second = timeline([stage(EVEN), stage(slow)], 6)
    begins = [bar.begin for bar in first if bar.act == "F"]
    assert begins[5] == next(bar.begin for bar in second if bar.step == 3)


def test_modules_of_a_stage_take_turns():
    ((*bars,),) = timeline([stage(EVEN, EVEN)], 2)
    assert "".join(bar.act for bar in bars) == "FSLFSL" * 2
    assert bars[-1].end == 16
