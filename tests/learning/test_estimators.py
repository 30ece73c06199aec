"""The estimators by name: what a program has registered last is what a run takes."""

import pytest

from pipeline_local.config import ReconcileConfig
from pipeline_local.errors import UserError
from pipeline_local.learning.estimators import ESTIMATORS, Exact, estimator, second_cost


def test_an_entry_that_is_registered_again_is_taken(monkeypatch):
    """As a notebook does whose cell is edited, and runs again."""
    settings = ReconcileConfig(weight=1.0, estimator="mine")
    for moves in (False, True):

        class Mine(Exact):
            pass

        Mine.moves = moves
        monkeypatch.setitem(ESTIMATORS._entries, "mine", Mine)
        assert type(estimator(settings)) is Mine
        assert estimator(settings) is estimator(settings)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (lambda self, *costs: 1 / 0, r"mine cannot say its cost \(ZeroDivisionError.*fix its cost"),
        (lambda self: 1.0, r"mine cannot say its cost \(TypeError"),
        (lambda self, *costs: None, r"mine cannot say its cost \(TypeError"),
        (lambda self, *costs: -1.0, r"cost\(\) of mine must be a number from 0, got -1.0"),
        (lambda self, *costs: float("nan"), r"must be a number from 0, got nan"),
    ],
)
def test_a_cost_that_is_none_is_one_line(monkeypatch, cost, message):
    mine = type("Mine", (Exact,), {"cost": cost})
    monkeypatch.setitem(ESTIMATORS._entries, "mine", mine)
    with pytest.raises(UserError, match=message) as caught:
        second_cost(ReconcileConfig(weight=1.0, estimator="mine"), 1.0, 2.0, 0.0)
    assert "\n" not in str(caught.value)


def test_the_cost_is_the_estimators():
    settings = ReconcileConfig(weight=1.0, estimator="exact")
    assert second_cost(settings, 1.0, 2.0, 0.0) == estimator(settings).cost(1.0, 2.0, 0.0) > 0
