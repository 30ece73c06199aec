"""The scripts are asked in real shells: commands, keys and their values."""

import shutil
import subprocess

import pytest

from pipeline_local.configfile import completion

BASH = """
source {script}
COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ options=$*; }}
_pipeline_local pipeline-local "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "$options" "${{COMPREPLY[@]}}"
"""
ASKED = [
    ("tok", ["tokenize"]),
    ("completion f", ["fish"]),
    ("explain head.de", ["head.depth", "head.decay"]),
    ("train x.yaml --d", ["--dry-run"]),
    ("train x.yaml optimizer.l", ["optimizer.lr="]),
    ("train x.yaml train.seed = 1 optimizer.l", ["optimizer.lr="]),
    ("train x.yaml optimizer.name =", ["sgd", "adamw", "muon"]),
    ("train x.yaml train.seed = 1 precision = b", ["bfloat16"]),
    ("train x.yaml compile = t", ["true"]),
    ("bench baselines x.yaml log.w", ["log.wandb="]),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    for shell in completion.SHELLS:
        (folder / shell).write_text(completion.script(shell))
    return folder


def asked(shell, text):
    done = subprocess.run([shell, "-c", text], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(("words", "wanted"), ASKED, ids=[words for words, _ in ASKED])
def test_bash(scripts, words, wanted):
    text = BASH.format(script=scripts / "bash", words=f"pipeline-local {words}")
    options, *found = asked("bash", text)
    assert found == wanted
    assert ("nospace" in options) == wanted[0].endswith("=")


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
@pytest.mark.parametrize(("words", "wanted"), ASKED, ids=[words for words, _ in ASKED])
def test_fish(scripts, words, wanted):
    """It does not split words at "="."""
    line = words.replace(" = ", "=").replace(" =", "=")
    key, sign, _ = line.rpartition("=")
    last = line.split()[-1]
    prefix = f"{key.split()[-1]}=" if sign and sign in last else ""
    found = asked("fish", f"source {scripts}/fish; complete -C 'pipeline-local {line}'")
    assert sorted(row.partition("\t")[0] for row in found) == sorted(prefix + w for w in wanted)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_reads_its_script(scripts):
    assert asked("zsh", f"zsh -n {scripts}/zsh") == []
