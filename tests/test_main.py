"""What must come before torch is loaded does."""

import os
import subprocess
import sys

import pytest

from pipeline_local.__main__ import leave_out_stacks, main, spin_briefly
from pipeline_local.ranks.orphan import LAUNCHER


@pytest.fixture
def environment(monkeypatch):
    """Of a user who has said nothing about OpenMP and torch's log."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    for name in ("GOMP_SPINCOUNT", "TORCH_CPP_LOG_LEVEL"):
        os.environ.pop(name, None)


def test_threads_spin_briefly(environment):
    spin_briefly()
    assert int(os.environ["GOMP_SPINCOUNT"]) > 0


@pytest.mark.parametrize(
    ("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")]
)
def test_the_user_has_the_last_word(environment, name, value):
    environment.setenv(name, value)
    spin_briefly()
    assert os.environ[name] == value
    assert os.environ.get("GOMP_SPINCOUNT", "7") == "7"


@pytest.mark.parametrize("level", [None, "INFO"])
def test_stacks_are_left_out_unless_they_are_asked_for(environment, level):
    if level:
        environment.setenv("TORCH_CPP_LOG_LEVEL", level)
    leave_out_stacks()
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == (level or "ERROR")


def test_torch_is_not_loaded_too_early():
    """OpenMP reads its settings once, when torch brings it along."""
    script = "import sys, pipeline_local.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("command", "variables", "line"),
    [
        ("train", {}, "train: loading torch\n"),
        ("resume", {"RANK": "0"}, "resume: loading torch\n"),
        ("call", {"RANK": "0", LAUNCHER: "7"}, "rank 0: loading torch\n"),
        ("train", {"RANK": "1", LAUNCHER: "7"}, ""),
        ("plan", {}, ""),
    ],
)
def test_a_run_says_at_once_that_it_starts(environment, command, variables, line):
    """The line comes before torch is loaded, from one process."""
    environment.delenv("RANK", raising=False)
    script = f"import sys, pipeline_local.__main__ as program; program.announce({command!r});"
    script += "assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        timeout=60,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.stdout == line


def test_nowhere_to_write(environment, tmp_path, capsys):
    """Python finds no folder for temporary files, in TMPDIR or elsewhere."""
    environment.setattr("tempfile.tempdir", None)
    environment.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No usable temporary directory" in line
    assert "TMPDIR" in line


@pytest.mark.parametrize("command", [[sys.executable, "-m", "pipeline_local"], ["pipeline-local"]])
def test_both_ways_in(command):
    """The module, which launchers start, and the script. What takes seconds to import is left."""
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    shown = subprocess.run(
        [*command, "evaluate", "nowhere"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PATH": path, "PYTHONPROFILEIMPORTTIME": "1"},
    )
    assert shown.returncode == 2
    assert "nowhere is not a run folder" in shown.stderr
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "torch" in imported
    assert not imported & {"torchvision", "torch._dynamo", "sklearn", "deepspeed"}


def test_a_daemon_has_nobody_to_talk_to(tmp_path):
    """Its files must not take the numbers of what is closed, and its exit code still counts."""
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable]
    script = f"""
from pipeline_local.__main__ import open_what_is_closed
open_what_is_closed()
print("unheard")
with open({str(tmp_path / "file")!r}, "w") as file:
    file.write(str(file.fileno()))
"""
    subprocess.run([*closed, "-c", script], check=True, timeout=60)
    assert int((tmp_path / "file").read_text()) > 2
    missing = [*closed, "-m", "pipeline_local", "train", str(tmp_path / "no.yaml")]
    assert subprocess.run(missing, check=False, timeout=60).returncode == 2
