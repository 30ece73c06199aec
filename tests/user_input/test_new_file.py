"""Files that a user asks for: never over another one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_local.errors import UserError
from pipeline_local.user_input import new_file


def test_a_new_file_and_its_folders(tmp_path):
    path = tmp_path / "a" / "b.json"
    new_file.check("--json", path)
    new_file.write("--json", path, "text")
    assert path.read_text() == "text"


def test_what_is_there_stays(tmp_path):
    path = tmp_path / "b.json"
    path.write_text("mine")
    for refused in (new_file.check, lambda *where: new_file.write(*where, "text")):
        with pytest.raises(UserError, match=r"--json: .*b\.json exists, and files are never over"):
            refused("--json", path)
    assert path.read_text() == "mine"


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    for refused in (new_file.check, lambda *where: new_file.write(*where, "text")):
        with pytest.raises(UserError, match=r"--output: .* cannot be written, as .*file is not"):
            refused("--output", tmp_path / "file" / "a" / "b.json")


def test_a_name_that_is_too_long(tmp_path):
    for name in ("a" * 300, f"{'a' * 300}/b"):
        for refused in (new_file.check, lambda *where: new_file.write(*where, "text")):
            with pytest.raises(UserError, match=r"--output: .* cannot be written \(File name too"):
                refused("--output", tmp_path / name)


def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="exists"):
        new_file.write("--output", tmp_path / "link", "text")
    assert not (tmp_path / "gone").exists()


def test_the_locale_decides_nothing(tmp_path):
    """As where a container names none."""
    code = "from pipeline_local.user_input import new_file; from pathlib import Path;"
    code += " new_file.write('--output', Path('page.html'), 'a \\u00b7 b')"
    plain = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-X", "utf8=0", "-c", code]
    subprocess.run(command, cwd=tmp_path, env=plain, check=True)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "a \u00b7 b"


def test_half_a_file_does_not_stay(tmp_path, monkeypatch):
    """It would be in the way of the next try."""

    def no_space():
        raise OSError(28, "No space left on device")

    def on_a_full_disk(path, *args, **keys):
        file = opened(path, *args, **keys)
        file.flush = no_space
        return file

    opened = Path.open
    path = tmp_path / "a.json"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", on_a_full_disk)
        with pytest.raises(UserError, match=r"--json: .* cannot be written .*No space left"):
            new_file.write("--json", path, "text")
    assert not path.exists()
    with pytest.raises(UserError, match=r"--json: .* cannot be written .*surrogates not allowed"):
        new_file.write("--json", path, "\udc80")
    assert not path.exists()
    new_file.write("--json", path, "text")


def test_json_is_strict(tmp_path):
    path = tmp_path / "a.json"
    new_file.write_json("--json", path, {"a": float("nan"), "b": [float("inf"), (1.5, None)]})
    assert path.read_text().endswith("}\n")
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found == {"a": None, "b": [None, [1.5, None]]}
