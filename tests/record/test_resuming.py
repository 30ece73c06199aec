"""What may change when a run is resumed, and what is refused in one line."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipeline_local.configfile import configfile
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.record import resuming
from pipeline_local.record.folder import RunFolder

CONFIG = {
    "model": {"name": "mlp", "depth": 3},
    "modules": {"count": 2},
    "data": {"name": "digits", "batch_size": 32, "limit": 640},
    "train": {"epochs": 2},
}
INFO = '{"num_train": 640, "num_test": 100, "classes": ["a", "b"], "sample_shape": [1, 8, 8]}'


def parse(*overrides, path=Path("c.yaml")):
    path.write_text(configfile.dump(configfile.parse(CONFIG)))
    return configfile.load(path, overrides)


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Why overrides are refused that are said, or only stand in the file; "" where they are not."""
    monkeypatch.chdir(tmp_path)

    def refuse(*overrides, overridden=None, info=INFO, begun=True, before=INFO):
        configs = parse(), parse(*overrides)
        try:
            resuming.refuse(Path("out"), configs, (before, info), overridden, begun)
        except UserError as error:
            return str(error)
        return ""

    return refuse


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs=9",
        "train.evaluate_every=3",
        "train.log_every=3",
        "train.microbatches=2",
        "train.on_nan=skip",
        "optimizer.lr=0.01",
        "information.weight=[0.6, 0.1]",
        "data.workers=2",
        "data.on_error=skip",
        "model.weights=none.safetensors",
        "modules.recompute=true",
        "modules.profile=p.json",
        "checkpoint.keep=5",
        "parallel={stages: 2, threads: 1}",
        "run.dir=moved",
    ],
)
def test_what_may_change(refused, override):
    assert refused(override) == ""
    assert refused(override, overridden={override.partition("=")[0]}) == ""


@pytest.mark.parametrize("overridden", [None, {"data.root"}])
def test_the_data_may_have_moved(overridden):
    before, now = (
        configfile.parse(CONFIG | {"data": {"name": "cifar10", "root": root}})
        for root in ("here", "elsewhere")
    )
    assert [change.key for change in resuming.changes(before, now, begun=True)] == ["data.root"]
    resuming.refuse(Path("out"), (before, now), (INFO, INFO), overridden, True)
    with pytest.raises(UserError, match=r"data\.root may name another place"):
        resuming.refuse(
            Path("out"), (before, now), (INFO, INFO.replace("640", "641")), overridden, True
        )


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("data.batch_size=64", r"data.batch_size (64, was 32; for less memory, raise train.micro"),
        ("data.limit=320", "data.limit (320, was 640)"),
        ("data.limit=null", "data.limit (None, was 640)"),
        ("data.augment=standard", "data.augment (standard, was none)"),
        ("data.mixup=0.2", "data.mixup (0.2, was 0.0)"),
        ("data.name=synthetic", "data.name (synthetic, was digits)"),
        ("train.seed=1", "train.seed"),
        ("model.depth=4", "model"),
        ("modules.count=1", "modules"),
        ("head.name=linear", "head"),
        ("information.name=contrast", "information"),
        ("precision=bfloat16", "precision"),
        ("optimizer.name=adamw", "optimizer.name"),
    ],
    ids=str,
)
def test_what_may_not(refused, override, name):
    for overridden in (None, {override.partition("=")[0]}, set()):
        line = refused(override, overridden=overridden)
        assert line.startswith(f"run.resume: out holds a run with another {name}"), line
        assert "resume it as it was (pipeline-local resume out)" in line


def test_options_of_an_optimizer_stay(refused, monkeypatch):
    """With amsgrad it needs a state that no checkpoint has."""
    monkeypatch.setitem(CONFIG, "optimizer", {"name": "python:torch.optim:AdamW", "lr": 0.1})
    line = refused("optimizer.amsgrad=true")
    assert line.startswith("run.resume: out holds a run with another option of this optimizer"), (
        line
    )
    assert refused("optimizer.lr=0.01") == ""


def test_another_number_of_images_is_other_data(refused):
    """More of them at the same place: steps would be counted in epochs of another length."""
    more = INFO.replace("640", "641")
    line = refused(info=more)
    assert (
        "another number of training samples (641, was 640); put its data back, then resume it as"
        in line
    )
    assert refused(info=INFO.replace("100", "90")) == "", "what is only scored may change"
    assert "another sample shape (1x9x8, was 1x8x8)" in refused(info=INFO.replace("[1, 8", "[1, 9"))
    earlier = INFO.replace("sample_shape", "image_shape")
    assert refused(before=earlier) == ""
    assert "another sample shape" in refused(before=earlier, info=INFO.replace("[1, 8", "[1, 9"))
    assert "set of classes" in refused(info=INFO.replace('"b"', '"c"'))
    assert refused(info="damaged") == "", "it is written again"


