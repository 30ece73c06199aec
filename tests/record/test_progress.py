"""The progress line shows all modules, from whatever stages have reported so far."""

from types import SimpleNamespace

import pytest

from pipeline_local.learning.tasks import Classification, Regression
from pipeline_local.record import progress
from pipeline_local.record.progress import Course, Progress, Quiet, Silent

TASK = Classification(10)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Each look at it is half a minute after the one before."""
    monkeypatch.setattr(progress.time, "monotonic", iter(range(0, 3000, 30)).__next__)


def course(start=0):
    return Course(SimpleNamespace(num_steps=100, steps_per_epoch=50), start)


def facts(step, modules):
    return {"step": step, "samples_per_second": 123.4, "modules": modules}


def test_line():
    stages = [
        facts(40, {"1": {"loss": 1.5}, "2": {"loss": 1.25, "cosine": 0.5}}),
        facts(38, {"3": {"loss": 1.0, "cosine": -0.25}}),
    ]
    tests = [
        {"step": 30, "modules": {"3": {"accuracy": 0.75, "ensemble_accuracy": 0.8, "loss": 1.0}}}
    ]
    assert Progress(course(), 3, TASK).line(stages, tests) == (
        "step 40/100  epoch 0.8/2  123 samples/s  0:45 left"
        "  loss (from step 38 on) 1.500 1.250 1.000"
        "  cosine - +0.50 -0.25  accuracy (step 30) - - 75.0%"
    )


def test_a_task_says_how_its_score_is_shown():
    tests = [{"step": 30, "modules": {"1": {"mean_absolute_error": 0.75, "loss": 1.0}}}]
    line = Progress(course(), 1, Regression(1)).line([facts(40, {"1": {"loss": 1.5}})], tests)
    assert line.endswith("mean_absolute_error (step 30) 0.750")


def test_every_module_has_its_place():
    """Also where the stage in the middle has not reported yet."""
    stages = [facts(20, {"1": {"loss": 1.5}}), facts(20, {"3": {"loss": 1.0}})]
    line = Progress(course(), 3, TASK).line(stages, [])
    assert line == "step 20/100  epoch 0.4/2  123 samples/s  2:00 left  loss 1.500 - 1.000"


def test_show(capsys):
    display = Progress(course(), 1, TASK)
    display.show([], [])
    display.show([facts(1, {"1": {"loss": 2.0}})], [])
    display.close()
    for silent in (Silent(), Quiet()):
        silent.show([facts(1, {"1": {"loss": 2.0}})], [])
        silent.close()
    assert capsys.readouterr().out == (
        "step 1/100  epoch 0.0/2  123 samples/s  49:30 left  loss 2.000\n"
    )


def test_less_than_an_epoch():
    short = SimpleNamespace(num_steps=4, steps_per_epoch=45)
    assert Course(short, 0).epoch(2) == "epoch 0.04/0.09"


def test_a_resumed_run_is_as_fast_as_it_is_now():
    """The steps before took no time of this run."""
    assert course(start=40).left(60) == "1:00 left"
