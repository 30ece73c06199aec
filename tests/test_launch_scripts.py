"""The scripts around the package, run against stubs: no network, no Slurm, no Docker."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

from pipeline_local.commandline.parser import parse

ROOT = Path(__file__).parent.parent
SCRIPTS = [
    ".ci/run",
    *sorted(
        str(path.relative_to(ROOT))
        for pattern in ("launch/**/*.s[hb]*", "docker/*.sh")
        for path in ROOT.glob(pattern)
    ),
]
PIPES = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "text": True,
}
DOCKERFILES = ["docker/Dockerfile", "docker/Dockerfile.cpu"]

# Answers for python itself, `-m venv`, `-m pip install` and `-m pytest`; notes what it was asked.
PYTHON_STUB = f"""#!/usr/bin/env bash
case "$1 $2" in
"-m venv") echo "venv" >>"$LOG"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
"-m pip")
    echo "pip ${{!#}} DS_BUILD_OPS=$DS_BUILD_OPS" >>"$LOG"
    sleep "${{PIP_SECONDS:-0}}"
    [[ -z ${{PIP_FAILS:-}} ]] || exit 7
    for tool in pipeline-local ruff mypy; do
        printf '#!/usr/bin/env bash\\necho "%s $*" >>"$LOG"\\n' "$tool" >"${{0%/*}}/$tool"
        chmod +x "${{0%/*}}/$tool"
    done ;;
