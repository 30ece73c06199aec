"""Anything at all: nothing but a Config or a ConfigError ever comes out, and never a side effect.

A few hundred examples by default; `-m long` tries many more.
"""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_local.config import Config
from pipeline_local.configfile import configfile
from pipeline_local.errors import ConfigError
from pipeline_local.user_input import yaml_text

MINIMAL: dict[str, Any] = {
    "model": {"name": "resnet20"},
    "data": {"name": "digits"},
    "train": {"steps": 5},
}
TEXT = yaml_text.write(MINIMAL)
KEYS = configfile.keys()
SECTIONS = sorted({key.split(".")[0] for key in KEYS if "." in key})

awkward = [
    "1e-3", "null", "on", "2026-11-24", "~", "<<", "=", "0x" + "f" * 40, "9" * 5000, "1:" * 99,
    "-.inf", ".nan", "1e999999999", "\0", "\udcff", "\ufeff", "\u2028", "é", "[" * 2000, "{a: " * 9,
    "&a [*a]", "*a", "!!python/name:os.system", "!!python/object/apply:os.abort []", "!!set {a}",
    "!!binary x", "!!timestamp 1", "!!int []", "!!omap [1]", "a: b: c", "%YAML 9", "---\n---", "\t",
    "!<tag:yaml.org,2002:python/module:antigravity> x", "? ", "| \n x", "\r", "'", '"', "#",
]  # fmt: skip
texts = st.one_of(st.sampled_from([*KEYS, *SECTIONS, *awkward]), st.text(max_size=8))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(),
    st.binary(max_size=3),
    texts,
    st.dates(),
)
names = st.sampled_from(sorted({part for key in KEYS for part in key.split(".")}))
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(names, scalars), inner, max_size=4),
    ),
    max_leaves=12,
)
yaml_texts = st.one_of(
    st.lists(texts, max_size=6).map("".join),
    st.lists(st.builds("{}: {}".format, texts, texts), max_size=4).map("\n".join),
    st.text(alphabet="{}[]:,-&*!|>'\"%@`?<=~ \n\tab1.", max_size=40),
)
overrides = st.lists(st.one_of(texts, st.builds("{}={}".format, texts, texts)), max_size=3)


class Read:
    """Each way in: gives a Config, or None for a ConfigError."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.yaml"

    def tree(self, tree: Any) -> Config | None:
        return self._survives(configfile.parse, tree)

    def one_key(self, change: tuple[str, Any]) -> Config | None:
        key, value = change
        section, _, name = key.rpartition(".")
        inner = {section: {**MINIMAL.get(section, {}), name: value}} if section else {key: value}
        return self.tree({**MINIMAL, **inner})

    def content(self, content: bytes) -> Config | None:
        self.path.write_bytes(content)
        return self._survives(configfile.load, self.path)

    def text(self, text: str) -> Config | None:
        return self.content(
            text.encode("utf-8", "surrogateescape" if "\udcff" in text else "replace")
        )

    def damaged(self, damage: tuple[int, str]) -> Config | None:
        at, insert = damage
        whole = configfile.dump(configfile.parse(MINIMAL))
        at %= len(whole)
        return self.text(whole[:at] + insert + whole[at + len(insert) :])

    def overridden(self, given: list[str]) -> Config | None:
        self.path.write_text(TEXT)
        return self._survives(configfile.load, self.path, given)

    def _survives(self, read: Any, *arguments: Any) -> Config | None:
        problems = []
        try:
            config = read(*arguments)
        except ConfigError as error:
            config, problems = None, error.problems
        assert bool(problems) != isinstance(config, Config)
        assert all(line and "\n" not in line and "\r" not in line for line in problems), problems
        return config


WAYS: dict[str, st.SearchStrategy[Any]] = {
    "tree": st.dictionaries(st.one_of(names, scalars), trees, max_size=5),
    "one_key": st.tuples(st.sampled_from(KEYS), trees | st.sampled_from([2**63, 10**400])),
    "content": st.binary(max_size=40),
    "text": yaml_texts,
    "damaged": st.tuples(st.integers(0, 1000), st.one_of(yaml_texts, texts)),
    "overridden": overrides,
}


def visible() -> list[str]:
    return sorted(name for name in os.listdir() if not name.startswith("."))


def attempt(folder: Path, way: str, examples: int, derandomize: bool) -> None:
    before = visible()
    read = getattr(Read(folder), way)

    @settings(
        max_examples=examples,
        derandomize=derandomize,
        suppress_health_check=list(HealthCheck),
        database=None,
        deadline=None,
        print_blob=True,
    )
    @given(WAYS[way])
    def anything(value: Any) -> None:
        config = read(value)
        if config:
            path = folder / "again.yaml"
            path.write_text(configfile.dump(config), encoding="utf-8")
            assert configfile.load(path) == config

    anything()
    assert visible() == before, "reading made something"


@pytest.mark.parametrize("way", WAYS)
def test_anything(tmp_path: Path, way: str) -> None:
    attempt(tmp_path, way, examples=100, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("way", WAYS)
def test_anything_for_long(tmp_path: Path, way: str) -> None:
    attempt(tmp_path, way, examples=3000, derandomize=False)


# -- what would hang or crash a careless reader ------------------------------------------------

BOMB = "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]" for i in range(1, 12)])
MERGES = "\n".join(
    ["a0: &a0 {k: v}"] + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40)]
)


@pytest.mark.parametrize(
    "text",
    {
        "aliases": BOMB,
        "merges": MERGES,
        "itself": "a: &a\n  b: *a",
        "open lists": "[" * 50_000,
        "open maps": "{a: " * 20_000,
        "blocks": "".join(" " * i + "a:\n" for i in range(1500)),
        "dashes": "- " * 20_000,
        "digits": "a: " + "9" * 100_000,
        "sexagesimal": "a: " + "1:" * 50_000 + "1",
        "exponent": "train: {steps: 1e999999999}",
        "fraction": "a: 1." + "0" * 100_000 + "e1",
        "date": "a: 9999-99-99",
        "long key": "a" * 100_000 + ": 1",
        "many keys": "\n".join(f"k{i}: 1" for i in range(2000)),
        "quotes": "'" * 50_000,
        "tag": "!" * 50_000,
    }.items(),
    ids=lambda item: item[0],
)
def test_never_hangs(tmp_path: Path, text: tuple[str, str]) -> None:
    began = time.process_time()
    assert Read(tmp_path).text(text[1]) is None
    assert Read(tmp_path).overridden([f"model.x={text[1]}", f"{text[1]}=1"]) is None
    assert time.process_time() - began < 60, "no growth beyond reason"


def test_a_key_of_many_sections_is_refused(tmp_path: Path) -> None:
    assert Read(tmp_path).overridden(["a." * 20_000 + "b=1"]) is None


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir [made]",
        "!!python/object/new:os.mkdir [made]",
        "!!python/name:os.mkdir",
        "!!python/module:os",
        "!!python/object:pathlib.Path {}",
        "!mine x",
    ],
)
def test_no_tag_makes_anything_but_values(tmp_path: Path, monkeypatch, tag: str) -> None:
    monkeypatch.chdir(tmp_path)
    read = Read(tmp_path)
    assert read.text(f"model: {tag}\n") is None
    assert read.overridden([f"model.name={tag}"]) is None
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
