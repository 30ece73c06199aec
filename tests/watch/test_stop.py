"""The stop: a signal to any rank, all finish the same step, save it, and end with exit code 75.

Going on later gives the bytes of a run that was never stopped, whatever was on its way between the
stages when it was.
"""

import multiprocessing
import os
import signal
import time
from random import Random

import pytest
import torch.distributed as dist

from pipeline_local.configfile import configfile
from pipeline_local.errors import EXIT_STOPPED, StoppedError
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.stage import Stage
from pipeline_local.ranks.mesh import chain
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training import train as entry
from pipeline_local.training.train import train as train_run
from pipeline_local.watch.stop import SAME_INTERRUPT_SECONDS, Stop
from pipeline_local.watch.store import RankStore
from pipeline_local.watch.watchdog import Watchdog
from tests.forked import Forked

MODULES = 3
STEPS = 24
SAVES = 6
"""Steps between the checkpoints of the schedule."""
PACE = 0.03
"""Seconds per module of the first rank: with messages as small as these, which fit into the buffers
of sockets, it could be at the end before anybody else has begun."""


@pytest.fixture
def train(tmp_path):
    """Run the command line on forked ranks; gives their exit codes and what they printed."""
    runs = []

    def run(world_size, config, *more, prepare=lambda rank: None):
        output = tmp_path / f"output-{len(runs)}"
        arguments = ["train", str(config), *more]
        runs.append(Forked(world_size, arguments, output, prepare))
        return runs[-1].ends(), output.read_text()

    yield run
    for one in runs:
        one.close()


def write_config(folder, direction="downstream", microbatches=1, **reconcile):
    """In both directions, copies of parameters flow upstream, too."""
    path = folder / "config.yaml"
    tree = {
        "model": {"name": "mlp", "hidden": 8, "depth": 6},
        "modules": {"count": MODULES},
        "reconcile": {"weight": 0.2, "every": 2, "direction": direction, **reconcile},
        "head": {"name": "ema" if direction == "both" else "auglocal", "refresh": 5},
        "data": {"name": "digits", "batch_size": 16},
        "train": {"steps": STEPS, "microbatches": microbatches}
        | {"log_every": 7, "evaluate_every": 8},
        "checkpoint": {"every_steps": SAVES, "keep": 9},
        "parallel": {"threads": 1},
        "run": {"dir": str(folder / "run")},
    }
    path.write_text(configfile.dump(configfile.parse(tree)))
    return path


def checkpoint(folder, step=STEPS):
    files = (folder / "run" / "checkpoints" / f"step-{step:08d}").glob("*.safetensors")
    return {path.name: path.read_bytes() for path in files}


def steps_saved(folder):
    return sorted(int(p.name[5:]) for p in (folder / "run" / "checkpoints").iterdir())


