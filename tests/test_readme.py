"""What the README says is what runs: its Python example, its commands, its tree."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from pipeline_local.commandline.parser import parser
from pipeline_local.configfile import configfile

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    return [text for name, text in fenced if name == language]


def test_python_example(tmp_path):
    """As printed, in a program of its own: it starts two ranks."""
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    (tmp_path / "example.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    first, last = json.loads(done.stdout.splitlines()[-1])
    assert first > 0.85
    assert last > 0.85
    assert len(list(tmp_path.glob("runs/fit/metrics/stage-*.jsonl"))) == 2


def test_it_is_short():
    """What is reference stands in docs/; pictures, code and trees do not count."""
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.S | re.M)
    assert len(prose.split()) <= 800


def commands():
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line]


def test_commands_exist():
    parsed = 0
    for words in commands():
        if "train" in words and words[0] in ("pipeline-local", "torchrun", "deepspeed"):
            words = ["pipeline-local", *words[words.index("train") :]]
        if words[0] == "pipeline-local":
            options = parser().parse_args(words[1:])
            if hasattr(options, "config"):
                configfile.load(ROOT / options.config, options.overrides)
            parsed += 1
        elif words[0] in ("bash", "sbatch"):
            script = next(word for word in words[1:] if not word.startswith("-"))
            assert (ROOT / script).is_file(), words
            parsed += 1
        elif words[0] == "source":
            assert words[1] == ".venv/bin/activate"
            parsed += 1
    assert parsed == len(commands()) >= 9


def test_launches_are_the_tested_ones():
    tested = (ROOT / "tests" / "test_launches.py").read_text()
    for launcher in ("pipeline-local", "torchrun", "deepspeed"):
        assert any(words[0] == launcher for words in commands())
        assert f'["{launcher}"' in tested


def is_path(word):
    return word.endswith(("/", ".py"))


def test_tree_names_what_is_there():
    (tree,) = [block for block in blocks("") if "pipeline_local/" in block]
    folder, count = [], 0
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = itertools.takewhile(is_path, line.split())
        for name in names:
            folder = [*folder[:depth], name]
            assert (ROOT / Path(*folder)).exists(), line
            count += 1
    assert count > 20
