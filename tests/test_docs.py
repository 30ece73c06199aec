"""The pages of docs/ agree with the code and with each other, and their sentences are short."""

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from pipeline_local.cli import RELIABILITY, page_of
from pipeline_local.commandline.parser import parse, parser
from pipeline_local.commands.table import COMMANDS
from pipeline_local.configfile import configfile

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "experiments").glob("*.md"),
        ROOT / "docker" / "README.md",
        ROOT / "launch" / "slurm" / "README.md",
        ROOT / "launch" / "kubernetes" / "README.md",
    ]
)
GENERATED = ("configuration.md", "commands.md")
FOLDERS = (
    "pipeline_local",
    "tests",
    "docs",
    "examples",
    "configs",
    "experiments",
    "launch",
    "docker",
)
FILES = [path.relative_to(ROOT) for name in FOLDERS for path in (ROOT / name).rglob("*.*")]
LONGEST_SENTENCE = 40
"""Words; the aim is 30."""
PLACEHOLDERS = {"PATH": ".", "PATH16": ".", "K": "4", "M": "2", "N": "2"}
"""What commands on the pages leave to the reader."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def prose(page):
    """The text without fenced and indented code and HTML comments."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.S | re.M)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    return re.sub(r"(?:^|(?<=\n\n))(?: {4}.*\n)+", "", text)


def code_blocks(page, language):
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.S | re.M)
    return [text for name, text in fenced if name == language]


