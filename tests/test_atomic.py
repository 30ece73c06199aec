"""Files that are whole or not there: full disks, leftovers, and kills within a write."""

import os
import resource
import signal

import pytest

from pipeline_local import atomic


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.yaml").write_text("before")
    return tmp_path / "a.yaml"


def test_parts_become_one_file_that_replaces_the_earlier_one(path):
    atomic.write(path, [b"af", memoryview(b"ter")])
    assert path.read_text() == "after"
    assert list(path.parent.iterdir()) == [path]


def test_text_is_written_in_utf8(path):
    atomic.write_text(path, "Grüße\n")
    assert path.read_bytes() == "Grüße\n".encode()


def test_without_room_the_earlier_file_stays_and_nothing_else(path):
    """The kernel refuses the write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            atomic.write(path, [bytes(1 << 21)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "before"
    assert list(path.parent.iterdir()) == [path]


def test_a_leftover_of_an_earlier_write_is_no_obstacle(path):
    path.with_suffix(".partial").write_bytes(b"half")
    atomic.write_text(path, "after")
    assert path.read_text() == "after"
    assert list(path.parent.iterdir()) == [path]


def test_killed_within_a_write(path):
    """The earlier file is whole; only the temporary one is cut off."""

    def parts():
        yield b"af"
        os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()
    if process == 0:
        atomic.write(path, parts())
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert path.read_text() == "before"
