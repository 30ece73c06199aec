"""Where a run has been started, one entry for each start."""

import json
import platform

import torch

from pipeline_local import __version__
from pipeline_local.record import environment
from pipeline_local.record.folder import RunFolder


def test_an_entry_for_each_start(tmp_path):
    folder = RunFolder(tmp_path)
    folder.add_start(0, 2, "cpu")
    folder.add_start(40, 4, "cpu")
    first, second = environment.load(folder.environment)
    assert (first["step"], first["ranks"], second["step"], second["ranks"]) == (0, 2, 40, 4)
    assert first["pipeline_local"] == __version__
    assert (first["python"], first["torch"]) == (platform.python_version(), torch.__version__)
    assert first["device"] == "cpu"
    assert first["threads"] == torch.get_num_threads()
    assert "cuda" not in first


def test_a_device_that_says_nothing_is_no_error():
    assert environment.facts("meta")["device"] == "meta"


def test_a_damaged_file_is_as_none(tmp_path):
    path = tmp_path / "environment.json"
    assert environment.load(path) == []
    for text in ("{", "{}", "[1]"):
        path.write_text(text)
        assert environment.load(path) == []
    environment.add(path, 0, 1, "cpu")
    assert len(json.loads(path.read_text())) == 1
