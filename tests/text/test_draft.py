"""A folder is there whole, or not at all."""

import threading

import pytest

from pipeline_local.errors import UserError
from pipeline_local.text import draft


def test_a_folder_appears_whole_without_what_helped_to_make_it(tmp_path):
    def fill(folder):
        assert not (tmp_path / "out").exists()
        draft.write_json(folder / "facts.json", {"a": 1})
        draft.own(folder, "journal").write_text("x")

    assert draft.make(tmp_path / "deep" / "out", {"n": 1}, fill)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "deep" / "out").iterdir()] == ["facts.json"]


def test_a_draft_goes_on_with_the_same_request_alone(tmp_path):
    def stop(folder):
        (folder / "half").write_text("done")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draft.make(tmp_path / "out", {"files": [("a", 1)]}, stop)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"out\.partial was begun from other texts"):
        draft.make(tmp_path / "out", {"files": [("a", 2)]}, stop)
    seen = []
    draft.make(tmp_path / "out", {"files": [("a", 1)]}, lambda f: seen.append(f / "half"))
    assert seen
    assert (tmp_path / "out" / "half").read_text() == "done"


def test_the_second_of_two_waits_for_the_first(tmp_path, capsys, monkeypatch):
    """File locks are of processes, so that threads of one have to be told apart."""
    waits, done = threading.Event(), threading.Event()
    real = draft.fcntl.lockf

    def lockf(lock, how):
        if how & draft.fcntl.LOCK_NB:
            raise BlockingIOError(draft.errno.EAGAIN, "held")
        waits.set()
        assert done.wait(10)
        real(lock, how)

    monkeypatch.setattr(draft.fcntl, "lockf", lockf)
    results = []
    second = threading.Thread(
        target=lambda: results.append(draft.make(tmp_path / "out", {}, lambda _: 1 / 0))
    )
    second.start()
    assert waits.wait(10)
    monkeypatch.setattr(draft.fcntl, "lockf", real)
    assert draft.make(tmp_path / "out", {}, lambda folder: (folder / "x").touch())
    done.set()
    second.join(10)
    assert results == [False]
    assert "waiting for another process that writes" in capsys.readouterr().out


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*; name another folder"):
        draft.make(tmp_path / "file" / "out", {}, lambda _: None)
