"""Tables fit where they go."""

from pipeline_local.record.screen import WIDTH, screen


def test_a_file_is_wide(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert screen().width == WIDTH


def test_columns_are_obeyed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "77")
    assert screen().width == 77