"-m pytest") echo "pytest ${{*:3}}" >>"$LOG"; exit "${{PYTEST_STATUS:-0}}" ;;
"--version ") echo "Python stub" ;;
*) exec "{sys.executable}" "$@" ;;
esac
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Clone:
    """A copy of what the scripts need, in a folder with a space in its name."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        self.log = folder / "log"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        shutil.copytree(ROOT / ".ci", self.root / ".ci")
        for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        self.python = executable(folder / "python", PYTHON_STUB)

    def command(self, script: str, *args: str, **env: str) -> dict[str, Any]:
        """What subprocess is to start."""
        return {
            "args": ["bash", str(self.root / script), *args],
            "cwd": "/",
            "env": {**os.environ, "LOG": str(self.log), "PYTHON": str(self.python)} | env,
            **PIPES,
        }

    def run(self, script: str, *args: str, **env: str) -> tuple[int, str]:
        done = subprocess.run(**self.command(script, *args, **env), timeout=60)
        return done.returncode, done.stdout

    def calls(self) -> list[str]:
        """What was called since the last look."""
        text = self.log.read_text() if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return text.replace(f"{self.root}", "ROOT").splitlines()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


INSTALLED = ["venv", "pip ROOT DS_BUILD_OPS=0"]


def test_quickstart_installs_then_trains(clone: Clone) -> None:
    status, output = clone.run("launch/quickstart.sh", "train.epochs=1", "model.name=a b")
    assert status == 0, output
    train = "pipeline-local train configs/digits.yaml run.dir=runs/digits train.epochs=1"
    assert clone.calls() == [*INSTALLED, f"{train} model.name=a b"]


def test_the_second_quickstart_installs_nothing_and_overwrites_nothing(clone: Clone) -> None:
    clone.run("launch/quickstart.sh")
    clone.calls()
    (clone.root / "runs/digits").mkdir(parents=True)
    train = "pipeline-local train configs/digits.yaml"
    clone.run("launch/quickstart.sh")
    assert clone.calls() == [f"{train} run.dir=runs/digits-2"]
    clone.run("launch/quickstart.sh", "run.quiet=true", "model.name=a run.dir=b")
    assert clone.calls() == [f"{train} run.dir=runs/digits-2 run.quiet=true model.name=a run.dir=b"]
    for argument in ("run.resume=true", "run.dir=own"):
        clone.run("launch/quickstart.sh", argument)
        assert clone.calls() == [f"{train} {argument}"]


@pytest.mark.parametrize("damage", ["stamp", "interpreter", "setup.cfg", "constraints.txt"])
def test_a_half_made_or_outdated_venv_is_made_anew(clone: Clone, damage: str) -> None:
    clone.run("launch/setup.sh")
    clone.calls()
    stray = clone.root / ".venv/stray"
    stray.touch()
    if damage == "stamp":
        (clone.root / ".venv/.complete").unlink()
    elif damage == "interpreter":
        (clone.root / ".venv/bin/python").unlink()
    else:
        with (clone.root / damage).open("a") as file:
            file.write("# changed\n")
    status, output = clone.run("launch/setup.sh")
    assert status == 0, output
    assert clone.calls() == INSTALLED
    assert not stray.exists()


def test_a_failed_install_fails_and_is_tried_again(clone: Clone) -> None:
    status, _ = clone.run("launch/quickstart.sh", PIP_FAILS="yes")
    assert status == 7
    assert clone.calls() == INSTALLED
    clone.run("launch/setup.sh")
    assert clone.calls() == INSTALLED


@pytest.mark.parametrize("named", [False, True])
def test_an_active_venv_is_made_anew_with_what_it_was_made_with(clone: Clone, named: bool) -> None:
    """The newest interpreter on PATH, or the one that PYTHON names, is removed with it."""
    clone.run("launch/setup.sh")
    clone.calls()
    base = f'[[ $2 != *_base_executable* ]] || {{ echo "{clone.python}"; exit; }}\n'
    for name in ("python", "python3.13"):
        executable(clone.root / ".venv/bin" / name, PYTHON_STUB.replace("\n", f"\n{base}", 1))
    executable(clone.python.parent / "bin/python3.13", PYTHON_STUB)
    with (clone.root / "setup.cfg").open("a") as file:
        file.write("# changed\n")
    link = clone.python.parent / "link"
    link.symlink_to(clone.root)
    path = f"{link}/.venv/bin:{clone.python.parent / 'bin'}:{os.environ['PATH']}"
    python = str(link / ".venv/bin/python") if named else ""
    status, output = clone.run("launch/setup.sh", PATH=path, PYTHON=python)
    assert status == 0, output
    assert clone.calls() == INSTALLED


def test_two_at_once_install_once(clone: Clone) -> None:
    command = clone.command("launch/setup.sh", PIP_SECONDS="0.5")
    with subprocess.Popen(**command) as first, subprocess.Popen(**command) as second:
        for process in (first, second):
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 0, output
    assert clone.calls() == INSTALLED


def test_the_development_tools_are_added_once(clone: Clone) -> None:
    clone.run("launch/setup.sh")
    clone.calls()
    clone.run("launch/setup.sh", "dev")
    assert clone.calls() == ["pip ROOT[dev] DS_BUILD_OPS=0"]
    clone.run("launch/setup.sh", "dev")
    clone.run("launch/setup.sh")
    assert clone.calls() == []


def test_no_suitable_python_is_one_clear_line(clone: Clone) -> None:
    old = executable(clone.root / "old", "#!/usr/bin/env bash\nexit 1\n")
    status, output = clone.run("launch/setup.sh", PYTHON=str(old))
    assert status == 1
    assert output.count("\n") == 1
    assert f"error: found no Python 3.10 or newer at PYTHON={old}; run 'sudo apt-get" in output


def test_a_missing_venv_module_is_one_clear_line(clone: Clone) -> None:
    bare = executable(
        clone.root / "bare",
        f'#!/usr/bin/env bash\n[[ $2 != *ensurepip* ]] && exec {sys.executable} "$@"\n',
    )
    executable(clone.root / "bin/id", "#!/usr/bin/env bash\necho 1000\n")
    path = f"{clone.root / 'bin'}:{os.environ['PATH']}"
    status, output = clone.run("launch/setup.sh", PYTHON=str(bare), PATH=path)
    assert status == 1
    assert output.count("\n") == 1
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"run: sudo apt-get install python{version}-venv" in output


WORKERS = "--numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder"


def test_all_checks_run_and_the_first_failure_counts(clone: Clone) -> None:
    status, output = clone.run("launch/test.sh", "-m", "long", PYTEST_STATUS="3")
    assert status == 3, output
    checks = ["ruff format --check .", "ruff check .", "mypy ", f"pytest {WORKERS} -m long"]
    assert clone.calls()[-4:] == checks
    assert "passed  mypy\nFAILED  pytest (exit status 3)\n" in output

    executable(clone.root / ".venv/bin/ruff", "#!/usr/bin/env bash\n[[ $1 == check ]] || exit 5\n")
    status, output = clone.run("launch/test.sh", PYTEST_STATUS="3")
    assert status == 5
    assert "FAILED  ruff format (exit status 5)\npassed  ruff check\n" in output
    assert clone.calls() == ["mypy ", f"pytest {WORKERS}"]


def test_continuous_integration_is_the_same_script(clone: Clone) -> None:
    status, output = clone.run(".ci/run", CI="true")
    assert status == 0, output
    assert clone.calls()[-1] == f"pytest {WORKERS}"


# -- Slurm and plain hosts ---------------------------------------------------------------------


FOR_EACH_TASK = """[[ " $* " == *" ${SLURM_ARRAY_JOB_ID:-} "* ]] && echo "$line" && echo "$line"
echo "$line"
"""  # of an array of three, if the array's own number is asked for


class Cluster:
    """Stubs of Slurm's commands and pipeline-local; a job; a copy of the scripts.

    tests/launch/test_slurm.py has a real Slurm.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a clone"
        self.log = folder / "log"
        shutil.copytree(ROOT / "launch", self.folder / "launch")
        note = f'echo "${{0##*/}} $*" >>"{self.log}"\n'
        self.stub("srun", f'{note}sleep "${{SRUN_SECONDS:-0}}"\nexit "${{STATUS:-0}}"\n')
        self.stub("scancel", note)
        self.stub("squeue", f"line=${{COMMENT:-(null)}}\n{FOR_EACH_TASK}")
        show = f'"show job") line="   Command={self.folder}/{SBATCH} c.yaml"\n{FOR_EACH_TASK};;'
        config = '"show config") echo "TaskPlugin = ${TASKS:-none}" ;;'
        self.stub("scontrol", f'case "$1 $2" in\n{show}\n{config}\n*) {note};;\nesac\n')
        executable(self.folder / ".venv" / "bin" / "pipeline-local", f"#!/usr/bin/env bash\n{note}")
        self.env = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NUM_NODES": "2",
        }

    def stub(self, name: str, text: str) -> None:
        executable(self.log.parent / "bin" / name, f"#!/usr/bin/env bash\n{text}")

    def command(self, script: str, *args: str, **env: str) -> dict[str, Any]:
        """What subprocess is to start; Slurm starts a copy, from the folder of `sbatch`."""
        return {
            "args": ["bash", str(self.folder / script), *args],
            "cwd": "/",
            "env": self.env | env,
            **PIPES,
        }

    def run(self, script: str, *args: str, **env: str) -> tuple[int, str]:
        done = subprocess.run(**self.command(script, *args, **env), timeout=60)
        return done.returncode, done.stdout

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


