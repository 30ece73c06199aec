"""The command, on this machine: alone, under a launcher, and as a healthcheck."""

import getpass
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_local.cli import main
from pipeline_local.doctor import doctor as module
from pipeline_local.doctor import neighbours
from pipeline_local.doctor.finding import failed, passed

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"(PASS|WARN|FAIL)  \w[\w ,]* {2,}\S.*")


def block(text):
    (found,) = re.findall(r"^```text\n(.*?)^```$", text, re.S | re.M)
    return found


def test_this_machine_passes_quickly(capsys, tmp_path):
    assert main(["doctor", "--quick", "--json", str(tmp_path / "d.json")]) == 0
    printed = capsys.readouterr().out
    lines = printed.partition("\n\n")[0].splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    assert all(line in block(printed) for line in lines)
    found = json.loads((tmp_path / "d.json").read_text())["findings"]
    names = {check.__name__.replace("_", " ") for check in module.CHECKS}
    assert {finding["name"] for finding in found} == names


def test_the_block_names_nobody(capsys, monkeypatch, tmp_path):
    """Whatever a check says."""
    host, user = "node17.lab.example", "ada"
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(getpass, "getuser", lambda: user)
    monkeypatch.setenv("HOME", str(tmp_path))

    def careless():
        yield passed(f"{tmp_path}/runs of {user} on {host}", note=1)
        raise ValueError(f"{user}@{host}: {tmp_path}")

    monkeypatch.setattr(module, "CHECKS", (*module.CHECKS, careless))
    assert main(["doctor", "--quick"]) == 1
    shown = block(capsys.readouterr().out)
    assert "FAIL  careless       the check ended with ValueError: USER@HOST: ~" in shown
    assert not [name for name in (host, user, str(tmp_path)) if name in shown]


def test_a_failure_is_an_exit_code(capsys, monkeypatch):
    def broken():
        yield failed("nothing works", "buy another one")

    monkeypatch.setattr(module, "CHECKS", (broken,))
    assert main(["doctor", "--quick"]) == 1
    assert "FAIL  broken         nothing works; buy another one\n" in capsys.readouterr().out


def test_no_file_is_overwritten(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CHECKS", ())
    (tmp_path / "d.json").write_text("mine")
    assert main(["doctor", "--quick", "--json", str(tmp_path / "d.json")]) == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "d.json").read_text() == "mine"


def test_a_healthcheck_meets_no_ranks(monkeypatch, capsys):
    """It runs in a container whose environment may be that of a rank, which is training."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(neighbours, "together", None)
    assert main(["doctor", "--quick"]) == 0
    assert "PASS  python" in capsys.readouterr().out


def test_the_first_rank_reports(run_ranks, tmp_path, capfd):
    def command(rank_info):
        return main(["doctor", "--json", str(tmp_path / "d.json")])

    assert run_ranks(command, 2) == [0, 0]
    found = json.loads((tmp_path / "d.json").read_text())["findings"]
    assert [f["name"] for f in found[-3:]] == ["ranks", "clocks", "link"]
    assert capfd.readouterr().out.count("\nPASS  libraries") == 2  # a line, and in the block


def test_each_rank_reports_why_it_cannot_take_part(run_ranks, capfd):
    def command(rank_info):
        def lost(*_):
            raise OSError("no route")

        neighbours.together = lost
        return main(["doctor"])

    assert run_ranks(command, 2) == [1, 1]
    printed = capfd.readouterr().out
    assert "[rank 1] FAIL  ranks          the check ended with OSError: no route" in printed
    assert printed.count("\nPASS  libraries") == 2


@pytest.mark.long
@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--nproc-per-node=2"]])
def test_the_whole_command(tmp_path, launcher):
    """It trains with two ranks, or asks those of torchrun, and leaves nothing but its file."""
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "pipeline_local", "doctor", "--json", "d.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "d.json").read_text())["findings"]
    assert found[-1]["name"] == ("link" if launcher else "training")
    assert "FAIL" not in {finding["status"] for finding in found}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("pipeline_local-")] == []
