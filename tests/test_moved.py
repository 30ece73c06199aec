"""Old names of files: they are the same modules, with a warning."""

import subprocess
import sys
from importlib import import_module

import pytest

from pipeline_local.moved import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_file_is_found_by_its_old_name(old, new, monkeypatch):
    monkeypatch.delitem(sys.modules, f"pipeline_local.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to pipeline_local.{new}"):
        found = import_module(f"pipeline_local.{old}")
    assert found is import_module(f"pipeline_local.{new}")
    assert found.__name__ == found.__spec__.name == f"pipeline_local.{new}"


@pytest.mark.parametrize(
    ("line", "name", "new"),
    [
        ("from pipeline_local.trainer import Trainer, train", "train", "training.train"),
        ("from pipeline_local import trainer; train = trainer.train", "train", "training.train"),
        ("from pipeline_local.configfile import load", "load", "configfile.configfile"),
        (
            "from pipeline_local import configfile; f = configfile.parse",
            "f",
            "configfile.configfile",
        ),
        ("from pipeline_local.fitting import fit", "fit", "fitting.fitting"),
        ("from pipeline_local.finished import evaluate", "evaluate", "finished.finished"),
        ("from pipeline_local.given import Given", "Given", "given.given"),
        ("from pipeline_local.exits.table import show as f", "f", "finished.exits.table"),
        ("from pipeline_local.record.metrics import settle", "settle", "record.wall_time"),
        ("from pipeline_local.record.metrics import of_step", "of_step", "record.measurements"),
        (
            "from pipeline_local.data.datasets import open_split",
            "open_split",
            "data.images.datasets",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:pipeline_local:DeprecationWarning")
def test_lines_of_programs_go_on(line, name, new):
    names = {}
    exec(line, names)
    assert names[name].__module__ in (
        f"pipeline_local.{new}",
        "pipeline_local.data.images.datasets",
    )


def test_a_file_of_a_folder_is_the_file():
    """And no function of that name in another file of the folder."""
    script = "from pipeline_local.configfile import keys; print(type(keys).__name__)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("module\n", "")


def test_what_has_never_been_is_not_found():
    with pytest.raises(ModuleNotFoundError, match="trainers"):
        import_module("pipeline_local.trainers")
    with pytest.raises(AttributeError, match="has no attribute 'loaad'"):
        import_module("pipeline_local.configfile").loaad  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'setle'"):
        import_module("pipeline_local.record.metrics").setle  # noqa: B018
