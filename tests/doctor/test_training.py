"""The run of two ranks: what it says where it fails. That it works is in test_doctor.py."""

import os
import subprocess
import sys

import yaml

from pipeline_local.configfile import configfile
from pipeline_local.doctor import training as module
from pipeline_local.doctor.training import training


def test_its_configuration_is_one(tmp_path):
    *_, file = module._command(tmp_path / "digits.yaml", tmp_path / "run")
    config = configfile.load(tmp_path / "digits.yaml", [])
    assert (config.parallel.stages, config.train.steps) == (2, 2)
    assert (
        yaml.safe_load((tmp_path / "digits.yaml").read_text())["run"]["dir"]
        in str(tmp_path) + "/run"
    )
    assert file == str(tmp_path / "digits.yaml")


def replaced(monkeypatch, program):
    monkeypatch.setattr(module, "_command", lambda *_: [sys.executable, "-c", program])


def test_a_run_that_fails(lines, monkeypatch):
    program = "import sys; sys.exit('warning\\n[stage 1 | rank 1] error: no space\\nmore')"
    replaced(monkeypatch, program)
    ((status, text),) = lines(training)
    assert (status, "exit code 1: [stage 1 | rank 1] error: no space;" in text) == ("FAIL", True)


def test_a_run_that_only_says_that_it_works(lines, monkeypatch):
    replaced(monkeypatch, "pass")
    assert lines(training)[0][0] == "FAIL"


def test_a_run_without_end(lines, monkeypatch):
    monkeypatch.setattr(module, "LIMIT_SECONDS", 0.2)
    replaced(monkeypatch, "import time; time.sleep(60)")
    ((status, text),) = lines(training)
    assert (status, text.startswith("no end within")) == ("FAIL", True)


def test_it_is_no_rank_of_the_launcher(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    kept = module._environment()
    assert not kept.keys() & {"RANK", "TORCHELASTIC_RUN_ID"}
    assert kept["PATH"] == os.environ["PATH"]


def test_nothing_is_left(lines, monkeypatch, tmp_path):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(
        module.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "")
    )
    assert "it says nothing" in lines(training)[0][1]
    assert not list(tmp_path.iterdir())
