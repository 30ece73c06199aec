"""Runs on tokens: they are resumed to the byte, judged on other texts, and keep to their data."""

import json
import math
import shutil

import pytest
import torch
from torch import nn

from pipeline_local import cli
from pipeline_local.configfile import configfile
from pipeline_local.errors import UserError
from pipeline_local.finished import finished
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.text.tokenizer import ByteTokenizer
from pipeline_local.training.train import train
from tests.prose import prose


def bigrams(*, num_classes, image_shape):
    return [nn.Embedding(num_classes, 8), nn.LayerNorm(8), nn.Linear(8, num_classes)]


@pytest.fixture
def settings(texts, tmp_path):
    return {
        "model": {"name": f"python:{__name__}:bigrams"},
        "task": {"name": "next_token"},
        "data": {
            "name": "tokens",
            "root": str(texts),
            "tokenizer": "bytes",
            "sequence_length": 16,
            "batch_size": 4,
        },
        "train": {"tokens": 1000},
        "optimizer": {"name": "adamw", "lr": 0.05, "schedule": "constant"},
        "parallel": {"threads": 1},
        "run": {"dir": str(tmp_path / "run")},
    }


def run(tree, resume=False, **changes):
    sections = {name: {**tree.get(name, {}), **keys} for name, keys in changes.items()}
    config = configfile.parse({**tree, **sections})
    if resume:
        overridden = [f"{name}.{k}={v}" for name, keys in changes.items() for k, v in keys.items()]
        config = RunFolder(config.run.dir).resumed(overridden)
    return train(config, RankInfo())


def test_a_run_learns_and_is_resumed_to_the_byte(settings, tmp_path):
    whole = run(settings)
    assert whole["steps"] == 16, "1000 tokens of 64 in each step"
    assert whole["loss"][0] < 3.5, "uniform would be 5.5"
    (tmp_path / "run").rename(tmp_path / "whole")
    run(settings, train={"tokens": 450})
    again = run(settings, resume=True, train={"tokens": 1000})
    assert again["resumed_after"] == 8
    assert again["loss"] == whole["loss"]
    for (_, one), (_, other) in zip(
        finished.load_parts(tmp_path / "whole"), finished.load_parts(tmp_path / "run"), strict=True
    ):
        values = other.state_dict()
        assert all(torch.equal(v, values[k]) for k, v in one.state_dict().items())


def test_the_run_keeps_what_its_tokens_were(settings, tmp_path, capsys):
    run(settings)
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert facts["tokenizer"] == ByteTokenizer().digest
    assert facts["end_token"] == 256
    assert "sequences of 16 tokens, 257 different ones" in capsys.readouterr().out


def test_a_text_that_has_changed_is_named_on_resume(settings, texts):
    run(settings, train={"tokens": 450})
    text = (texts / "train" / "b.txt").read_text()
    (texts / "train" / "b.txt").write_text(text.replace("sea", "sky"))
    with pytest.raises(UserError) as error:
        run(settings, resume=True, train={"tokens": 1000})
    assert (
        "another content of train/b.txt; put its data back (data.root may name another place), then"
        " resume it as it was (pipeline-local resume "
    ) in str(error.value)
    another = shutil.copytree(texts, texts.with_name("another"))
    (another / "train" / "b.txt").write_text(text)
    again = run(settings, resume=True, train={"tokens": 1000}, data={"root": str(another)})
    assert again["steps"] == 16
    (texts / "train" / "b.txt").write_text(text)
    assert run(settings, resume=True, train={"tokens": 1100})["steps"] == 18
    with pytest.raises(UserError, match=r"another data\.sequence_length \(8, was 16\)"):
        run(settings, resume=True, data={"sequence_length": 8})


def test_evaluation_on_another_text(settings, tmp_path, capsys):
    run(settings)
    folder = tmp_path / "run"
    other = tmp_path / "other"
    (other / "test").mkdir(parents=True)
    (other / "test" / "x.jsonl").write_text(json.dumps({"text": prose(60, 9)}) + "\n")
    capsys.readouterr()
    assert cli.main(["evaluate", str(folder), f"data.root={other}", "data.batch_size=3"]) == 0
    assert "Test set, per head" in capsys.readouterr().out
    (other / "test" / "x.jsonl").unlink()
    torch.arange(40, dtype=torch.int16).numpy().tofile(other / "test.bin")
    assert cli.main(["evaluate", str(folder), f"data.root={other}"]) == 0, "it says bytes"
    overrides = [f"data.root={other}", "data.tokenizer=null", "data.vocabulary=257"]
    assert cli.main(["evaluate", str(folder), *overrides]) == 2
    assert "are of another tokenizer (unknown of 257 tokens)" in capsys.readouterr().err


def test_bits_per_byte_are_those_of_the_text_that_is_judged(settings, tmp_path):
    """Short documents have more end tokens for each byte than the run's own text."""
    run(settings)
    (tmp_path / "other" / "test").mkdir(parents=True)
    words = prose(40, 9).split()
    lines = "".join(json.dumps({"text": word}) + "\n" for word in words)
    (tmp_path / "other" / "test" / "x.jsonl").write_text(lines)
    facts = []
    for overrides in ([], [f"data.root={tmp_path / 'other'}"]):
        facts += [finished.evaluate(tmp_path / "run", lambda *_: None, overrides)]
    own, other = (each["bits_per_byte"][0] * math.log(2) / each["loss"][0] for each in facts)
    size = len("".join(words).encode())
    assert other == pytest.approx((size + len(words) - 1) / (size - 1))
    (text,) = (tmp_path / "texts" / "test").iterdir()
    assert other > 1.1 > own
    predicted = text.stat().st_size  # the bytes but the first, and the end of the document
    assert own == pytest.approx(predicted / (predicted - 1))


def test_one_length_is_given(settings):
    for changes, got in (({"steps": 3}, "steps and tokens"), ({"tokens": None}, "none")):
        with pytest.raises(
            UserError, match=f"one of train.epochs, train.steps and train.tokens, got {got}"
        ):
            run(settings, train=changes)
    with pytest.raises(UserError, match=r"train\.tokens needs data\.name=tokens, got digits"):
        configfile.parse({**settings, "data": {"name": "digits"}})
