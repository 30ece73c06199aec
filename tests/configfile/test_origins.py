"""The whole configuration is shown, loads as the same, and says where each value comes from."""

import os
import re
from pathlib import Path

import pytest

from pipeline_local.configfile import configfile, origins

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
        elif match := re.fullmatch(r"(|  )(\w+):.*  # (file|command line|default)", line):
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


LONG = "/content/drive/My Drive/Colab Notebooks/experiments with pipelines/the first run of two"


@pytest.mark.parametrize("value", [LONG, f"'{LONG}: {LONG}'", '"two\\nlines"', "'# no comment'"])
def test_a_value_of_any_length_stays_on_its_line(file, tmp_path, value):
    for key in ("run.dir", "log.wandb"):
        text = origins.annotated(file, [f"{key}={value}"])
        assert of(text)[key] == "command line"
        again = tmp_path / "again.yaml"
        again.write_text(text)
        assert configfile.load(again) == configfile.load(file, [f"{key}={value}"])


def test_a_part_of_a_value_that_is_a_mapping(file, tmp_path):
    override = "deepspeed.zero_optimization.stage=2"
    text = origins.annotated(file, ["engine=deepspeed", override])
    found = of(text)
    assert found["deepspeed.zero_optimization"] == "command line"
    assert "deepspeed.stage" not in found
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert configfile.load(again) == configfile.load(file, ["engine=deepspeed", override])


def test_a_file_that_can_be_read_once(file):
    """As a shell's process substitution gives it."""
    reading, writing = os.pipe()
    os.write(writing, file.read_bytes())
    os.close(writing)
    try:
        assert origins.annotated(Path(f"/dev/fd/{reading}"), []) == origins.annotated(file, [])
    finally:
        os.close(reading)
