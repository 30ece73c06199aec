"""launch/versions.sh against stubs of pip, uv and pytest: which sets it makes, and its table."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

UV = """#!/usr/bin/env bash
echo "uv $*" >>"$LOG"
case "$1 $2" in
"pip compile") echo "torch==lowest" ;;
"venv --quiet")
    mkdir -p "${!#}/bin"
    cp "$STUB" "${!#}/bin/python" ;;
"pip install") cat "${@: -2:1}" >>"$LOG" ;;
esac
"""

PYTHON = f"""#!/usr/bin/env bash
case "$1 $2" in
"-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
"-m pip") cp "$UV_STUB" "${{0%/*}}/uv"; chmod +x "${{0%/*}}/uv" ;;
"-m pytest") echo "pytest ${{*:3}} in $(ls)" >>"$LOG"; echo "== 7 passed =="; exit "$STATUS" ;;
*) exec "{sys.executable}" "$@" ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """Runs a copy of the script in a repository of its own; returns status, output and calls."""
    repository, log = tmp_path / "a clone", tmp_path / "log"
    (repository / "launch").mkdir(parents=True)
    for name in ("launch/versions.sh", "setup.cfg"):
        (repository / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "init", "-q", repository], check=True)
    for name, text in (("python", PYTHON), ("uv", UV)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "temporary").mkdir()

    # the script itself may run this test, with sets of its own
    variables = {name: value for name, value in os.environ.items() if name != "SETS"}

    def start(*arguments, **environment):
        facts = {"LOG": log, "STUB": tmp_path / "python", "UV_STUB": tmp_path / "uv", "STATUS": 0}
        facts |= {"PYTHON": tmp_path / "python", "TMPDIR": tmp_path / "temporary", **environment}
        done = subprocess.run(
            ["bash", repository / "launch/versions.sh", *arguments],
            env=variables | {name: str(value) for name, value in facts.items()},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert not [*(tmp_path / "temporary").iterdir()], "nothing is left"
        return done.returncode, done.stdout, log.read_text().splitlines()

    return start


def test_both_sets_are_installed_and_tested(run):
    status, output, calls = run("tests/learning", "-x")
    assert status == 0
    (compiled,) = [line for line in calls if line.startswith("uv pip compile")]
    assert "--resolution lowest-direct" in compiled
    assert compiled.endswith("source/setup.cfg")
    installed = [k for k, line in enumerate(calls) if line.startswith("uv pip install")]
    assert [calls[k + 1] for k in installed] == ["torch==lowest", calls[installed[1] + 1]]
    assert calls[installed[1] + 1].startswith("pytest"), "the newest have no constraint"
    assert sum(line.startswith("pytest tests/learning -x in launch") for line in calls) == 2
    assert "| | lowest | newest |" in output
    assert f"| torch | {version('torch')} | {version('torch')} |" in output
    assert "| tests | 7 passed | 7 passed |" in output


def test_a_failure_is_the_status_and_one_set_may_be_picked(run):
    status, output, calls = run(SETS="newest", STATUS="3")
    assert status == 3
    assert not any("compile" in line for line in calls)
    assert "| | newest |" in output
