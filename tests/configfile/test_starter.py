"""A new configuration trains as it is, and says the defaults of all else."""

import re

import pytest

from pipeline_local.cli import main
from pipeline_local.configfile import configfile, keys, starter


@pytest.mark.parametrize("model", ["resnet32", "vit", "causal_lm", "mlp", "swin_t"])
def test_it_is_ready_to_train(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine.yaml", "--model", model]) == 0
    assert main(["train", "mine.yaml", "--dry-run", "parallel.threads=1"]) == 0
    assert main(["init", "mine.yaml"]) == 2
    assert "never overwritten" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["resnet32", "causal_lm"])
def test_what_is_commented_out_is_the_default(model, tmp_path):
    file, whole = tmp_path / "mine.yaml", tmp_path / "whole.yaml"
    text = starter.text(model, "mine.yaml")
    file.write_text(text)
    names = {name.rpartition(".")[2] for name in keys.every()}
    whole.write_text(re.sub(rf"# ((?:{'|'.join(names)}): \S+)$", r"\1", text, flags=re.M))
    assert configfile.load(whole) == configfile.load(file)
    shown = re.findall(r"^ *(?:# )?([a-z0-9_]+): \S", whole.read_text(), re.M)
    assert {*shown} >= names


def test_an_unknown_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--model", "renset20"]) == 2
    assert "did you mean 'resnet20'" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []
