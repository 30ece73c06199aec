"""What users really do: each mistake ends in one clear line, exit code 2, and nothing is spent.

A table of (setup, arguments, fragments of the line), through the command line's own entry.
"""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from pipeline_local.cli import main
from pipeline_local.data.images.datasets import open_split

CONFIG = """
model: {name: resnet20, width: 4}
modules: {count: 4}
head: {name: linear}
data: {name: digits, batch_size: 32}
train: {steps: 2, log_every: 2}
parallel: {threads: 1}
run: {dir: out}
"""
Setup = Callable[[Path], object]


class Mistake(NamedTuple):
    """What is there, what is typed (behind `train config.yaml`), what the one line must say."""

    name: str
    arguments: str | list[str]
    says: tuple[str, ...]
    setup: Setup = lambda folder: None


# -- what a folder may hold --------------------------------------------------------------------


def write(name: str, content: str | bytes) -> Setup:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def images(root: Path, sizes: tuple[tuple[int, int], ...] = ((12, 12), (12, 10))) -> None:
    for part in ("train/ant", "train/bee", "test/ant", "test/bee"):
        (root / part).mkdir(parents=True)
        for number, size in enumerate(sizes):
            Image.new("RGB", size, (number, 0, 0)).save(root / part / f"{number}.png")


def with_images(damage: Setup) -> Setup:
    def setup(folder: Path) -> None:
        images(folder / "img")
        damage(folder / "img")

    return setup


def empty_class(part: str) -> Setup:
    def damage(root: Path) -> None:
        shutil.rmtree(root / part)
        (root / part).mkdir()

    return with_images(damage)


def other_suffix(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.rename(path.with_suffix(".heic"))


def state(content: object) -> Setup:
    return lambda folder: torch.save(content, folder / "w.pt")


def model(code: str) -> Setup:
    """A module `mine`; each test gets a fresh one."""
    return write("mine.py", f"import torch\nfrom torch import nn\n{code}\n")


def blocks(*last: str, classes: str = "num_classes", code: str = "") -> Setup:
    """A list of four blocks and a classifier; `last` stands in front of it."""
    inner = [*last, "nn.Linear(9, 9)", "nn.Linear(9, 9)"][:2]
    made = ["nn.Flatten()", "nn.Linear(64, 9)", *inner, f"nn.Linear(9, {classes})"]
    return model(f"{code}\ndef f(num_classes, image_shape):\n    return [{', '.join(made)}]")


def forward(statement: str) -> Setup:
    return blocks("A()", code=f"class A(nn.Module):\n    def forward(self, x): {statement}")


def finished_run(folder: Path) -> None:
    assert main(["train", "config.yaml"]) == 0


def then(*setups: Setup) -> Setup:
    return lambda folder: [setup(folder) for setup in setups]


MINE = ["model={name: 'python:mine:f'}"]
FOLDER = ["data={name: imagefolder, root: img, batch_size: 2, image_size: 12}"]
BENCH = ["bench", "config.yaml"]
SHALLOW = "model={name: mlp, depth: 3}"
RESUME = "run.resume=true train.steps=4"
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]"

