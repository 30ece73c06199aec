"""The whole configuration is shown, loads as the same, and says where each value comes from."""

import re

import pytest

from pipeline_local import configfile, origins

TEXT = """
model: {name: resnet20, width: 4}
data:
  name: digits
  batch_size: 32
modules: {cuts: [2, 4]}
head: {name: auglocal, depth: 1}
train: {steps: 6}
compile: false
"""


def of(text):
    """Origins by key."""
    found, section = {}, ""
    for line in text.splitlines():
        if match := re.fullmatch(r"(\w+):", line):
            section = match[1]
        elif match := re.fullmatch(r"( *)(\w+):.*  # (file|command line|default)", line):
            found[f"{section}.{match[2]}" if match[1] else match[2]] = match[3]
    return found


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ([], {"model.width": "file", "data.batch_size": "file", "train.seed": "default"}),
        (["data.batch_size=16"], {"data.batch_size": "command line", "data.name": "file"}),
        (
            ["head={name: linear}"],
            {"head.name": "command line", "head.depth": "default", "compile": "file"},
        ),
        (["precision=bfloat16"], {"precision": "command line", "channels_last": "default"}),
    ],
)
def test_origins(file, tmp_path, overrides, wanted):
    text = origins.annotated(file, overrides)
    found = of(text)
    assert wanted.items() <= found.items()
    assert set(configfile.keys()) - {"modules.cuts"} <= found.keys()
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert configfile.load(again) == configfile.load(file, overrides)