ARRAY = {"SLURM_ARRAY_JOB_ID": "12345", "SLURM_ARRAY_TASK_ID": "7"}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


SBATCH = "launch/slurm/train.sbatch"
SRUN = (
    "srun {ranks} --kill-on-bad-exit=0 --wait=150"
    ' bash -c trap "" USR1; exec "$@" bash pipeline-local train c.yaml'
)


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, "--ntasks-per-node 1 --overcommit"),
        ({"SLURM_GPUS_ON_NODE": "4"}, "--ntasks-per-node 4 --overcommit"),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_NTASKS": "2"}, "--ntasks 2"),
        ({"TASKS": "affinity"}, "--ntasks-per-node 1 --overcommit --cpu-bind=none"),
    ],
)
def test_srun_starts_a_rank_per_gpu_or_task(cluster: Cluster, environment: Any, ranks: str) -> None:
    status, output = cluster.run(SBATCH, "c.yaml", "run.dir=a b", **environment)
    assert status == 0, output
    assert cluster.calls() == [f"{SRUN.format(ranks=ranks)} run.dir=a b"]


@pytest.mark.parametrize("gpus", ["4", "a100:4", "a100:2,v100:2"])
def test_as_many_gpus_on_every_node(cluster: Cluster, gpus: str) -> None:
    """Two nodes; --gpus may give one of them more than the other, which would get more ranks."""
    status, output = cluster.run(SBATCH, "c.yaml", SLURM_GPUS=gpus, SLURM_GPUS_ON_NODE="2")
    assert status == 0, output
    assert cluster.calls() == [SRUN.format(ranks="--ntasks-per-node 2 --overcommit")]
    status, output = cluster.run(SBATCH, "c.yaml", SLURM_GPUS=gpus, SLURM_GPUS_ON_NODE="3")
    assert status == 2
    assert output.count("\n") == 1
    assert "got 4 on 2 nodes, 3 on the first; ask for --gpus-per-node=N" in output
    unequal = {"SLURM_GPUS": gpus, "SLURM_GPUS_ON_NODE": "3", "SLURM_NTASKS": "2"}
    assert cluster.run(SBATCH, "c.yaml", **unequal)[0] == 0, "the user says how many"
    assert len(cluster.calls()) == 2