MISTAKES = [
    # keys and values
    Mistake("unknown key", "model.widht=3", ("'model.widht'", "did you mean 'model.width'")),
    Mistake("misspelt section", "trian.steps=3", ("'trian", "did you mean 'train'")),
    Mistake("wrong type", "optimizer.lr=fast", ("optimizer.lr: should be a number, got 'fast'",)),
    Mistake("not whole", "data.batch_size=3.5", ("data.batch_size: should be a whole number",)),
    Mistake("zero", "modules.count=0", ("modules.count: should be greater", "got 0")),
    Mistake("not a number", "optimizer.lr=.nan", ("optimizer.lr: should be a finite", "got nan")),
    Mistake("infinite", "train.steps=1e400", ("train.steps: should be a whole number", "got inf")),
    Mistake("beyond 64 bits", f"train.seed={10**30}", ("below 2^63",)),
    Mistake("too many threads", "parallel.threads=100000", ("parallel.threads: should be less",)),
    Mistake("too many loaders", "data.workers=100000", ("data.workers: should be less",)),
    Mistake("no value", "train.steps", ("not of the form key=value",)),
    Mistake("dashes", "--train.steps=3", ("keys have no dashes: train.steps=3",)),
    Mistake("an option", "--epochs 3", ("--epochs 3; keys have no dashes: train.epochs=VALUE",)),
    Mistake("option=", "--batch-size=8", ("keys have no dashes: data.batch_size=8",)),
    Mistake("more modules than blocks", "modules.count=11", ("11 modules for 10 blocks",)),
    Mistake("cuts that are none", "modules.cuts=[a,b,c]", ("modules.cuts: got 'a'", "layer1.1")),
    Mistake("batch larger than data", "data.batch_size=5000", ("1442 training", "got 5000")),
    Mistake("uneven microbatches", "train.microbatches=5", ("multiple of train.micro", "32 and 5")),
    Mistake("no such profile", "modules.profile=no.json", ("modules.profile: no.json cannot be",)),
    Mistake("no such model", "model.name=resnet21", ("model.name: got 'resnet21'; did you mean",)),
    Mistake("impossible model", "model.width=0", ("model.width: should be greater", "got 0")),
    # configuration files
    Mistake("no file", ["train", "none.yaml"], ("none.yaml does not exist",)),
    Mistake("a folder", ["train", "."], ("config file . cannot be read", "directory")),
    Mistake("a picture", ["train", "x"], ("x cannot be read",), write("x", b"\x89PNG\r\n\x1a\n")),
    Mistake("zeros", ["train", "x"], ("x is not valid YAML", "#x0000"), write("x", b"\0" * 9)),
    Mistake("empty", ["train", "x"], ("x must hold sections", "got None"), write("x", "")),
    Mistake("tabs", ["train", "x"], ("line 2", "'\\t'"), write("x", "model:\n\tname: mlp")),
    Mistake("a key twice", ["train", "x"], ("line 2: key 'a' stands",), write("x", "a: \na:")),
    Mistake("a list", ["train", "x"], ("must hold sections", "got ['a']"), write("x", "- a")),
    Mistake("two documents", ["train", "x"], ("another document",), write("x", "a: 1\n---\nb: 2")),
    Mistake("a bomb", ["train", "x"], ("alias must stand for a single",), write("x", BOMB)),
    Mistake("an abyss", ["train", "x"], ("Recursion",), write("x", "[" * 20000)),
    Mistake("a name with NUL", ["train", "a\0b"], ("cannot be read", "null byte")),
    # data
    Mistake("no root", "data.name=imagefolder", ("data.root is needed", "imagefolder")),
    Mistake("lost root", "data.name=imagefolder data.root=lost", ("not a folder: got lost;",)),
    Mistake("root is a file", "data.name=cifar10 data.root=config.yaml", ("no intact CIFAR10",)),
    Mistake("no CIFAR", "data.name=cifar100 data.root=.", ("no intact CIFAR100", "download=True")),
    Mistake("empty class", FOLDER, ("no images: got img/train/bee",), empty_class("train/bee")),
    Mistake("empty test class", FOLDER, ("got img/test/ant",), empty_class("test/ant")),
    Mistake(
        "class in one split only",
        FOLDER,
        ("same class folders", "such as 'bee'"),
        with_images(lambda root: shutil.rmtree(root / "test/bee")),
    ),
    Mistake("another format", FOLDER, ("no images: got img/train/ant",), with_images(other_suffix)),
    Mistake("grey images", ["model={name: vgg11}"], ("of 3 channels, got data with 1",)),
    # weights
    Mistake("no weights", "model.weights=no.pt", ("no.pt does not exist",)),
    Mistake("broken", "model.weights=w.pt", ("w.pt cannot be read",), write("w.pt", "junk")),
    Mistake(
        "broken safetensors",
        "model.weights=w.safetensors",
        ("w.safetensors cannot be read",),
        write("w.safetensors", "xx"),
    ),
    Mistake(
        "whole model", "model.weights=w.pt", ("never run", "state_dict"), state(torch.nn.ReLU())
    ),
    Mistake("no dict", "model.weights=w.pt", ("holds no state dict",), state([torch.ones(1)])),
    Mistake("numbered", "model.weights=w.pt", ("no state dict",), state({1: torch.ones(1)})),
    Mistake(
        "another model's",
        "model.weights=w.pt",
        ("missing: conv1.weight", "unexpected: my.weight", "set model.name"),
        state({"my.weight": torch.ones(1)}),
    ),
    # the run folder
    Mistake("run.dir is a file", "run.dir=config.yaml", ("config.yaml is a file",)),
    Mistake("run.dir in a file", "run.dir=config.yaml/x", ("cannot be written", "ot a directory")),
    Mistake("run.dir read-only", "run.dir=/proc/none/x", ("/proc/none/x cannot be written",)),
    Mistake("run.dir endless", f"run.dir={'a' * 5000}", ("names have at most 255 bytes",)),
    Mistake("run.dir with NUL", ['run.dir="a\\0b"'], ("a\\x00b cannot be", "null byte")),
    Mistake("a run is there", "", ("out already holds a run", "-local resume"), finished_run),
    Mistake("other model", f"{RESUME} model.width=8", ("with another model",), finished_run),
    Mistake("other K", f"{RESUME} modules.count=2", ("with another modules",), finished_run),
    Mistake(
        "other optimizer",
        f"{RESUME} optimizer.name=adamw",
        ("with another optimizer.name",),
        finished_run,
    ),
    Mistake(
        "other images",
        [*RESUME.split(), "data={name: synthetic, batch_size: 8, image_size: 8}"],
        ("with another data.batch_size (8, was", "data.name (synthetic,"),
        finished_run,
    ),
    Mistake(
        "broken configuration",
        RESUME,
        ("out/config.yaml is not valid YAML",),
        then(finished_run, write("out/config.yaml", "][")),
    ),
    Mistake(
        "broken summary",
        "run.resume=true",
        ("out/summary.json is damaged",),
        then(finished_run, write("out/summary.json", "{")),
    ),
    Mistake("no run", ["evaluate", "no"], ("no is not a run folder",)),
    Mistake(
        "facts lost",
        ["evaluate", "out"],
        ("out/data.json cannot be read",),
        then(finished_run, lambda folder: (folder / "out/data.json").unlink()),
    ),
    Mistake(
        "facts broken",
        ["evaluate", "out"],
        ("facts of the data are damaged: got '{}'",),
        then(finished_run, write("out/data.json", "{}")),
    ),
    Mistake(
        "export into a file",
        ["export", "out", "--output", "config.yaml/m.safetensors"],
        ("--output: config.yaml/m.safetensors cannot be written",),
        finished_run,
    ),
    Mistake(
        "bench into a file",
        ["bench", "reconcile", "config.yaml", "--json", "config.yaml/x.json"],
        ("--json: config.yaml/x.json cannot be written",),
    ),
    Mistake("gpip", [*BENCH, "--baselines", "gpip,bp"], ("--baselines: got 'gpip'", "'gpipe'?")),
    Mistake("none", [*BENCH, "--baselines", ","], ("got none; the baselines are bp,",)),
    Mistake("m", [*BENCH, "--microbatches", "2,x"], ("whole numbers such as 2,4,8, got '2,x'",)),
    Mistake("no m", [*BENCH, "parallel.stages=2", "--microbatches", "1"], ("one per stage (2)",)),
    Mistake(
        "uneven rounds",
        [*BENCH, "parallel.stages=3", "--baselines", "interleaved", "--microbatches", "16"],
        ("interleaved runs them in 5 equal rounds, got 16", "a multiple of the 3 ranks"),
    ),
    Mistake(
        "shallow",
        [*BENCH, "parallel.stages=2", "--baselines", "1f1b,zerobubble", "modules.count=2", SHALLOW],
        ("at least 4 blocks are needed, got 3", "leave zerobubble out"),
    ),
    Mistake("no turns", [*BENCH, "--runs", "0"], ("--runs: at least 1, got 0",)),
    Mistake("steps", [*BENCH, "reconcile.weight=1", "--steps", "9"], ("multiple of 8",)),
    Mistake("rows into a file", [*BENCH, "--json", "config.yaml/x"], ("--json: config.yaml/x",)),
    Mistake("clipped baselines", [*BENCH, "optimizer.clip=1"], ("pass optimizer.clip=null",)),
    Mistake("mixup in baselines", [*BENCH, "data.mixup=1"], ("pass data.mixup=0",)),
    Mistake(
        "uneven",
        [*BENCH, "parallel.stages=3", "--baselines", "ddp"],
        ("multiple of the 3 ranks", "leave ddp out"),
    ),
    # where it runs
    Mistake("no GPU", "parallel.backend=nccl", ("needs a GPU for each of the 1 ranks", "got 0")),
    Mistake("too few", "parallel.backend=nccl parallel.stages=2", ("each of the 2 ranks", "got 0")),
    Mistake("more stages than modules", "parallel.stages=5", ("5 stages for 4 modules",)),
    # a model of one's own
    Mistake("form", ["model={name: 'python:mine'}"], ("write python:package.module:name",)),
    Mistake("relative", ["model={name: 'python:.x:f'}"], ("write python:package.module",)),
    Mistake("no module", ["model={name: 'python:none:f'}"], ("'none' cannot be imported",)),
    Mistake("no function", MINE, ("no callable 'f'",), model("def g(): pass")),
    Mistake("a number", MINE, ("no callable 'f'; name a function",), model("f = 3")),
    Mistake("syntax", MINE, ("SyntaxError", "mine.py, line 3"), model("def f(:")),
    Mistake("raises", MINE, ("KeyError: 'oh', mine.py line 3",), model("raise KeyError('oh')")),
    Mistake("exits", MINE, ("cannot be imported (SystemExit: 0",), model("raise SystemExit(0)")),
    Mistake("no arguments", MINE, ("does not take num_classes",), model("def f(): pass")),
    Mistake(
        "raises inside",
        MINE,
        ("cannot be built with {} (OSError: oh, mine.py line 4)",),
        model("def f(num_classes, image_shape):\n    raise OSError('oh\\nno')"),
    ),
    Mistake("nothing", MINE, ("got NoneType",), model("def f(num_classes, image_shape): pass")),
    Mistake("text", MINE, ("got str",), model("def f(num_classes, image_shape): return 'abc'")),
    Mistake("classes", MINE, ("gives [2, 3] for a batch of 2", "[10]"), blocks(classes="3")),
    Mistake("forward raises", MINE, ("KeyError: 'oh'",), forward("raise KeyError('oh')")),
    Mistake("two outputs", MINE, ("'block2' gives tuple instead",), forward("return x, x")),
    Mistake("whole numbers", MINE, ("gives torch.int64 instead",), forward("return x.long()")),
    Mistake("no batch", MINE, ("the first axis must stay",), forward("return x.sum(0, True)")),
    Mistake(
        "plain tensor",
        MINE,
        ("layer block2 (A) keeps t as a plain attribute", "register_buffer"),
        blocks(
            "A()",
            code="class A(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.t = torch.ones(9)\n    def forward(self, x): return x + self.t",
        ),
    ),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a good configuration in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    open_split.cache_clear()  # by relative paths
    (tmp_path / "config.yaml").write_text(CONFIG)
    yield tmp_path
    sys.modules.pop("mine", None)


def full(arguments: str | list[str]) -> list[str]:
    given = arguments.split() if isinstance(arguments, str) else arguments
    return given if given[:1] in COMMANDS else ["train", "config.yaml", *given]


COMMANDS = (["train"], ["evaluate"], ["export"], ["bench"])


def code_of(arguments: list[str]) -> object:
    try:
        return main(arguments)
    except SystemExit as end:  # argparse
        return end.code


def listing(folder: Path) -> dict[str, bytes]:
    skip = "__pycache__"
    paths = [p for p in folder.rglob("*") if p.is_file() and skip not in p.parts]
    return {str(path): path.read_bytes() for path in paths}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_one_line_and_nothing_spent(folder, capsys, mistake) -> None:
    if "nccl" in mistake.arguments and torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    mistake.setup(folder)
    before = listing(folder)
    capsys.readouterr()
    assert code_of(full(mistake.arguments)) == 2
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if not line.startswith("usage: ")]
    assert len(lines) == 1, told.err
    assert "error: " in lines[0]
    assert not [part for part in mistake.says if part not in lines[0]], lines[0]
    assert len(lines[0]) < 500
    assert told.out == ""
    after = listing(folder)
    assert set(before.values()) <= set(after.values()), "something is lost"
    if "broken" not in mistake.name:  # only a resumed run gets as far as its folder
        assert after == before, "something was made or changed"
        assert (folder / "out").exists() == any("/out/" in name for name in before)


