"""A user's code is found by its name, and not mistaken for a library's."""

import sys

import pytest

from pipeline_local.errors import UserError
from pipeline_local.user_input.user_code import import_named


def test_a_module_of_the_current_folder_that_a_librarys_hides_is_refused(tmp_path, monkeypatch):
    """Python finds its own; to put the folder first would hide it from the libraries instead."""
    (tmp_path / "profile.py").write_text("def build(): ...")
    (tmp_path / "only_here.py").write_text("def build(): ...")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    assert import_named("model.name", "python:only_here:build").__name__ == "build"
    assert sys.path[-1] == str(tmp_path)
    with pytest.raises(UserError, match=r"model.name: profile.py in the current folder .*; rename"):
        import_named("model.name", "python:profile:build")
    del sys.modules["only_here"]