def test_what_was_forgotten_is_refused(refused):
    """The run was begun with key=value pairs, and is resumed without."""
    line = refused(
        "optimizer.lr=0.01", "train.epochs=1", "parallel.threads=2", overridden={"run.resume"}
    )
    assert line == (
        "run.resume: optimizer.lr=0.01 (was 0.1), train.epochs=1 (was 2) in out, and no key=value"
        " says so; go on with its own settings (pipeline-local resume out), or say what is to"
        " change"
    )
    assert (
        refused("optimizer.lr=0.01", "train.epochs=1", overridden={"optimizer", "train.epochs"})
        == ""
    )


def test_weights_count_where_there_is_no_checkpoint_yet(refused):
    assert "model.weights=None (was" not in refused("model.weights=w.pt", overridden=set())
    assert "model.weights=" in refused("model.weights=w.pt", overridden=set(), begun=False)


def test_where_a_run_began_stays_in_its_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = parse("model.weights=w.pt", "parallel.stages=2")
    now = parse("parallel.stages=1", "train.epochs=5")
    written = resuming.to_write(before, now, {"train.epochs", "run.resume"})
    assert written.model.weights == Path("w.pt")
    assert (written.parallel.stages, written.train.epochs) == (2, 5)
    assert resuming.to_write(before, now, {"parallel.stages"}).parallel.stages == 1
    assert resuming.to_write(before, now, None).parallel.stages == 1


def begin(*overrides):
    """A run folder as `train` leaves it, which began in the current folder."""
    folder = RunFolder(Path("out"))
    config = parse(*overrides)
    folder.path.mkdir()
    folder.create(replace(config, run=replace(config.run, dir=folder.path)), INFO)
    return folder


def test_paths_mean_the_same_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = ["data={name: cifar10, root: images}", "model.weights=w.pt", "modules.profile=[p.json]"]
    begin(*keys)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = RunFolder(tmp_path / "out").resumed(["data.workers=1"])
    assert config.data.root == tmp_path / "images"
    assert config.model.weights == tmp_path / "w.pt"
    assert config.modules.profile == (tmp_path / "p.json",)
    assert (config.run.dir, config.run.resume, config.data.workers) == (tmp_path / "out", True, 1)


MINE = """
from pathlib import Path
from torch import nn
def blocks(num_classes, image_shape, table: Path = None):
    assert table.is_absolute()
    return [nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), nn.Linear(8, 8), nn.Linear(8, 10)]
"""


def test_modules_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "from_origin.py").write_text(MINE)
    begin("model={name: 'python:from_origin:blocks', table: t.txt}")
    sys.modules.pop("from_origin", None)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    config = RunFolder(tmp_path / "out").resumed([])
    assert config.model.args == {"table": str(tmp_path / "t.txt")}
    assert sys.modules.pop("from_origin", None) is None, "models are imported when they are built"
    assert sys.path[0] == str(tmp_path)


@pytest.mark.parametrize(
    ("override", "length"),
    [
        ("train.steps=70", (None, 70)),
        ("train.epochs=3", (3, None)),
        ("train.log_every=2", (2, None)),
    ],
)
def test_either_steps_or_epochs(tmp_path, monkeypatch, override, length):
    monkeypatch.chdir(tmp_path)
    train = begin().resumed([override]).train
    assert (train.epochs, train.steps) == length


def test_who_cannot_be_resumed_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="none is not a run folder"):
        RunFolder(Path("none")).resumed([])
    folder = begin()
    with pytest.raises(UserError, match=r"run\.dir: the run goes on in out itself; leave it out"):
        folder.resumed(["run.dir=other"])
    text = folder.config.read_text()
    folder.config.write_text(text.replace("name: digits", "name: registered_by_me"))
    with pytest.raises(ConfigError, match=r"got 'registered_by_me'.* train\(load_config\("):
        folder.resumed([])
    folder.config.write_text(text.replace("name: mlp", "name: given").replace("  depth: 3\n", ""))
    with pytest.raises(UserError, match=r"fit\(\.\.\., run_dir='out', resume=True\)"):
        folder.resumed([])


@pytest.mark.parametrize(
    ("overridden", "refused"),
    [
        ({"deepspeed.zero_optimization.stage"}, False),
        ({"deepspeed.zero_optimization"}, False),
        ({"deepspeed"}, False),
        ({"deepspeed.zero"}, True),
        (set(), True),
    ],
)
def test_a_part_of_a_value_is_said(overridden, refused):
    """A command line reaches into a value that is a mapping."""
    tree = CONFIG | {"engine": "deepspeed"}
    before, now = (
        configfile.parse(tree | {"deepspeed": {"zero_optimization": {"stage": stage}}})
        for stage in (1, 2)
    )
    asked = partial(
        resuming.refuse, Path("r"), (before, now), ("", ""), {"engine", *overridden}, True
    )
    if refused:
        with pytest.raises(UserError, match=r"deepspeed\.zero_optimization=.* no key=value says"):
            asked()
    else:
        asked()
