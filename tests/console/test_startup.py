"""No start is silent for long, and nothing is said once it is over."""

import threading

import pytest

from pipeline_local.console import startup
from pipeline_local.console.startup import Startup


@pytest.fixture
def said(monkeypatch):
    """What is said; each line lets a waiting test go on."""
    lines, more = [], threading.Semaphore(0)

    def say(line):
        lines.append(line)
        more.release()

    monkeypatch.setattr(startup, "say", say)
    yield lines, more
    startup.over()


def test_what_takes_long_is_said_again(said):
    lines, more = said
    begun = Startup("train", silence=0.02)
    begun.at("loading torch")
    for _ in range(3):
        assert more.acquire(timeout=60)
    begun.at("checking")
    for _ in range(30):  # one of the former may be under way
        assert more.acquire(timeout=60)
        if lines[-1].startswith("train: still checking"):
            break
    begun.over()
    assert lines[:2] == ["train: loading torch", "train: still loading torch (0 s)"]
    assert lines[-1] == "train: still checking (0 s)"
    for thread in threading.enumerate():
        if thread.name == "startup":
            thread.join(60)
    count = len(lines)
    begun.over()
    assert len(lines) == count


def test_a_program_that_has_not_begun_says_nothing(said):
    startup.at("loading torch")
    startup.over()
    assert said[0] == []


def test_a_process_says_one_thing_at_a_time(said):
    startup.begin("rank 0", 60.0)
    startup.at("loading torch")
    startup.over()
    startup.at("checking")
    assert said[0] == ["rank 0: loading torch"]
