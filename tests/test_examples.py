"""Every program in examples/ runs, does what it says, and is short."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
ROOT = Path(__file__).parent.parent


@pytest.fixture
def example(tmp_path, monkeypatch, capsys):
    """Runs one in this process, on one thread; gives its run folder and its last printed lines."""

    def run(name):
        torch.manual_seed(0)
        folder = tmp_path / "run"
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
        monkeypatch.setattr(sys, "argv", [f"{name}.py", str(folder)])
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # indices of data sets
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        return folder, capsys.readouterr().out

    return run


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_shows(path):
    text = path.read_text()
    assert text.count("\n") <= 45
    said = text.split('"""')[1]
    assert said[0].isupper()
    assert said.splitlines()[0].endswith(".")
    assert re.search(
        rf"as `(python|torchrun --nproc-per-node 2) examples/{path.name}[^`]*`\.", said
    )
    code = text.split('"""', 2)[2].split("\n\nx", 1)[0] if path.stem == "fit_two_stages" else ""
    assert len([line for line in code.splitlines() if line]) <= 12


def test_every_example_is_run_here():
    tests = Path(__file__).read_text()
    assert all(f'"{path.stem}"' in tests for path in EXAMPLES)


ACCURACIES = {
    "fit_two_stages": 0.85,
    "huggingface": 0.8,
    "multi_label": 0.75,
    "segmentation": 0.9,
    "series": 0.9,
}


@pytest.mark.parametrize("name", ACCURACIES)
def test_what_is_learned(example, name, forked_launcher):
    folder, _ = example(name)
    assert summary(folder)["accuracy"][-1] > ACCURACIES[name]


@pytest.mark.long
def test_two_stages_are_two(example):
    """Called `fit_two_stages`, and trained as such; see above for what it learns."""
    folder, _ = example("moving_average")
    assert len(summary(folder)["peak_memory_bytes"]) == 2
    first, second = (load_file(folder / f"average-{rank}.safetensors") for rank in (0, 1))
    names = {"0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"}
    assert first.keys() | second.keys() == names, "the model's own"
    assert first.keys() & second.keys() == set()


def test_own_loop(example):
    _, printed = example("own_loop")
    assert float(printed.split()[-1]) > 0.8
    code = (ROOT / "examples" / "own_loop.py").read_text().split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 29


def test_own_model_and_dataset(example):
    folder, _ = example("own_model_and_dataset")
    assert summary(folder)["top3"][-1] > 0.5


def test_regression(example):
    folder, _ = example("regression")
    assert summary(folder)["mean_absolute_error"][-1] < 0.75  # of a deviation of 1


def test_language_model(example, forked_launcher):
    folder, printed = example("language_model")
    assert summary(folder)["steps"] == 10
    assert summary(folder)["bits_per_byte"][-1] < 6  # 8 before the first step
    assert len(printed.partition("\nIt is a truth")[2]) > 20


def test_pretrained(example):
    folder, printed = example("pretrained")
    assert "frozen weights stayed: True" in printed
    assert summary(folder)["accuracy"][-1] > 0.2  # of ten classes, after 8 steps


def test_callbacks(example):
    folder, _ = example("callbacks")
    best = json.loads((folder / "best.json").read_text())
    assert summary(folder)["steps"] == best["step"] + 31
    assert (folder / "log-0.csv").read_text().startswith("20,1,loss,")


@pytest.mark.parametrize("name", ["webdataset_folder", "parquet_folder"])
def test_folders_of_images(example, name):
    folder, _ = example(name)
    assert summary(folder / "run")["accuracy"][-1] > 0.3


@pytest.mark.long
def test_torchrun(tmp_path):
    """The example "torchrun", as its docstring says."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(ROOT / "examples" / "torchrun.py"), str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = sorted(re.findall(r"rank (\d): 30 steps, weights (\S+)", result.stdout))
    assert [rank for rank, _ in lines] == ["0", "1"]
    assert lines[0][1] == lines[1][1]
