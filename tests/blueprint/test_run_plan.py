"""The schedule: a pure function, the same whatever step it is resumed at."""

import math

import pytest

from pipeline_local.blueprint.run_plan import Evaluate, RunPlan, Save
from pipeline_local.configfile import configfile
from pipeline_local.errors import UserError
from pipeline_local.learning.step import Step


def run_plan(num_train=100, num_test=23, **sections):
    tree = {"model": {"name": "resnet20"}, "data": {"name": "digits", "batch_size": 10}}
    tree.update({"train": {"epochs": 2}, **sections})
    return RunPlan(configfile.parse(tree), num_train, num_test, num_modules=2)


def test_epochs_drop_the_ragged_batch():
    assert run_plan(num_train=109).num_steps == 20
    assert run_plan(num_test=23).test_batches == [10, 10, 3]
    assert run_plan(train={"steps": 7}).num_steps == 7


def test_actions_in_order():
    plan = run_plan(
        train={"steps": 5, "evaluate_every": 2}, checkpoint={"every_steps": 3}
    ).actions()
    names = [a.number if isinstance(a, Step) else f"{type(a).__name__} {a.number}" for a in plan]
    assert names == [0, 1, "Evaluate 2", 2, "Save 3", 3, "Evaluate 4", 4, "Save 5", "Evaluate 5"]


@pytest.mark.parametrize("start", [0, 1, 7, 19])
def test_resuming_follows_the_same_schedule(start):
    plan = run_plan(
        reconcile={"weight": 1.0, "every": 3}, checkpoint={"every_steps": 4}, train={"epochs": 2}
    )
    whole = list(plan.actions())
    rest = list(plan.actions(start))
    done = [a for a in whole if (a.number if isinstance(a, Step) else a.number - 1) < start]
    assert done + rest == whole


def test_after_the_last_step_only_an_evaluation_is_left():
    assert list(run_plan().actions(20)) == [Evaluate(20)]


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"epochs": 2}, [10, 20]),
        ({"steps": 9, "evaluate_every": 4}, [4, 8, 9]),
        ({"steps": 3}, [3]),
    ],
)
def test_by_default_every_evaluation_is_saved(train, expected):
    actions = list(run_plan(train=train).actions())
    assert [a.number for a in actions if isinstance(a, Evaluate)] == expected
    assert [a.number for a in actions if isinstance(a, Save)] == expected


@pytest.mark.parametrize(
    ("evaluate_every", "every_steps", "expected"),
    [
        (4, None, None),
        (4, 4, None),
        (4, 2, None),
        (4, 3, 4),
        (2, 4, 2),
        (9, 4, None),
        (20, 3, None),
    ],
)
def test_evaluations_without_a_checkpoint(evaluate_every, every_steps, expected):
    train = {"steps": 9, "evaluate_every": evaluate_every}
    plan = run_plan(train=train, checkpoint={"every_steps": every_steps})
    assert plan.bare_evaluation(0) == expected


@pytest.mark.parametrize(("done", "expected"), [(0, 4), (3, 4), (4, 8), (8, None), (9, None)])
def test_only_evaluations_to_come_need_a_checkpoint(done, expected):
    plan = run_plan(train={"steps": 9, "evaluate_every": 4}, checkpoint={"every_steps": 3})
    assert plan.bare_evaluation(done) == expected


def test_a_run_is_never_shorter_than_what_is_done():
    plan = run_plan()
    plan.refuse_shorter(20)
    with pytest.raises(UserError, match=r"train\.epochs: 20 steps are fewer than the 21 that"):
        plan.refuse_shorter(21)
    with pytest.raises(UserError, match=r"train\.steps: 7 steps are fewer"):
        run_plan(train={"steps": 7}).refuse_shorter(8)


def test_one_is_singular():
    plan = run_plan(num_train=10, train={"epochs": 1})
    assert plan.explain() == "1 step (1 epoch of 1), 10 of 10 samples each; evaluation every 1 step"


