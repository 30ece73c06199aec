"""When lagged messages are sent and applied."""

from dataclasses import replace

import pytest

from pipeline_local.learning.contents import Distillation, Feedback, UnembeddingCopies
from pipeline_local.learning.lag_plan import LagPlan
from pipeline_local.learning.step import LAG


@pytest.mark.parametrize("content", [Distillation(1, 3, together=True), UnembeddingCopies(1, 3)])
def test_contents_and_their_plan_have_one_lag(content):
    with pytest.raises(AssertionError, match="one lag"):
        LagPlan((content,), steps=LAG + 1)
    other = LagPlan((replace(content, lag=LAG + 1), Feedback(1)), steps=LAG + 1)
    assert other.delay(other.contents[0], 0) == 2 * (LAG + 2) - 1