def test_names_are_unique() -> None:
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)


# -- what root may read all the same -----------------------------------------------------------


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory of a user whom file permissions stop; root is made one for the test."""
    with tempfile.TemporaryDirectory() as name:
        path, user = Path(name), os.geteuid()
        monkeypatch.chdir(path)
        (path / "config.yaml").write_text(CONFIG)
        images(path / "img")
        if user == 0:
            for inner in [path, *path.rglob("*")]:
                os.chown(inner, 65534, -1)
            os.seteuid(65534)
        try:
            yield path
        finally:
            os.seteuid(user)
            for inner in path.rglob("*"):
                inner.chmod(0o700)


@pytest.mark.parametrize(
    ("locked", "mode", "arguments", "says"),
    [
        ("config.yaml", 0, [], "config.yaml cannot be read"),
        ("img", 0, FOLDER, "data.root cannot be read: got img"),
        ("img/train/bee", 0, FOLDER, "data.root cannot be read: got img"),
        ("out", 0, [], "run.dir: out cannot be read"),
        ("out", 0o500, [], "run.dir: out cannot be written"),
        ("out", 0o500, ["run.dir=out/deeper"], "run.dir: out/deeper cannot be written"),
    ],
)
def test_what_may_not_be_touched(mortal, capsys, locked, mode, arguments, says) -> None:
    (mortal / "out").mkdir()
    (mortal / locked).chmod(mode)
    assert main(full(arguments)) == 2
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert says in line
    assert "Permission denied" in line
    assert told.out == ""


# -- launchers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RANK": "0"}, "RANK and WORLD_SIZE must be numbers"),
        ({"RANK": "0", "WORLD_SIZE": "five"}, "RANK and WORLD_SIZE must be numbers"),
        ({"RANK": "0", "WORLD_SIZE": "3"}, "the launcher started 3; start 2 or pass"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "got 2 of 2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "got -1 of 2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "got 0 of 0"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR expected, but not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "x"}, "got 'localhost:x'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "99999"}, "from 0 to 65535"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "taken"}, "the port is taken"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "its environment is incomplete, got 'SLURM_PROCID'"),
    ],
)
def test_a_launcher_that_does_not_fit(folder, capsys, monkeypatch, environment, says) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        if environment.get("MASTER_PORT") == "taken":
            environment = environment | {"MASTER_PORT": str(taken.getsockname()[1])}
        if "MASTER_PORT" in environment:
            monkeypatch.setenv("MASTER_ADDR", "localhost")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert main(full("parallel.stages=2")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("modules.cuont=3", "did you mean 'modules.count'"),
        ("modules.count=99", "99 modules for"),
        ("parallel.backend=nccl", "each of the 2 ranks"),
        ("run.dir=/proc/none/x", "/proc/none/x cannot be written"),
    ],
)
def test_two_stages_refuse_in_one_line(folder, capsys, forked_launcher, arguments, says) -> None:
    assert main(full(f"parallel.stages=2 {arguments}")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (folder / "out").exists()


def test_two_stages_know_of_a_wrong_interface_before_they_start(
    folder, capsys, monkeypatch, forked_launcher
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nope0")
    assert main(full("parallel.stages=2")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: GLOO_SOCKET_IFNAME=nope0: 'nope0' is no interface")
    assert not (folder / "out").exists()


def test_a_full_memory_is_told_in_one_line(folder, capsys) -> None:
    assert main(full("model.width=20000000 modules.count=1")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "out of memory" in line
    assert "lower data.batch_size" in line


def test_an_image_that_breaks_a_run_of_two_stages_is_named_once(
    folder, capsys, forked_launcher
) -> None:
    """Found by a loader process in the middle of the run: all ranks end, and one says why."""
    images(folder / "img", ((12, 12),) * 8)
    (folder / "img/train/bee/5.png").write_bytes(b"no image")
    settings = ["parallel.stages=2", "data.workers=1", "train.steps=50", "model.width=2", *FOLDER]
    assert main(full(settings)) == 2
    lines = capsys.readouterr().err.splitlines()
    (named,) = (line for line in lines if "img/train/bee/5.png" in line)
    assert named.startswith("error: an image cannot be read")
    assert "data.on_error=skip" in named
    assert not [line for line in lines if "Traceback" in line]
    assert not (folder / "out/summary.json").exists()