def test_where_a_resumed_run_stands():
    plan = run_plan(optimizer={"schedule": "linear", "lr": 0.1})
    assert (
        plan.stand(15)
        == ": 5 of 20 steps to go (1.5 of 2 epochs), the next with learning rate 0.025"
    )
    assert plan.stand(0) == plan.stand(20) == ""


def test_reconciling_and_comparing():
    plan = run_plan(reconcile={"weight": 1.0, "every": 3}, train={"steps": 8, "log_every": 4})
    steps = [a for a in plan.actions() if isinstance(a, Step)]
    assert [s.reconcile for s in steps] == [True, False, False, True, False, False, True, False]
    assert [s.log for s in steps] == [False, False, False, True, False, False, False, True]
    assert all(s.compare == (s.reconcile or s.log) for s in steps)


def test_plain_local_learning_sends_signals_on_logged_steps_only():
    steps = run_plan(train={"steps": 8, "log_every": 4})
    assert [steps.step(n).compare for n in range(8)] == [n % 4 == 3 for n in range(8)]


def test_the_part_of_steps_that_compare():
    every = {"weight": 0.1, "every": 4}
    plan = run_plan(reconcile=every, train={"steps": 100000, "log_every": 100000})
    assert plan.compare_fraction == pytest.approx(1 / 4, abs=0.01)
    short = run_plan(train={"steps": 3, "log_every": 2})
    assert short.compare_fraction == sum(short.step(n).compare for n in range(3)) / 3


def test_learning_rate():
    plan = run_plan(train={"steps": 100}, optimizer={"lr": 0.5, "warmup": 0.1})
    rates = [plan.lr(n) for n in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[9] == pytest.approx(0.5) == pytest.approx(max(rates))
    assert rates[55] == pytest.approx(0.25)
    assert rates[99] == pytest.approx(0.25 * (1 + math.cos(math.pi * 89 / 90)))
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_feedback_is_applied_a_fixed_number_of_steps_later():
    own = {"weight": 1.0, "every": 3, "direction": "both"}
    plan = run_plan(reconcile=own, train={"steps": 12})
    assert [n for n in range(12) if plan.lag.sent(1, n, 0, 2)] == [0, 3, 6, 9]
    assert [n for n in range(12) if plan.lag.applied(0, n, 0, 2)] == [4, 7, 10]
    assert not any(plan.lag.applied(1, n, 0, 2) for n in range(12)), "it is the last module"
    assert [n for n in range(12) if plan.step(n).reconcile] == [0, 3, 6, 9]


def test_copies_are_published_once_per_period():
    """With the last microbatch; beside feedback, in one message."""
    both = {"weight": 1.0, "every": 4, "direction": "both"}
    plan = run_plan(head={"name": "ema", "refresh": 6}, reconcile=both)
    feedback, copies = plan.lag.contents
    parts = [(n, part) for n in range(25) for part in range(3)]
    sent = [(n, part) for n, part in parts if copies in plan.lag.sent(1, n, part, 3)]
    assert sent == [(6, 2), (12, 2), (18, 2), (24, 2)]
    assert plan.lag.sent(1, 12, 1, 3) == (feedback,)
    assert plan.lag.sent(1, 12, 2, 3) == plan.lag.applied(0, 16, 2, 3) == (feedback, copies)
    assert plan.lag.under_way(1, 8, 3) == [(4, 0), (4, 1), (4, 2), (6, 2)]
    assert (plan.under_way(1, 8), plan.under_way(1, 0)) == (2, 0), "it has one microbatch"


def test_upstream_reconciliation_needs_no_signals():
    own = {"weight": 1.0, "every": 3, "direction": "upstream"}
    steps = [run_plan(reconcile=own, train={"steps": 8}).step(n) for n in range(7)]
    assert not any(s.reconcile or s.compare for s in steps)
    assert not run_plan().lag.contents
