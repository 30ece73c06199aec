"""Every command shows how it is used, and at once."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_local.bench.options import NAMES
from pipeline_local.commandline import bench, finished, planning
from pipeline_local.commandline.parser import parse, parser
from pipeline_local.commandline.shared import numbers, words
from pipeline_local.commands import table
from pipeline_local.finished.exporting import formats
from pipeline_local.simulation import programs
from tests.test_docs import all_parsers

ROOT = Path(__file__).parents[2]
NOT_FOR_PEOPLE = (None, "call", "hosts")
COMMANDS = [p for p in all_parsers(parser()) if p.get_default("run") not in NOT_FOR_PEOPLE]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.prog)
def test_help_ends_with_two_examples(command):
    _, _, examples = command.format_help().partition("\nexamples:\n")
    lines = examples.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"  {command.prog} ")
        options, _ = parse(shlex.split(line)[1:])
        assert options.run == command.get_default("run")
        if hasattr(options, "config"):
            assert (ROOT / options.config).is_file()


def test_every_command_does_something():
    named = {part.get_default("run") for part in all_parsers(parser())} - {None}
    assert named == table.COMMANDS.keys()


def test_names_are_those_of_what_the_commands_call():
    assert {*bench.BASELINES} == {*NAMES}
    assert (*programs.METHODS,) == planning.METHODS
    assert (*formats.FORMATS,) == finished.FORMATS


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["trian"], ["plan"]])
def test_usage_does_not_wait_for_torch(arguments):
    script = "import sys; from pipeline_local.__main__ import main; sys.argv[1:] = sys.argv[2:]"
    script += "\ntry: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script, "pipeline-local", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == (0 if "--help" in arguments else 2)
    assert done.stderr.splitlines()[-1] == "False"


def test_old_spellings_are_those_of_today(capsys):
    options, arguments = parse(["bench", "peers", "a.yaml", "--peers=ddp", "--local_rank=1"])
    assert arguments == ["bench", "baselines", "a.yaml", "--baselines=ddp"]
    assert (options.run, options.baselines) == ("bench_baselines", "ddp")
    assert "is now `bench baselines" in capsys.readouterr().err


def test_lists_with_commas():
    assert words("local, ddp,,local ") == ("local", "ddp")
    assert words(" , ") == ()
    assert numbers("4, 64,4") == (4, 64)
    for text in ("4,two", "-1", "1.5", ""):
        assert numbers(text) == ()
    options, _ = parse(["simulate", "c.yaml", "--methods", "local, ddp"])
    assert options.methods == ("local", "ddp")