def slug(heading):
    """As GitHub and mkdocs make one of a heading."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower())
    return kept.replace(" ", "-")


def anchors(page):
    return [slug(line) for line in re.findall(r"^#+ (.*)$", prose(page), re.M)]


@every_page
def test_headings_have_one_anchor_everywhere(page):
    found = anchors(page)
    assert len(found) == len(set(found))
    assert not [anchor for anchor in found if "--" in anchor]


@every_page
def test_links_resolve(page):
    text = re.sub(r"`[^`]*`", "", prose(page))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in targets:
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.is_file(), target
        if ROOT / "docs" in page.parents:  # the site has nothing else
            assert ROOT / "docs" in linked.parents, target
        if anchor:
            assert anchor in anchors(linked), target


@pytest.mark.parametrize("page", [*(page_of("", command) for command in COMMANDS), RELIABILITY])
def test_errors_lead_to_a_place_in_a_page(page):
    name, _, anchor = page.partition("#")
    assert (ROOT / name).is_file()
    assert not anchor or anchor in anchors(ROOT / name)


@pytest.mark.parametrize("key", configfile.keys())
def test_errors_that_name_a_key_lead_to_it(key):
    explained = page_of(f"{key}: is wrong, head.name is not", "train")
    assert explained.startswith(f"pipeline-local explain {key}; docs/configuration.md#")
    assert explained.partition("#")[2] in anchors(ROOT / "docs" / "configuration.md")
    if "." in key:
        assert page_of(f"{key}.0: is wrong, 0.5 is not", "train") == explained, "of an element"


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pages_are_current(name):
    written = generator().PAGES[name]()
    assert (ROOT / "docs" / name).read_text() == written, "run: python docs/generate.py"


def test_configuration_lists_every_key():
    page = ROOT / "docs" / "configuration.md"
    listed = re.findall(r"^\| `([a-z0-9_.]+)` \|.*\| \S.* \|$", page.read_text(), re.M)
    assert sorted(listed) == sorted(configfile.keys())


def all_parsers(whole):
    yield whole
    for action in whole._actions:
        for child in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            yield from all_parsers(child)


def flags():
    """Every option of every command, but for old spellings, which `--help` does not show."""
    return {
        option
        for part in all_parsers(parser())
        for action in part._actions
        for option in action.option_strings
        if action.help != argparse.SUPPRESS
    }


def test_commands_lists_every_flag():
    listed = re.findall(r"^\| `(--[a-z-]+)", (ROOT / "docs" / "commands.md").read_text(), re.M)
    assert set(listed) == flags() - {"-h", "--help", "--version"}


@every_page
def test_keys_exist(page):
    """`section.key` in code, or an option of an entry; anything goes behind `model.`."""
    keys = set(configfile.keys())
    keys |= {
        f"{section}.{option}"
        for section, registry in configfile.REGISTRIES.items()
        for name in registry.names()
        for option in registry.parameters(name)
    }
    sections = "data|modules|head|information|reconcile|train|optimizer|parallel|checkpoint|run|log"
    text = re.sub(r"^```python\n.*?^```$", "", page.read_text(), flags=re.S | re.M)
    for found in re.findall(rf"(?<![\w./-])((?:{sections})\.[a-z_]+)\b(?!\(|/)", text):
        if not found.endswith((".json", ".py", ".yaml", ".sbatch", ".txt")):
            assert found in keys, found


@every_page
def test_flags_in_prose_exist(page):
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    foreign = ("docker", "torchrun", "srun", "sbatch", "bash", "deepspeed", "pip", "mkdocs")
    for span in spans:
        if not span.startswith(foreign) and not span.startswith(OTHERS):
            for flag in re.findall(r"(?<!\S)--[a-z-]+", span):
                assert flag in flags(), span


OTHERS = ("--max-restarts", "--nproc-per-node", "--gpus", "--ipc", "--user", "python experiments/")
OTHERS += ("--ntasks", "--kill-on-bad-exit", "--init", "RESTARTS=")
"""Flags of torchrun, docker, Slurm and of scripts."""


def commands(page):
    """The lines of all shell blocks, without comments, continued lines joined."""
    for block in code_blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def filled(word):
    """With something in the place of what the reader is to fill in."""
    key, equals, value = word.partition("=")
    return key + equals + PLACEHOLDERS.get(value, value) if equals else word


def is_whole(words):
    """Neither a fragment nor with shell variables."""
    return not any("$" in word or word in ("...", "CONFIG", "SETTING") for word in words)


@every_page
def test_commands_parse(page):
    """Those of the package parse, with keys and values that the configuration takes."""
    for words in commands(page):
        if "train" in words and words[0] in ("torchrun", "deepspeed", "srun"):
            words = ["pipeline-local", *words[words.index("train") :]]
        if words[0] == "pipeline-local" and is_whole(words):
            words = words[: words.index("|")] if "|" in words else words
            options, _ = parse([filled(word) for word in words[1:]])
            config = ROOT / getattr(options, "config", "configs/digits.yaml")  # a run's own
            if hasattr(options, "overrides") and config.is_file():
                configfile.load(config, options.overrides)


@every_page
def test_scripts_exist(page):
    """Files of this repository that a command names."""
    for words in commands(page):
        for word in words:
            if word.startswith(tuple(f"{name}/" for name in FOLDERS)) and "$" not in word:
                assert (ROOT / word).exists(), word


def is_table_rule(line):
    return bool(re.fullmatch(r"[|\s:-]+", line))


def passages(page):
    """Paragraphs, list items, headings and table cells, each as one line."""
    for part in re.split(r"\n\s*\n", prose(page)):
        lines: list[str] = []
        for line in part.splitlines():
            if line.lstrip().startswith("|"):
                if not is_table_rule(line):
                    yield from re.split(r"(?<!\\)\|", line.strip().strip("|"))
            elif lines and not re.match(r"\s*([-*]|\d+\.|#+) ", line):
                lines[-1] += " " + line.strip()
            else:
                lines.append(line.strip())
        yield from lines


def sentences(page):
    for passage in passages(page):
        plain = re.sub(r"\]\([^)]*\)", "", passage).replace("[", "")
        yield from re.split(r"(?<=[.;:?!])[)*_\"]*\s+", plain)


@every_page
def test_sentences_are_short(page):
    long = [s for s in sentences(page) if len(s.split()) > LONGEST_SENTENCE]
    assert not long, "\n".join(f"{len(s.split())} words: {s}" for s in long)


def test_a_long_sentence_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n- Short one. " + "word " * 20 + "\n  " + "word " * 21 + "end.\n")
    assert max(len(s.split()) for s in sentences(page)) == 42


@every_page
def test_python_compiles(page):
    for text in code_blocks(page, "python"):
        compile(text, page.name, "exec")


@pytest.mark.parametrize("name", ["tutorial.md", "how-to/own-model.md"])
def test_own_model_runs(name):
    """The network that the reader is to copy: its blocks fit each other."""
    (text,) = (t for t in code_blocks(ROOT / "docs" / name, "python") if "def layers" in t)
    namespace = {}
    exec(compile(text, name, "exec"), namespace)
    blocks = namespace["layers"](num_classes=10, image_shape=(3, 32, 32), width=4)
    assert nn.Sequential(*dict(blocks).values())(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    "script",
    [
        path
        for name in FOLDERS
        for path in (ROOT / name).rglob("*.*")
        if path.suffix in (".sh", ".yaml")
    ],
    ids=lambda path: path.name,
)
def test_scripts_name_files_that_exist(script):
    """Files of this repository that a script or a configuration names by their whole path."""
    named = rf"(?<![\w/.$}}-])(?:{'|'.join(FOLDERS)})/[\w./-]+\.(?:py|sh|yaml|md)\b"
    for found in re.findall(named, script.read_text()):
        assert (ROOT / found).is_file(), found


@every_page
def test_files_exist(page):
    """Files of this repository that are named in code, wherever they are."""
    text = re.sub(r"^```(?:python|yaml)\n.*?^```$", "", page.read_text(), flags=re.S | re.M)
    mine = ("make_images.py", "mynet.py", "mine.py", "mine.yaml")  # the reader's own
    for found in re.findall(r"(?<![\w/.*<-])((?:[\w-]+/)*[\w-]+\.(?:py|sh|sbatch|yaml))\b", text):
        if found not in (*mine, "config.yaml", "SWEEP.yaml"):
            assert any(f"/{path}".endswith(f"/{found}") for path in FILES), found


PRIVATE = re.compile(
    r"\b(told|tells?|dear(?:er|est)|mend(?:ed)?|heed(?:ed|s)?|unheeded|in turns|slow lines?|peers"
    r"|lifeline|whereabouts|rehears\w+|anew|rivals?)\b",
    re.IGNORECASE,
)
"""Words that only this project used; the pages have the field's words."""


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent != ROOT and p.name not in GENERATED])
def test_words_are_plain(page):
    text = re.sub(r"`[^`]*`", "", prose(page))
    assert not PRIVATE.findall(text)


def test_every_page_is_on_the_site():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"]))
    pages = [str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


def in_examples(text):
    """Whether lines stand in a program that tests/test_examples.py runs."""
    programs = (ROOT / "examples").glob("*.py")
    return any(text in program.read_text() for program in programs)


def test_the_python_page_runs(tmp_path, monkeypatch):
    """Block by block, but for what stands in an example; on one stage."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    namespace = {}
    blocks = code_blocks(ROOT / "docs" / "how-to" / "python.md", "python")
    loop = next(text for text in blocks if "for number in" in text)
    assert in_examples(loop)
    for text in blocks:
        if text is not loop:
            short = text.replace("stages=2, epochs=20", "stages=1, epochs=1")
            exec(compile(short, "python.md", "exec"), namespace)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "best",
        "fit",
        "fit-2",
        "fit-3",
    ]
    assert namespace["best"] is namespace["model"]
