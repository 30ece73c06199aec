"""Small texts, and a cache of each test's own."""

import pytest

from pipeline_local.data.tokens import entry
from tests.prose import prose


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    entry._forget()


@pytest.fixture
def texts(tmp_path):
    """Two training texts, one for testing."""
    root = tmp_path / "texts"
    for name, text in {
        "train/a.txt": prose(300),
        "train/b.txt": prose(200, 3),
        "test/c.txt": prose(120, 5),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root
