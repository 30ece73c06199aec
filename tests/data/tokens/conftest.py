"""Small texts, and a cache of each test's own."""

import pytest

from pipeline_local.data.tokens import entry

TEXT = "the sea was calm and the ship went on to the far land where nobody had been before"
WORDS = TEXT.split()


def prose(count, first=0):
    """So many words, in lines of seven; another beginning gives another text."""
    words = [WORDS[(7 * i + i * i // 5 + first) % len(WORDS)] for i in range(count)]
    return "\n".join(" ".join(words[i : i + 7]) for i in range(0, count, 7)) + "\n"


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
