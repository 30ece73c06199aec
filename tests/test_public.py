"""The public face: its names, what each is, and what importing the package costs."""

import doctest
import inspect
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import pipeline_local
from pipeline_local import load_config
from pipeline_local.pipeline.edge import Nowhere
from pipeline_local.record.trace import Trace

ROOT = Path(__file__).parent.parent
OTHERS = {"nn": nn, "torch": torch, "replace": replace, "Path": Path}
OTHERS |= {"Nowhere": Nowhere, "Trace": Trace}
"""What the examples of docstrings use beside the public names, `x`, `y` and `model`."""


@pytest.mark.parametrize("name", [n for n in pipeline_local.__all__ if n != "__version__"])
def test_a_name_is_documented(name):
    found = getattr(pipeline_local, name)
    assert callable(found)
    text = inspect.getdoc(found)
    assert text
    assert text[0].isupper()
    assert text.splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", [n for n in pipeline_local.__all__ if n != "__version__"])
def test_the_example_of_a_name_runs(name, tmp_path, monkeypatch):
    """What a line gives is compared where the docstring shows it; what a run prints is not."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    x, y = map(torch.as_tensor, load_digits(return_X_y=True))
    model = nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    names = {n: getattr(pipeline_local, n) for n in pipeline_local.__all__}
    names |= OTHERS | {"x": (x / 16).float(), "y": y, "model": model}
    names["fit"] = partial(names["fit"], parallel={"threads": 1})
    here = ["parallel.threads=1", "parallel.stages=1"]  # no more processes
    names["load_config"] = lambda path, more=(): load_config(path, [*more, *here])
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(pipeline_local, name)))
    assert examples
    for line in examples:
        if line.want:
            assert f"{eval(line.source, names)!r}\n" == line.want
        else:
            exec(line.source, names)


def test_dir_shows_the_public_names_alone():
    assert dir(pipeline_local) == sorted(pipeline_local.__all__)
    assert len(pipeline_local.__all__) == len(set(pipeline_local.__all__)) == 19
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        pipeline_local.fitt  # noqa: B018


def test_submodules_do_not_hide_names():
    import pipeline_local.config
    import pipeline_local.fitting.fitting
    import pipeline_local.training.callbacks
    import pipeline_local.training.train
    from pipeline_local import Config, fit, load, load_config, train

    assert fit is pipeline_local.fitting.fitting.fit
    assert load is pipeline_local.fitting.fitting.load
    assert load is not load_config
    assert train is pipeline_local.training.train.train
    assert Config is pipeline_local.config.Config


def test_importing_the_package_does_not_import_torch():
    program = (
        "import sys, pipeline_local\n"
        "assert 'torch' not in sys.modules\n"
        "from pipeline_local import UserError\n"
        "assert 'torch' not in sys.modules\n"
        "import pipeline_local.errors, pipeline_local.config\n"
        "pipeline_local.__version__, dir(pipeline_local)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