def test_a_requeued_job_resumes(cluster: Cluster) -> None:
    cluster.run(SBATCH, "c.yaml", SLURM_RESTART_COUNT="1")
    assert cluster.calls()[0].endswith("pipeline-local train c.yaml run.resume=true")


def test_an_environment_that_is_not_there_is_one_line(cluster: Cluster) -> None:
    shutil.rmtree(cluster.folder / ".venv")
    path = f"{cluster.log.parent / 'bin'}:/usr/bin:/bin"
    status, output = cluster.run(SBATCH, "c.yaml", PATH=path)
    assert status == 2
    assert output.count("\n") == 1
    assert f"no pipeline-local in {cluster.folder}/.venv/bin" in output


@pytest.mark.parametrize("status", ["0", "1", "2"])
def test_what_would_be_the_same_again_is_not_tried_again(cluster: Cluster, status: str) -> None:
    assert cluster.run(SBATCH, "c.yaml", STATUS=status)[0] == int(status)
    assert len(cluster.calls()) == 1


KEY = "pipeline-local-failures"


@pytest.mark.parametrize(
    ("status", "before", "after"),
    [
        ("3", "", f"{KEY}=1"),
        ("4", f"{KEY}=1", f"{KEY}=2"),
        ("137", "project failures=9", f"project failures=9 {KEY}=1"),
        ("3", f"grant a/b {KEY}=2, x", f"grant a/b {KEY}=3, x"),
    ],
)
def test_a_failure_goes_back_to_the_queue(
    cluster: Cluster, status: str, before: str, after: str
) -> None:
    """The user's own comment stays, and counts nothing."""
    assert cluster.run(SBATCH, "c.yaml", STATUS=status, COMMENT=before)[0] == int(status)
    assert cluster.calls()[1:] == [
        f"scontrol update JobId=12345 Comment={after}",
        "scontrol requeue 12345",
    ]


def test_a_task_of_an_array_means_no_other(cluster: Cluster) -> None:
    """Not even the last one, whose SLURM_JOB_ID is that of the array."""
    alone = f"{cluster.log.parent / 'bin'}:/usr/bin:/bin"  # the clone has the only pipeline-local
    status, output = cluster.run(
        SBATCH, "c.yaml", STATUS="3", COMMENT=f"{KEY}=1", PATH=alone, **ARRAY
    )
    assert status == 3, output
    assert cluster.calls()[1:] == [
        f"scontrol update JobId=12345_7 Comment={KEY}=2",
        "scontrol requeue 12345_7",
    ]


@pytest.mark.parametrize(("restarts", "comment"), [("0", ""), ("2", f"{KEY}=2")])
def test_so_many_failures_and_no_more(cluster: Cluster, restarts: str, comment: str) -> None:
    status, output = cluster.run(
        SBATCH, "c.yaml", STATUS="3", RESTARTS=restarts, COMMENT=comment, SLURM_RESTART_COUNT="9"
    )
    assert status == 3
    assert f"is not started again (RESTARTS={restarts})\n" in output
    assert len(cluster.calls()) == 1


def test_a_run_that_was_stopped_goes_back_however_often(cluster: Cluster) -> None:
    status, _ = cluster.run(
        SBATCH, "c.yaml", STATUS="75", RESTARTS="0", COMMENT=f"{KEY}=3", SLURM_RESTART_COUNT="9"
    )
    assert status == 75
    assert cluster.calls()[1:] == ["scontrol requeue 12345"]


