"""The public face: its names, what each is, and what importing the package costs."""

import inspect
import subprocess
import sys

import pytest

import pipeline_local


@pytest.mark.parametrize("name", [n for n in pipeline_local.__all__ if n != "__version__"])
def test_a_name_is_documented(name):
    found = getattr(pipeline_local, name)
    assert callable(found)
    text = inspect.getdoc(found)
    assert text
    assert text[0].isupper()
    assert text.splitlines()[0].endswith(".")


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
