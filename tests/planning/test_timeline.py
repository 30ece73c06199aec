"""Fill, steady state and drain of a few stages."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

from pipeline_local.placement.costs import ModuleCost
from pipeline_local.planning.timeline import timeline


def stage(*costs):
    return SimpleNamespace(replicas=1, modules=[SimpleNamespace(cost=cost) for cost in costs])


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
    """By its channel, which has two messages under way: its third activations wait for the first
    signal to be taken, the third signal for the second activations.
    """
    slow = ModuleCost(forward=10, signal=10, learn=20, added=0, update=0)
    first, second = timeline([stage(EVEN), stage(slow)], 4)
    acts = {act: [bar for bar in first if bar.act == act] for act in "FSL"}
    assert [bar.begin for bar in second] == [1, 11, 21, 41, 51, 61, 81, 91, 101, 121, 131, 141]
    assert [bar.begin for bar in acts["F"][:3]] == [0, 4, 8], "no stage waits for a slower one"
    assert acts["S"][2].begin == second[2].begin
    assert acts["L"][2].begin == second[3].begin


def test_a_step_is_an_average_one():
    cost = ModuleCost(forward=1, signal=1, learn=7, added=2, update=1)
    ((*bars,),) = timeline([stage(cost)], 2)
    assert [bar.begin for bar in bars] == [0, 1, 2, 9, 10, 11]


def test_modules_of_a_stage_take_turns():
    ((*bars,),) = timeline([stage(EVEN, EVEN)], 2)
    assert "".join(bar.act for bar in bars) == "FSLFSL" * 2
    assert bars[-1].end == 16
