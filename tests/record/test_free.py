"""A free folder is one run's own from the moment that it is found."""

from pathlib import Path

import pytest

from pipeline_local.errors import UserError
from pipeline_local.record.free import reserved


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nobody_else_finds_it_free(here):
    with reserved() as first, reserved() as second:
        assert (first, second) == (Path("runs/fit"), Path("runs/fit-2"))
        (second / "config.yaml").touch()
    assert [path.name for path in (here / "runs").iterdir()] == ["fit-2"], "the other one was empty"
    Path("runs/fit").symlink_to("nowhere")
    with reserved() as third:
        assert third == Path("runs/fit-3")


def test_where_nothing_can_be_made(here):
    (here / "runs").write_text("")
    with (
        pytest.raises(UserError, match=r"runs cannot be written \(File exists\); name one"),
        reserved(),
    ):
        pytest.fail("it has a folder")
