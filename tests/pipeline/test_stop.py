"""A signal to any rank: all of them leave after the same step, and going on loses nothing."""

import os
import signal
from dataclasses import replace

import pytest

from pipeline_local import configfile
from pipeline_local.errors import StoppedError
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.board import Board
from pipeline_local.pipeline.place import Place, joined
from pipeline_local.pipeline.schedule import Evaluate, Save
from pipeline_local.pipeline.stop import Stop
from pipeline_local.trainer import Trainer, train

STEPS = 14


def parse(folder, direction="downstream", microbatches=1, **checkpoint):
    return configfile.parse(
        {
            "model": {"name": "resnet20", "width": 2},
            "modules": {"count": 3},
            "head": {"name": "linear"},
            "data": {"name": "digits", "batch_size": 16, "limit": 160},
            "reconcile": {
                "weight": 0.1,
                "every": 2,
                "direction": direction,
                "distance": "relative",
            },
            "train": {
                "steps": STEPS,
                "microbatches": microbatches,
                "evaluate_every": 6,
                "log_every": 5,
            },
            "checkpoint": checkpoint,
            "parallel": {"threads": 1},
            "run": {"dir": str(folder)},
        }
    )


def files(folder):
    """The bytes of the newest checkpoint."""
    newest = max(folder.glob("checkpoints/step-*"))
    return {path.name: path.read_bytes() for path in sorted(newest.glob("*.safetensors"))}


def resumed(config):
    return replace(config, run=replace(config.run, resume=True))


def train_and_hear(place, config, rank, step, number):
    """Train; this rank, if it is `rank`, gets a signal before its own `step`-th step.

    Gives the step after which the run was stopped.
    """

    def do(self, action):
        if place.rank == rank and isinstance(action, Step) and action.number == self.start + step:
            os.kill(os.getpid(), number)
        do_action(self, action)

    do_action, Trainer._do = Trainer._do, do
    try:
        train(config, place)
    except StoppedError as error:
        return error.step
    finally:
        Trainer._do = do_action
    return None


CASES = [
    (1, 0, signal.SIGTERM, "both", 1),
    (2, 0, signal.SIGTERM, "downstream", 1),
    (2, 1, signal.SIGUSR1, "both", 1),
    (3, 0, signal.SIGUSR1, "both", 2),
    (3, 1, signal.SIGTERM, "upstream", 1),
    (3, 2, signal.SIGTERM, "downstream", 2),
]


@pytest.mark.parametrize("step", [1, 6])
@pytest.mark.parametrize(("ranks", "rank", "number", "direction", "microbatches"), CASES)
def test_all_leave_after_one_step_and_nothing_is_lost(
    ranks, rank, number, direction, microbatches, step, tmp_path, run_ranks
):
    whole = parse(tmp_path / "whole", direction, microbatches)
    train(whole, Place())
    config = parse(tmp_path / "stopped", direction, microbatches)
    last = run_ranks(train_and_hear, ranks, config, rank, step, number)
    assert len(set(last)) == 1
    assert step < last[0] < STEPS
    found = [path.name for path in (tmp_path / "stopped/checkpoints").iterdir()]
    assert found == [f"step-{last[0]:08d}"]
    assert not (tmp_path / "stopped/summary.json").exists()
    run_ranks(train_and_hear, 4 - ranks, resumed(config), None, None, None)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_stopped_again_and_again(tmp_path, run_ranks):
    """Whatever the number of stages each time."""
    train(parse(tmp_path / "whole", "both"), Place())
    config = parse(tmp_path / "stopped", "both")
    stops = []
    for ranks in (1, 2, 3):
        stops += run_ranks(train_and_hear, ranks, resumed(config), 0, 1, signal.SIGTERM)
    assert len(set(stops) - {None}) == 3
    run_ranks(train_and_hear, 3, resumed(config), None, None, None)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def actions(stop, upto):
    every = [Step(0, 0.1), Save(1), Step(1, 0.1), Evaluate(2), Step(2, 0.1)]
    return list(stop.follow(every[:upto]))


def alone():
    place = Place()
    with joined(place) as store:
        return Stop(Board(store, 0, 1))


def test_without_a_signal_the_schedule_is_followed():
    stop = alone()
    assert len(actions(stop, 5)) == 5
    assert stop.after is None


def test_what_the_schedule_wants_after_the_last_step_is_done_and_saved_once():
    stop = alone()
    with stop.listening():
        followed = stop.follow([Step(0, 0.1), Save(1), Step(1, 0.1), Evaluate(2), Step(2, 0.1)])
        assert next(followed) == Step(0, 0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert list(followed) == [Save(1), Step(1, 0.1), Evaluate(2), Save(2)]
    assert stop.after == 2


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with alone().listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
