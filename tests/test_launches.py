"""The launches of the README, with the real launchers: the same bytes from each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_local.cli import main

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent
SMALL = ["model.width=4", "train.epochs=null", "train.steps=8", "parallel.threads=1"]
TRAIN = ["train", str(ROOT / "configs" / "digits.yaml"), *SMALL]
TWO, FOUR = ["parallel.stages=2"], ["parallel.stages=4"]

RUN = Path("runs", "digits")

LAUNCHES = {
    "built-in launcher": ["pipeline-local", *TRAIN, *TWO],
    "torchrun": ["torchrun", "--nproc-per-node=2", "-m", "pipeline_local", *TRAIN, *TWO],
    "torchrun, 4": ["torchrun", "--nproc-per-node=4", "-m", "pipeline_local", *TRAIN, *FOUR],
    "deepspeed": ["deepspeed", "--num_accelerators", "2", "--module", "pipeline_local", *TRAIN],
}


def launch(command, folder, **more):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    environment |= {"PATH": f"{BIN}:{environment['PATH']}", **more}
    return subprocess.run(
        [BIN / command[0], *command[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Those of all modules in one process, this one."""
    folder = tmp_path_factory.mktemp("alone")
    assert main([*TRAIN, "parallel.stages=1", f"run.dir={folder / RUN}"]) == 0
    return checkpoint(folder)


def checkpoint(folder):
    files = (folder / RUN).glob("checkpoints/step-00000008/*.safetensors")
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "name",
    [
        "built-in launcher",
        "torchrun",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("torchrun, 4", "deepspeed")),
    ],
)
def test_launches_agree(name, tmp_path, expected):
    done = launch(LAUNCHES[name], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "classifier" in done.stdout
    assert len(expected) == 4
    assert checkpoint(tmp_path) == expected


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("built-in launcher", ["modules.count=11"], "11 modules for 10 blocks"),
        ("torchrun, 4", ["parallel.stages=3"], "needs 3 ranks, but the launcher started 4"),
        ("torchrun, 4", ["modules.count=3", "parallel.stages=null"], "4 stages for 3 modules"),
    ],
)
def test_mistakes_are_told_once(name, more, message, tmp_path):
    done = launch([*LAUNCHES[name], *more], tmp_path)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, done.stderr
    assert message in told[0]
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_the_built_in_launcher_gives_the_exit_code_of_the_rank_that_failed(tmp_path):
    """The data is fine when it is described, and broken when it is read."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(8):
                (tmp_path / split / name / f"{i}.jpg").write_bytes(b"broken")
    more = ["data.name=imagefolder", f"data.root={tmp_path}", "data.batch_size=8"]
    done = launch([*LAUNCHES["built-in launcher"], *more, "data.image_size=8"], tmp_path)
    assert done.returncode == 2, done.stderr
    assert "an image cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