def test_near_the_time_limit_the_ranks_are_asked_again_and_again(cluster: Cluster) -> None:
    """The first time they may not listen yet. In an array, those of no other task are."""
    command = cluster.command(SBATCH, "c.yaml", SRUN_SECONDS="7", STATUS="75", **ARRAY)
    with subprocess.Popen(**command) as process:
        deadline = time.monotonic() + 20
        while not cluster.log.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "the time limit is near" in output
    stop = "scancel --quiet --signal=USR1 12345_7"
    assert cluster.calls()[1:] == [stop, stop, "scontrol requeue 12345_7"]


def test_sbatch_asks_slurm_for_signal_and_requeue_and_no_hardware() -> None:
    text = (ROOT / SBATCH).read_text()
    options = re.findall(r"^#SBATCH (\S+)", text, re.MULTILINE)
    assert {"--signal=B:USR1@120", "--requeue"} <= set(options)
    assert not [o for o in options if o.startswith(("--nodes", "--gpus", "--cpus", "--ntasks"))]
    assert text.index("#SBATCH --output") < text.index(
        "set -euo"
    )  # Slurm stops at the first command


def test_plain_hosts(cluster: Cluster) -> None:
    status, output = cluster.run("launch/multinode.sh", "1", "head", "c.yaml", "train.steps=3")
    assert status == 0, output
    command = "pipeline-local hosts 2 1  29500 {} head train c.yaml"  # torch counts the GPUs
    assert cluster.calls() == [f"{command.format(0)} train.steps=3"]
    cluster.run("launch/multinode.sh", "1", "head", "c.yaml", RESTARTS="4")
    cluster.run("launch/multinode.sh", "1", "head", "c.yaml", RANKS_PER_NODE="4", NODES="3")
    assert cluster.calls()[1:] == [
        command.format(4),
        "pipeline-local hosts 3 1 4 29500 0 head train c.yaml",
    ]


@pytest.mark.parametrize(
    ("script", "args"), [("launch/multinode.sh", ("head", "0", "c.yaml")), (SBATCH, ())]
)
def test_wrong_arguments_get_the_usage(cluster: Cluster, script: str, args: tuple) -> None:
    status, output = cluster.run(script, *args)
    assert status == 2
    assert output.startswith("usage: ")


# -- what can be checked without running -------------------------------------------------------


def test_every_script_is_found() -> None:
    assert len(SCRIPTS) >= 6


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_shellcheck_clean(script: str) -> None:
    done = subprocess.run(["shellcheck", str(ROOT / script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def pins() -> dict[str, str]:
    """Name -> version, for the newest Python."""
    found = re.findall(
        r"^([\w.-]+)==(\S+?)(?:; python_version >=.*)?$", constraints(), re.MULTILINE
    )
    return {name.lower(): version for name, version in found}


def constraints() -> str:
    return (ROOT / "constraints.txt").read_text()


def requirements() -> list[str]:
    """The names of all direct dependencies in setup.cfg."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"].values()
    lines = "\n".join([setup["options"]["install_requires"], *extras]).split()
    return [re.split(r"[<>=!~]", line)[0].lower() for line in lines]


def test_constraints_pin_every_direct_dependency_and_no_other() -> None:
    assert {*pins()} == {*requirements()}


@pytest.mark.parametrize("path", DOCKERFILES)
def test_dockerfile(path: str) -> None:
    text = (ROOT / path).read_text().replace("\\\n", "")
    base = re.search(r"^FROM (\S+)$", text, re.MULTILINE)
    assert base
    assert re.search(r":[\w.-]*\d", base[1]), "the base image must be pinned"

    for name in ("torch", "torchvision"):
        assert f" {name}=={pins()[name]}" in text
    for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists(), f"{path} copies {source}, which does not exist"
            assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines()

    assert text.index("torch==") < text.index("COPY setup.cfg") < text.index("COPY pipeline_local ")
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)
    assert 'ENTRYPOINT ["pipeline-local"]' in text


@pytest.mark.parametrize("path", DOCKERFILES)
def test_healthcheck_is_a_command(path: str) -> None:
    """In a training container it must meet no ranks."""
    (check,) = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", (ROOT / path).read_text(), re.MULTILINE)
    program, *arguments = json.loads(check)
    options, _ = parse(arguments)
    assert (program, options.run, options.quick) == ("pipeline-local", "doctor", True)
