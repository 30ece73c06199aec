"""What a run has measured, without what it has abandoned."""

import json
import time

import pytest

from pipeline_local.record import history
from pipeline_local.record.folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "metrics").mkdir()
    return RunFolder(tmp_path)


def write(folder, stage, rows, event="train"):
    """Lines of these steps and times."""
    facts = [{"event": event, "stage": stage, "step": step, "time": time} for step, time in rows]
    with folder.metrics(stage).open("a") as file:
        file.write("".join(json.dumps(each) + "\n" for each in facts))


def found(folder):
    return [(facts["stage"], facts["step"]) for facts in history.lines(folder)]


def test_evaluations_come_in_order_of_time(folder):
    """Also where another stage has had the module."""
    write(folder, 0, [(2, 1.0), (4, 2.0), (4, 5.0)], "test")
    write(folder, 1, [(2, 3.0), (4, 4.0)], "test")
    for stage in range(2):
        write(folder, stage, [(9, 6.0)])
    times = [(facts["step"], facts["time"]) for facts in history.evaluations(folder)]
    assert times == [(2, 1.0), (4, 2.0), (2, 3.0), (4, 4.0), (4, 5.0)]


def test_abandoned_work_is_left_out(folder):
    """Two stages are at step 8; one goes on from a checkpoint of step 4, to step 6."""
    folder.add_start(0, 2, "cpu")
    now = time.time() - 0.05  # in the same second
    for stage in range(2):
        write(folder, stage, [(step, now) for step in (3, 4, 5, 8)])
    folder.add_start(4, 1, "cpu")
    assert found(folder) == [(0, 3), (0, 4), (1, 3), (1, 4)], "nothing has been done since"
    write(folder, 0, [(6, time.time())])
    assert found(folder) == [(0, 3), (0, 4), (1, 3), (1, 4), (0, 6)]
    time.sleep(0.01)
    folder.add_start(0, 1, "cpu")
    assert found(folder) == [], "no checkpoint could be read: it has begun again"


def test_clocks_of_hosts_differ(folder):
    """The second host's is a minute behind."""
    folder.add_start(0, 2, "cpu")
    write(folder, 1, [(1, time.time() - 60)])
    assert found(folder) == [(1, 1)]


def test_what_does_not_say_when_is_kept(folder):
    for step in (0, 4):
        folder.add_start(step, 1, "cpu")
    write(folder, 0, [(8, None), (9, 1.0)])
    assert found(folder) == [(0, 8)]
    starts = json.loads(folder.environment.read_text())
    for damaged in ({"step": 4}, {**starts[1], "step": None}, {**starts[1], "started": "soon"}):
        folder.environment.write_text(json.dumps([starts[0], damaged]))
        assert found(folder) == [(0, 8), (0, 9)]
