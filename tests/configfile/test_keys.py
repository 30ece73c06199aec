"""Every key is explained; an unknown one gets the nearest names."""

from pathlib import Path

import pytest

from pipeline_local.cli import main
from pipeline_local.configfile import configfile, keys
from pipeline_local.errors import UserError

CONFIG = Path(__file__).parents[2] / "configs" / "digits.yaml"


def test_every_key_is_there():
    assert [*keys.every()] == configfile.keys()
    for key in keys.every().values():
        assert key.meaning
        assert key.values
        assert key.default


@pytest.mark.parametrize(
    ("name", "values", "default", "choices"),
    [
        ("optimizer.lr", "number > 0", "0.1", ()),
        ("precision", "`float32`, `bfloat16`, ", "float32", ("float32", "bfloat16")),
        ("compile", "true or false", "false", ("true", "false")),
        ("parallel.wire_dtype", "`bfloat16`, `float16` or null", "null", ("bfloat16", "float16")),
        ("data.name", "`digits`, ", "required", ("digits", "synthetic")),
        ("data.sequence_length", "integer >= 1", "required", ()),
    ],
)
def test_find(name, values, default, choices):
    key = keys.find(name)
    assert key.values.startswith(values)
    assert key.default == default
    assert key.choices[: len(choices)] == choices


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lr", "did you mean optimizer.lr?"),
        ("optimizer.lrr", "did you mean optimizer.lr or"),
        ("steps", "did you mean train.steps or"),
        ("frobnicate", "see docs/configuration.md"),
    ],
)
def test_an_unknown_key(name, hint):
    with pytest.raises(UserError) as error:
        keys.find(name)
    assert hint in str(error.value)


def test_explain(capsys):
    assert main(["explain", "optimizer.lr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "optimizer.lr: Highest learning rate.",
        "  values   number > 0 and <= 1000000000",
        "  default  0.1",
        "  page     docs/configuration.md#optimizer",
    ]
    assert main(["explain", "head"]) == 0
    shown = capsys.readouterr().out
    assert all(key.name in shown for key in keys.of_section("head"))
    assert main(["explain", "lr"]) == 2
    unknown, _, page = capsys.readouterr().err.partition(" (")
    assert unknown == "error: unknown key 'lr'; did you mean optimizer.lr?"
    assert page == "pipeline-local explain optimizer.lr; docs/configuration.md#optimizer)\n"


def test_a_wrong_value_says_where_it_is_explained(capsys):
    wrong = ["optimizer.lr=x", "nonsense=1", "data.batch_size=7", "train.microbatches=2"]
    assert main(["train", str(CONFIG), *wrong]) == 2
    unknown, lr = capsys.readouterr().err.splitlines()
    link = "docs/configuration.md#optimizer"
    assert lr.endswith(f"got 'x' (pipeline-local explain optimizer.lr; {link})")
    assert keys.find("optimizer.lr").link == link
    assert "explain" not in unknown
