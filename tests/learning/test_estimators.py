"""The estimators by name: what a program has registered last is what a run takes."""

from pipeline_local.config import ReconcileConfig
from pipeline_local.learning.estimators import ESTIMATORS, Exact, estimator


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