def signal_oneself(victim, step, number, part=0):
    """Rank `victim` gets the signal in `step`, before its module number `part`."""

    def prepare(rank):
        learn, passed = Stage._learn, []

        def signalled(stage, link, now, microbatch):
            if rank == 0 and microbatch == 0:
                time.sleep(PACE)
            if now.number == step and rank == victim:
                if len(passed) == part:
                    os.kill(os.getpid(), number)
                passed.append(link)
            learn(stage, link, now, microbatch)

        Stage._learn = signalled

    return prepare


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The last checkpoint of a run that nothing stops, by direction and microbatches."""
    found = {}

    def get(direction, microbatches):
        key = direction, microbatches
        if key not in found:
            folder = tmp_path_factory.mktemp("uninterrupted")
            config = write_config(folder, *key)
            run = Forked(1, ["train", str(config)], folder / "output")
            assert run.ends() == [0], run.output.read_text()
            found[key] = checkpoint(folder)
            assert len(found[key]) == MODULES
        return found[key]

    return get


CASES = [
    pytest.param(
        (direction, ranks, microbatches),
        marks=[] if (direction == "both") == (microbatches == 2) else [pytest.mark.long],
    )
    for direction in ("downstream", "both")
    for ranks in (1, 2, 3)
    for microbatches in (1, 2)
]


def draw(case):
    """A victim, a step and a signal, the same each time."""
    random = Random(str(case))
    return random.randrange(case[1]), random.randrange(10), random.choice(SIGNALS)


SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_stopped_and_resumed_is_never_stopped(case, tmp_path, train, uninterrupted):
    direction, ranks, microbatches = case
    victim, step, number = draw(case)
    config = write_config(tmp_path, direction, microbatches)
    prepare = signal_oneself(victim, step, number, part=step % max(1, MODULES // ranks))
    codes, output = train(ranks, config, prepare=prepare)
    assert codes == [EXIT_STOPPED] * ranks, output
    saved = steps_saved(tmp_path)[-1]
    assert step < saved < STEPS
    assert output.count(f"stopped by a signal after step {saved}, of which there is a") == 1
    assert f"continue with: pipeline-local resume {tmp_path / 'run'}\n" in output
    assert "error" not in output
    codes, output = train(1 + ranks % 3, config, "run.resume=true")
    assert set(codes) == {0}, output
    assert f"resuming after step {saved}" in output
    assert checkpoint(tmp_path) == uninterrupted(direction, microbatches)


@pytest.mark.parametrize("everybody", [True, False], ids=["everybody", "the last"])
def test_a_signal_before_the_first_step(everybody, tmp_path, train):
    """It is followed as soon as there is something to save. A launcher signals all of its ranks."""

    def prepare(rank):
        make = entry.modules_of

        def signalled(*args):
            if everybody or rank == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return make(*args)

        entry.modules_of = signalled
        signal_oneself(None, 0, 0)(rank)

    codes, output = train(3, write_config(tmp_path), prepare=prepare)
    assert codes == [EXIT_STOPPED] * 3, output
    assert steps_saved(tmp_path)[-1] < STEPS
    assert len(checkpoint(tmp_path, steps_saved(tmp_path)[-1])) == MODULES


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_signal_in_the_last_step_leaves_a_complete_run(ranks, tmp_path, train, uninterrupted):
    prepare = signal_oneself(0, STEPS - 1, signal.SIGTERM)
    codes, output = train(ranks, write_config(tmp_path), prepare=prepare)
    assert codes == [0] * ranks, output
    assert (tmp_path / "run" / "summary.json").is_file()
    assert checkpoint(tmp_path) == uninterrupted("downstream", 1)


def test_a_signal_in_the_last_step_but_one_is_the_same_to_all(tmp_path, train):
    """The first rank says so before the last step; the others have looked for the last time."""

    def prepare(rank):
        signal_oneself(0, STEPS - 2, signal.SIGTERM)(rank)
        decide = Stop._decide

        def late(stop, step):
            time.sleep(0.5 if step == STEPS - 1 else 0)
            return decide(stop, step)

        Stop._decide = late

    codes, output = train(2, write_config(tmp_path), prepare=prepare)
    assert codes == [0, 0], output
    assert (tmp_path / "run" / "summary.json").is_file()


def test_stopped_again_and_again(tmp_path, train, uninterrupted):
    """Each time after few steps, with what is on its way between the stages changing hands."""
    config = write_config(tmp_path, "both")
    for saved, ranks in zip(range(0, 14, 2), (3, 1, 2, 3, 2, 1, 3), strict=True):
        prepare = signal_oneself(0, saved, signal.SIGUSR1)
        codes, output = train(ranks, config, "run.resume=true", prepare=prepare)
        assert codes == [EXIT_STOPPED] * ranks, output
        assert steps_saved(tmp_path)[-1] == saved + 2
    codes, output = train(3, config, "run.resume=true")
    assert set(codes) == {0}, output
    assert checkpoint(tmp_path) == uninterrupted("both", 1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_interrupt_ends_at_once(ranks, tmp_path, train):
    """The first one is answered; who has no patience loses the steps since the last checkpoint."""

    def prepare(rank):
        learn, presses = Stage._learn, []

        def pressed(stage, link, now, microbatch):
            if now.number == 10 and rank == 0 and not presses:
                presses.append(0)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(2 * SAME_INTERRUPT_SECONDS)
                os.kill(os.getpid(), signal.SIGINT)
            learn(stage, link, now, microbatch)

        Stage._learn = pressed

    codes, output = train(ranks, write_config(tmp_path), prepare=prepare)
    assert codes[0] == 130, output
    assert output.count("interrupted: the run is asked to stop; again, to end it at once") == 1
    assert "stopped by" not in output
    assert "Traceback" not in output
    assert steps_saved(tmp_path)[0] == SAVES


def test_a_launcher_may_pass_on_what_the_terminal_has_sent(tmp_path, train):
    """Two signals within a moment are one press."""

    def prepare(rank):
        signal_oneself(0, 3, signal.SIGINT, part=0)(rank)
        signal_oneself(0, 3, signal.SIGINT, part=1)(rank)

    codes, output = train(1, write_config(tmp_path), prepare=prepare)
    assert codes == [EXIT_STOPPED], output


@pytest.mark.parametrize("lead", [0, 1])
def test_who_may_be_ahead_is_told_earlier(lead):
    """The first rank names a step that no other one can be about to leave behind."""
    with Stop(RankStore(dist.HashStore(), 0, 1)) as stop:
        steps = stop.follow((Step(number, lr=0.1) for number in range(9)), lead)
        assert next(steps).number == 0
        stop.request()
        assert [action.number for action in steps] == [*range(1, lead + 2), lead + 2]
        assert stop.after == lead + 2
        assert not stop.by_signal


def test_who_hangs_is_still_interrupted():
    """By the watchdog, which has given the run up: that is no wish to stop later."""
    with Stop(RankStore(dist.HashStore(), 0, 1)) as stop:
        stop.listen(lambda: True)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_caller_gets_its_own_handlers_back(tmp_path, monkeypatch):
    """Whoever calls `train` in a program of their own is told by an exception."""
    monkeypatch.setattr(Stage, "_learn", Stage._learn)  # undoes the next line
    signal_oneself(0, 3, signal.SIGTERM)(0)
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(StoppedError, match="stopped by a signal after step 5"):
        train_run(configfile.load(write_config(tmp_path), []), RankInfo())
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_signals_mean():
    """Nothing new until it listens, nothing new afterwards; what somebody else says stays."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with Stop(RankStore(dist.HashStore(), 0, 1)) as stop:
        assert signal.getsignal(signal.SIGTERM) == before[0]
        stop.listen()
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGUSR1) == stop._note
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    signal.signal(signal.SIGTERM, before[0])
    assert signal.getsignal(signal.SIGUSR1) == before[1]


def test_who_does_not_listen_yet_has_nothing_to_put_back():
    with pytest.raises(KeyError), Stop(RankStore(dist.HashStore(), 0, 1)):
        raise KeyError


def test_a_signal_while_the_others_are_awaited_ends_a_rank():
    """It could not act on it: nobody watches yet, and no step is under way."""

    def alone(rank_store):
        with (
            Stop(rank_store) as stop,
            Watchdog(rank_store, RankInfo(1, 2, 1, 2, launched=True), 60, chain(2)),
        ):
            stop.listen()

    rank_store = RankStore(dist.HashStore(), 1, 2)  # the first rank never comes
    rank = multiprocessing.get_context("fork").Process(target=alone, args=(rank_store,))
    rank.start()
    time.sleep(0.5)
    rank.terminate()
    rank.join(20)
    assert rank.exitcode == -signal.SIGTERM
