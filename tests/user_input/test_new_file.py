"""Files that a user asks for: never over another one."""

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
