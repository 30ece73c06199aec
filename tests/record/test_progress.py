"""The progress line shows all modules, from whatever stages have reported so far."""

from pipeline_local.learning.tasks import Classification, Regression
from pipeline_local.record.progress import Progress, Quiet, Silent

TASK = Classification(10)


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
    assert Progress(100, 3, TASK).line(stages, tests) == (
        "step 40/100  123 samples/s  loss (from step 38 on) 1.500 1.250 1.000"
        "  cosine - +0.50 -0.25  accuracy (step 30) - - 75.0%"
    )


def test_a_task_says_how_its_score_is_shown():
    tests = [{"step": 30, "modules": {"1": {"mean_absolute_error": 0.75, "loss": 1.0}}}]
    line = Progress(100, 1, Regression(1)).line([facts(40, {"1": {"loss": 1.5}})], tests)
    assert line.endswith("mean_absolute_error (step 30) 0.750")


def test_every_module_has_its_place():
    """Also where the stage in the middle has not reported yet."""
    stages = [facts(20, {"1": {"loss": 1.5}}), facts(20, {"3": {"loss": 1.0}})]
    line = Progress(100, 3, TASK).line(stages, [])
    assert line == "step 20/100  123 samples/s  loss 1.500 - 1.000"


def test_show(capsys):
    display = Progress(100, 1, TASK)
    display.show([], [])
    display.show([facts(1, {"1": {"loss": 2.0}})], [])
    display.close()
    for silent in (Silent(), Quiet()):
        silent.show([facts(1, {"1": {"loss": 2.0}})], [])
        silent.close()
    assert capsys.readouterr().out == "step 1/100  123 samples/s  loss 2.000\n"
