"""Blocks -> modules -> stages."""

from functools import partial
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_local.config import ModulesConfig
from pipeline_local.errors import UserError
from pipeline_local.placement import partition

NAMES = [f"block{i}" for i in range(8)]


def cut(count, cuts="uniform", costs=(1,) * 8):
    best = partial(partition.balanced, costs)
    return partition.modules_of(NAMES, costs, ModulesConfig(count, cuts), best)


@given(num_items=st.integers(1, 60), data=st.data())
def test_uniform_is_contiguous_and_even(num_items, data):
    parts = data.draw(st.integers(1, num_items))
    ranges = partition.uniform(num_items, parts)
    assert [i for r in ranges for i in r] == list(range(num_items))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@given(costs=st.lists(st.integers(0, 50), min_size=1, max_size=8), data=st.data())
def test_balanced_is_optimal(costs, data):
    """Against every possible cut."""
    parts = data.draw(st.integers(1, len(costs)))
    ranges = partition.balanced(costs, parts)
    assert [i for r in ranges for i in r] == list(range(len(costs)))
    assert len(ranges) == parts
    assert all(ranges)

    def worst(edges):
        edges = [0, *edges, len(costs)]
        return max(sum(costs[a:b]) for a, b in pairwise(edges))

    best = min(worst(edges) for edges in combinations(range(1, len(costs)), parts - 1))
    assert worst([r.start for r in ranges[1:]]) == best


def test_cuts_by_name_and_by_index():
    expected = [range(0, 2), range(2, 7), range(7, 8)]
    assert cut(3, ("block2", 7)) == expected
    assert cut(3, (2, "block7")) == expected


def test_cuts_alone_say_how_many_modules_there_are():
    assert cut(None, ("block2", 7)) == cut(3, ("block2", 7))
    assert cut(None) == [range(8)]
    assert cut(None, "blocks") == cut(8, "blocks") == [range(i, i + 1) for i in range(8)]


def test_parameters_balances_cost():
    assert cut(2, "parameters", costs=(10, 1, 1, 1, 1, 1, 1, 1)) == [range(0, 1), range(1, 8)]


@pytest.mark.parametrize(
    ("count", "cuts", "message"),
    [
        (9, "uniform", "9 modules for 8 blocks"),
        (9, "blocks", "9 modules for 8 blocks"),
        (7, "blocks", "makes 8 modules of this model's blocks, got 7"),
        (2, ("block0",), "'block0', which is no block that a module can begin with"),
        (2, ("blok3",), "'blok3'"),
        (2, (0,), "got 0"),
        (2, (8,), "index from 1 to 7"),
        (3, (4, 3), "rising order"),
        (3, (4, 4), "none twice"),
    ],
)
def test_impossible_cuts_are_refused(count, cuts, message):
    with pytest.raises(UserError, match=message):
        cut(count, cuts)


def stages(num_modules, num_stages, cuts="uniform"):
    best = partition.balanced([5, 1, 1, 1], num_stages)
    return partition.stages_of(num_modules, num_stages, cuts, lambda: best)


def test_stages():
    assert stages(4, 2) == [range(0, 2), range(2, 4)]
    assert stages(4, 2, "auto") == [range(0, 1), range(1, 4)]
    assert stages(4, 3, (2, 4)) == [range(0, 1), range(1, 3), range(3, 4)]
    assert stages(4, 1, (2, 4)) == [range(0, 4)]  # as to evaluate a run
    with pytest.raises(UserError, match="3 stages for 2 modules"):
        stages(2, 3)


@pytest.mark.parametrize("cuts", [(2,), (3, 2), (2, 2), (2, 5), ()])
def test_impossible_stages_are_refused(cuts):
    with pytest.raises(UserError, match="need 2 rising numbers from 2 to 4, got"):
        stages(4, 3, cuts)


def test_auto_asks_for_the_cheapest_cut():
    assert cut(2, "auto", [9, 1, 1, 1, 1, 1, 1, 1]) == [range(0, 1), range(1, 8)]


def test_the_cost_of_a_part_may_depend_on_its_number():
    def cost(part, items):
        return len(items) * (3 if part == 0 else 1)

    assert partition.cheapest(8, 2, cost) == [range(0, 2), range(2, 8)]
    assert partition.cheapest(3, 3, cost) == [range(0, 1), range(1, 2), range(2, 3)]
