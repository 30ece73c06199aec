"""One run at a time is at work in a folder, whoever else tries."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from pipeline_local.configfile import configfile
from pipeline_local.errors import UserError
from pipeline_local.record.claim import LOCK
from pipeline_local.record.folder import RunFolder

CONFIG = {"model": {"name": "resnet20"}, "data": {"name": "digits"}, "train": {"steps": 1}}

HOLDER = """
import sys
from pathlib import Path
from pipeline_local.record.folder import RunFolder
with RunFolder(Path(sys.argv[1])).claimed():
    print("claimed", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, which uses `tmp_path`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def test_two_runs_are_never_at_work_in_one_folder(tmp_path, holder):
    folder = RunFolder(tmp_path)
    with (
        pytest.raises(UserError, match=rf"another run is using .*\(process {holder.pid} on "),
        folder.claimed(),
    ):
        pytest.fail("both are in")
    holder.communicate("done\n")
    with folder.claimed():
        assert folder.path.is_dir()


def test_one_process_claims_once(tmp_path):
    """Its second lock would be granted, and the first be gone with it."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with RunFolder(tmp_path).claimed():
        again = RunFolder(link)
        with pytest.raises(UserError, match="another run is using"), again.claimed():
            pytest.fail("it is in twice")
        refused = subprocess.run([sys.executable, "-c", HOLDER, str(tmp_path)], check=False)
        assert refused.returncode
    with RunFolder(tmp_path).claimed():
        pass


def test_one_thread_of_a_process_claims_at_a_time(tmp_path, monkeypatch):
    """All of them get to the lock file before the first one has it, if they get so far."""
    inside, refused = [], []
    begin, tried = threading.Barrier(4), threading.Barrier(4)
    lock = fcntl.lockf

    def slowly(*args):
        time.sleep(0.3)
        lock(*args)

    def claim(number):
        begin.wait(20)
        try:
            with RunFolder(tmp_path).claimed():
                inside.append(number)
                tried.wait(20)
        except UserError:
            refused.append(number)
            tried.wait(20)

    monkeypatch.setattr(fcntl, "lockf", slowly)
    threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 3)
    with RunFolder(tmp_path).claimed():
        pass


def test_a_full_disk_keeps_nobody_from_claiming(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    code = HOLDER.replace("\nwith", f"\n{limit}\nwith")  # imports may need a disk
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, input="\n", text=True, capture_output=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "claimed\n", "")


def test_who_was_killed_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    with RunFolder(tmp_path).claimed():
        assert f"process {os.getpid()} on " in (tmp_path / LOCK).read_text()


def test_a_claim_alone_is_no_run(tmp_path):
    """Of a run that failed before it wrote anything."""
    folder = RunFolder(tmp_path)
    with folder.claimed():
        pass
    folder.check(configfile.parse(CONFIG), "{}", resume=False)
    assert (tmp_path / LOCK).read_text() == ""


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, holder, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with RunFolder(tmp_path).claimed():
        assert f"process {os.getpid()} on " in (tmp_path / LOCK).read_text()
    assert holder.poll() is None
