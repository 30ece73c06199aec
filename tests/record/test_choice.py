"""Which heads predict, by nothing but what a run has recorded."""

import json

import pytest

from pipeline_local.learning.tasks.classification import Classification
from pipeline_local.learning.tasks.regression import Regression
from pipeline_local.record.choice import choose, chosen_heads, recorded
from pipeline_local.record.folder import RunFolder

TASK = Classification(10)


def rows(alone, together, metric="accuracy"):
    return [
        {metric: a, f"ensemble_{metric}": t, "loss": 1.0}
        for a, t in zip(alone, together, strict=True)
    ]


@pytest.mark.parametrize(
    ("alone", "together", "heads"),
    [
        ([0.3, 0.5, 0.9], [0.3, 0.4, 0.7], (3,)),
        ([0.8, 0.9, 0.9], [0.8, 0.91, 0.93], (1, 2, 3)),
        ([0.8, 0.9, 0.5], [0.8, 0.91, 0.9], (1, 2)),
        ([0.8, 0.9, 0.7], [0.8, 0.75, 0.75], (1,)),
        ([0.8, 0.9, 0.95], [0.8, 0.95, 0.95], (3,)),  # equal: the network's own classifier
        ([0.8, 0.5, 0.5], [0.8, 0.9, 0.9], (1, 2)),  # equal: fewer heads
        ([0.8, 0.9, None], [0.8, 0.85, None], (1, 2)),
        ([None], [None], (1,)),
        ([0.5], [0.5], (1,)),
    ],
)
def test_the_last_head_or_the_first_ones(alone, together, heads):
    choice = choose(rows(alone, together), 7, TASK)
    assert choice.heads == heads
    assert "step 7" in choice.reason


def test_an_error_is_better_where_it_is_lower():
    task = Regression(1, (1,))
    recorded = rows([3.0, 1.0], [3.0, 2.0], task.metric)
    assert choose(recorded, 1, task).heads == (2,)
    assert str(choose(recorded, 1, task)) == (
        "head 2 alone: mean absolute error 1.0000, all heads 2.0000 after step 1"
    )


def test_of_a_metric_of_unknown_direction_nothing_follows():
    assert choose(rows([3.0, 1.0], [3.0, 9.0], "own"), 1, TASK).heads == (2,)


def line(step, modules, event="test"):
    return json.dumps({"event": event, "step": step, "modules": modules}) + "\n"


def test_the_latest_evaluation_of_all_heads_up_to_the_checkpoint_counts(tmp_path):
    folder = RunFolder(tmp_path)
    assert chosen_heads(folder, 9, 2, TASK).heads == (2,), "nothing is recorded"
    folder.metrics(0).parent.mkdir()
    weak, strong = rows([0.1, 0.9], [0.1, 0.5]), rows([0.8, 0.7], [0.8, 0.9])
    one = line(4, {"1": weak[0]}) + line(8, {"1": strong[0]}) + line(8, {}, "train")
    folder.metrics(0).write_text(one + line(12, {"1": weak[0]}) + line(20, {"1": weak[0]}))
    two = line(4, {"2": weak[1]}) + line(8, {"2": strong[1]}) + line(12, {"2": weak[1]})
    folder.metrics(1).write_text(two + line(20, {"2": weak[1]})[:-20])
    chosen = {step: chosen_heads(folder, step, 2, TASK) for step in (3, 4, 8, 11, 12, 20)}
    heads = {step: choice.heads for step, choice in chosen.items()}
    assert heads == {3: (2,), 4: (2,), 8: (1, 2), 11: (1, 2), 12: (2,), 20: (2,)}
    assert "after step 8" in chosen[11].reason
    assert "after step 12" in chosen[20].reason, "the line of step 20 is cut off"
    assert recorded(folder, 3, 2) == {}
    assert recorded(folder, 11, 2)["accuracy"] == [0.8, 0.7]
