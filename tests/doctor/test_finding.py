"""A check never ends the command, and what it says may be shown to anyone."""

import pytest

from pipeline_local.doctor.finding import examine, passed
from pipeline_local.errors import UserError


def test_the_function_names_the_check():
    def shared_memory():
        yield passed("64 MiB")

    (finding,) = examine(shared_memory)
    assert (finding.name, str(finding)) == ("shared memory", "PASS  shared memory  64 MiB")


def test_a_check_that_raises_has_failed():
    """What it has found before counts, too."""

    def broken():
        yield passed("one")
        raise ZeroDivisionError("by zero\nat length")

    first, last = examine(broken)
    assert first.found == "one"
    assert (last.status, last.found) == ("FAIL", "the check ended with ZeroDivisionError: by zero")


def test_a_users_mistake_has_its_own_remedy():
    def mistaken():
        raise UserError("X=1: there is no 1; unset it")
        yield

    (finding,) = examine(mistaken)
    assert (finding.status, finding.found, finding.remedy) == (
        "FAIL",
        "X=1: there is no 1",
        "unset it",
    )


@pytest.mark.parametrize("text", ["two\nlines", "two   lines"])
def test_a_finding_is_one_line_without_names(monkeypatch, text):
    monkeypatch.setenv("HOME", "/home/someone")

    def disk():
        yield passed(f"{text} in /home/someone/runs")

    (finding,) = examine(disk)
    assert finding.found == "two lines in ~/runs"
