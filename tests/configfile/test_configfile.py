"""Every mistake is told in one line; test_configfile_fuzz.py tries anything at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from pipeline_local import Predictor, load, load_config, load_metrics
from pipeline_local.config import Config, HeadConfig
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import DATA
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.learning.heads import title as title_of
from pipeline_local.user_input.registry import Registry

MINIMAL: dict[str, Any] = {
    "model": {"name": "resnet20"},
    "data": {"name": "digits"},
    "train": {"steps": 5},
}
TEXT = yaml.safe_dump(MINIMAL)
KEYS = configfile.keys()
SECTIONS = [
    "model", "data", "task", "modules", "head", "information", "reconcile", "distill",
    "train", "optimizer", "parallel", "deepspeed", "checkpoint", "log", "trace", "run",
]  # fmt: skip


def problems(tmp_path: Path, text: str = TEXT, *overrides: str) -> list[str]:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        configfile.load(path, overrides)
    assert all(problem.count("\n") == 0 for problem in caught.value.problems)
    return caught.value.problems


def with_overrides(tmp_path: Path, *overrides: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(TEXT)
    return configfile.load(path, overrides)


def test_defaults_fill_what_the_file_leaves_out() -> None:
    config = configfile.parse(MINIMAL)
    assert (config.modules.known_count, config.optimizer.name, config.engine) == (1, "sgd", "torch")


def test_an_empty_section_is_an_absent_one(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(TEXT + "optimizer:\n")
    assert configfile.load(path, ["optimizer.lr=0.5"]).optimizer.lr == 0.5
    assert configfile.load(path) == configfile.parse(MINIMAL)


def test_overrides_win_and_the_last_one_most(tmp_path: Path) -> None:
    config = with_overrides(tmp_path, "train.steps=7", "train.steps=9", "run.dir=a b")
    assert (config.train.steps, config.run.dir) == (9, Path("a b"))


@pytest.mark.parametrize("override", ["train.epochs=3", "train={epochs: 3}"])
def test_a_length_of_training_replaces_that_of_the_file(tmp_path: Path, override: str) -> None:
    train = with_overrides(tmp_path, override).train
    assert (train.epochs, train.steps, train.tokens) == (3, None, None)
    assert with_overrides(tmp_path, "train.epochs=null").train.steps is not None


def test_overrides_are_several(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(TEXT)
    with pytest.raises(ConfigError, match=r"overrides: should be a list of texts, got 'train\.s"):
        load_config(tmp_path / "config.yaml", "train.seed=1")


def test_further_model_keys_go_to_the_builder(tmp_path: Path) -> None:
    config = with_overrides(tmp_path, "model.width=16", "model.drop=1e-1")
    assert config.model.args == {"width": 16, "drop": 0.1}


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("1e-3", 0.001),
        ("'1e-3'", 0.001),  # a number in quotes is still a number
        ("5.0e-4", 0.0005),
        ("1", 1.0),
        (".5", 0.5),
    ],
)
def test_ways_to_write_a_number(tmp_path: Path, override: str, value: float) -> None:
    assert with_overrides(tmp_path, f"optimizer.lr={override}").optimizer.lr == value


def test_variables_in_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the tasks of an array have folders and seeds of their own; the run's file holds them."""
    monkeypatch.setenv("TASK", "3")
    monkeypatch.delenv("NO_SUCH", raising=False)
    config = with_overrides(tmp_path, "run.dir=runs/${env:TASK}", "train.seed=${env:TASK}")
    assert (config.run.dir, config.train.seed) == (Path("runs/3"), 3)
    assert "env:" not in configfile.dump(config)
    missing = "${env:NO_SUCH}: the variable 'NO_SUCH' is not set; set it, or write a value"
    override = "run.dir=${env:NO_SUCH}"
    assert problems(tmp_path, TEXT, override) == [f"override {override!r}: {missing}"]
    text = TEXT + "run: {dir: '${env:NO_SUCH}'}"
    assert problems(tmp_path, text) == [f"config file {tmp_path / 'config.yaml'}: {missing}"]


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["modules.count=3"], 3),
        (["modules.cuts=[2, 5]"], 3),
        (["modules.cuts=parameters"], 1),
        (["modules.cuts=blocks"], None),
        (["modules.cuts=blocks", "modules.count=9"], 9),
        (["modules.cuts=blocks", "parallel.stages=64"], None),
        (["parallel.stages=2"], 2),
        (["parallel.stages=2", "modules.count=4"], 4),
        (["parallel.stages=3", "modules.cuts=auto"], 3),
        (["parallel.stages=2", "modules.cuts=[2, 5]"], 3),
    ],
)
def test_the_number_of_modules_follows_from_the_cuts(
    tmp_path: Path, overrides: list[str], count: int | None
) -> None:
    assert with_overrides(tmp_path, *overrides).modules.known_count == count


def test_cuts_and_count_must_agree(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, TEXT, "modules.count=3", "modules.cuts=[3]")
    assert line.startswith("modules.cuts must name the first block of modules 2..3: expected 2")


def test_a_stage_holds_a_module(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, TEXT, "modules.count=2", "parallel.stages=3")
    assert line.startswith("parallel.stages must not exceed modules.count (a stage holds at least")


def test_a_whole_number_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    assert with_overrides(tmp_path, "train.steps=1e3").train.steps == 1000


def test_paths_are_expanded_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": "/home/ada", "JOB": "17", "SETS": "/sets"}.items():
        monkeypatch.setenv(name, value)
    overrides = ("run.dir=~/runs/${JOB}", "data.root=$SETS/a", "modules.profile=[~/$JOB.json, b]")
    others = ("data.name=imagefolder", "model.weights=$$JOB")
    config = with_overrides(tmp_path, *overrides, *others)
    assert config.run.dir == Path("/home/ada/runs/17")
    assert config.data.root == Path("/sets/a")
    assert config.modules.profile == (Path("/home/ada/17.json"), Path("b"))
    assert config.model.weights == Path("$JOB")
    monkeypatch.delenv("JOB")
    (tmp_path / "again.yaml").write_text(configfile.dump(config))
    assert configfile.load(tmp_path / "again.yaml") == config, "what was meant, not what was typed"
    (line,) = problems(tmp_path, TEXT, "run.dir=runs/${JOB}")
    assert line == (
        "run.dir: should be a path of variables that are set (JOB is not), got 'runs/${JOB}'"
    )


def test_options_that_are_paths_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")

    def entry(root: Path | None, split: str, *, index: Path) -> None: ...

    monkeypatch.setitem(DATA._entries, "own", entry)
    args = with_overrides(tmp_path, "data.name=own", "data.index=~/i").data.args
    assert DATA.options("own", args)["index"] == Path("/home/ada/i")
    (line,) = problems(tmp_path, TEXT, "data.name=own", "data.index=$NOT_SET")
    assert line.startswith(
        "data.index: should be a path of variables that are set (NOT_SET is not)"
    )


def test_a_program_says_paths_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert configfile.path("run_dir", "~/runs") == Path("/home/ada/runs")
    assert configfile.path("run_dir", Path("~/runs")) == Path("~/runs"), "it has said it"
    with pytest.raises(UserError, match=r"^run_dir: should be a path of .* got '\$NOT_SET'$"):
        configfile.path("run_dir", "$NOT_SET")


@pytest.mark.parametrize(
    ("call", "key"),
    [(load_config, "config"), (load, "run"), (Predictor, "run"), (load_metrics, "run")],
)
def test_what_is_no_path_is_told(call, key) -> None:
    """A program may give anything, such as the number of a run."""
    for value in (5, b"runs", None):
        with pytest.raises(UserError, match=f"^{key}: should be a path, got {value!r}$"):
            call(value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.seed=010", 10),
        ("train.seed=08", 8),
        ("train.seed=0x10", 16),
        ("train.seed=0o10", 8),
        ("train.seed=+7", 7),
    ],
)
def test_whole_numbers_are_those_of_yaml_1_2(tmp_path: Path, override: str, value: int) -> None:
    assert with_overrides(tmp_path, override).train.seed == value


NO_CUTS = "modules.cuts: should be 'uniform', 'parameters', 'blocks', 'auto' or 'memory' or a list"


@pytest.mark.usefixtures("heads")
@pytest.mark.parametrize(
    ("override", "problem"),
    [
        # unknown keys: the full key, and where it belongs
        (
            "data.batchsize=3",
            "unknown key 'data.batchsize' for data.name=digits; did you mean 'data.batch_size'?",
        ),
        ("train.step=3", "unknown key 'train.step'; did you mean 'train.steps'?"),
        ("trian.steps=3", "unknown key 'trian'; did you mean 'train'?"),
        ("batch_size=3", "unknown key 'batch_size'; did you mean 'data.batch_size'?"),
        (
            "data.epochs=3",
            "unknown key 'data.epochs' for data.name=digits; did you mean 'train.epochs'?",
        ),
        ("head.lr=3", "unknown key 'head.lr' for head.name=auglocal; did you mean 'optimizer.lr'?"),
        (
            "reconcile.weights=3",
            "unknown key 'reconcile.weights' for reconcile.estimator=shift;"
            " did you mean 'reconcile.weight'?",
        ),
        ("presicion=float32", "unknown key 'presicion'; did you mean 'precision'?"),
        (
            "parallel.stges=2",
            "unknown key 'parallel.stges' without parallel.backend; did you mean"
            " 'parallel.stages'?",
        ),
        (
            "head.zzz=3",
            "unknown key 'head.zzz' for head.name=auglocal; the keys here are name, depth",
        ),
        # the wrong type
        ("head=5", "head: should be a section of `key: value` lines (in Python a dict), got 5"),
        ("train.seed=true", "train.seed: should be a whole number, got True"),
        ("train.seed='3'", "train.seed: should be a whole number, got '3'"),
        ("train.steps=1.5", "train.steps: should be a whole number, got 1.5"),
        ("train.steps=1e19", "train.steps: should be a whole number, got 1e+19"),
        ("train.steps={a: 1}", "train.steps: should be a whole number, got {'a': 1}"),
        ("train.seed=null", "train.seed: should be a whole number, got None"),
        ("optimizer.lr=true", "optimizer.lr: should be a number, got True"),
        ("optimizer.lr=fast", "optimizer.lr: should be a number, got 'fast'"),
        ("run.resume=1", "run.resume: should be true or false, got 1"),
        ("run.resume='yes'", "run.resume: should be true or false, got 'yes'"),
        ("run.resume=yes", "run.resume: should be true or false, got 'yes'"),
        ("train.steps=1:30", "train.steps: should be a whole number, got '1:30'"),
        ("train.steps=1_000", "train.steps: should be a whole number, got '1_000'"),
        ("train.steps=0b11", "train.steps: should be a whole number, got '0b11'"),
        ("train.steps=on", "train.steps: should be a whole number, got 'on'"),
        ("optimizer.lr=1_0.5", "optimizer.lr: should be a number, got '1_0.5'"),
        ("optimizer.lr=1:30.5", "optimizer.lr: should be a number, got '1:30.5'"),
        ("optimizer.lr=nan", "optimizer.lr: should be a number, got 'nan'"),
        ("optimizer.lr=off", "optimizer.lr: should be a number, got 'off'"),
        ("optimizer.lr=2024-01-01", "optimizer.lr: should be a number, got '2024-01-01'"),
        (
            "run.dir=17",
            "run.dir: should be a path, got 17; in quotes it is text (in a shell:"
            " run.dir=\"'...'\")",
        ),
        (
            "model.name=0.5",
            "model.name: should be text, got 0.5; in quotes it is text (in a shell:"
            " model.name=\"'...'\")",
        ),
        ("run.dir=''", "run.dir: should be a path, got ''"),
        ("run.dir=5", "run.dir: should be a path, got 5"),
        ("data.root=[a]", "data.root: should be a path, got ['a']"),
        ("model.name=!!binary aGk=", "model.name: should be text, got b'hi'"),
        ("engine=torhc", "engine: should be 'torch' or 'deepspeed', got 'torhc'"),
        # members of a union make one line, not one each
        (
            "modules.cuts=5",
            f"{NO_CUTS}, got 5",
        ),
        # of a list, the first wrong element, or how long it should be
        ("modules.cuts=[1.5, null]", "modules.cuts.0: should be text or a whole number, got 1.5"),
        ("modules.cuts=[a, true]", "modules.cuts.1: should be text or a whole number, got True"),
        ("parallel.cuts=[3, 1]", "parallel.cuts.1: should be greater than or equal to 2, got 1"),
        ("trace.steps=[0, a]", "trace.steps.0: should be greater than or equal to 1, got 0"),
        ("trace.steps=[]", "trace.steps: should be a list of 2, got []"),
        ("trace.steps=[1]", "trace.steps: should be a list of 2, got [1]"),
        ("trace.steps=[1, 2, 3]", "trace.steps: should be a list of 2, got [1, 2, 3]"),
        ("information.weight=[1]", "information.weight: should be a number or a list of 2, got"),
        # the wrong size
        ("modules.count=0", "modules.count: should be greater than or equal to 1, got 0"),
        ("optimizer.lr=.nan", "optimizer.lr: should be a finite number, got nan"),
        ("optimizer.lr=.inf", "optimizer.lr: should be a finite number, got inf"),
        ("optimizer.lr=1e999", "optimizer.lr: should be a finite number, got inf"),
        ("reconcile.fraction=0", "reconcile.fraction: should be greater than 0, got 0"),
        ("reconcile.weight=1e160", "reconcile.weight: should be less than or equal to 10000000"),
        ("distill.temperature=1e160", "distill.temperature: should be less than or equal to 100,"),
        # overrides that are none
        ("train.steps", "override 'train.steps' is not of the form key=value (such as"),
        ("=3", "override '=3' is not of the form key=value (such as"),
        ("train..steps=3", "override 'train..steps=3' is not of the form key=value (such as"),
        ("model.name.x=3", "override 'model.name.x=3': 'name' holds a value, not keys; change"),
        ("run.dir={", "override 'run.dir={': the value is not valid YAML (line 1: expected the"),
        ("train.seed=0x" + "f" * 5000, "override 'train.seed=0xfff"),
        # contradictions
        (
            "train={epochs: 3, steps: 3}",
            "give one of train.epochs, train.steps and train.tokens, got epochs and steps",
        ),
        ("train.steps=null", "give one of train.epochs, train.steps and train.tokens, got none"),
        ("train.microbatches=3", "data.batch_size must be a multiple of train.microbatches, got"),
        (
            "parallel.wire_dtype=int8",
            "parallel.wire_dtype: should be 'bfloat16' or 'float16', got 'int8'",
        ),
        ("parallel.replicas=2", "train.microbatches must be a multiple of parallel.replicas"),
        ("modules.cuts=auto", "modules.cuts=auto needs modules.count, got none"),
        ("modules.cuts=memory", "modules.cuts=memory needs modules.count, got none"),
        ("parallel={stages: 1, cuts: [2]}", "parallel.cuts must name the first module of each"),
        ("data.name=cifar10", "data.root is needed for data.name=cifar10; name the folder"),
        (
            "reconcile={weight: 1, direction: upstream, fraction: 0.5}",
            "reconcile.fraction=0.5 is of the batches that are reconciled downstream, and",
        ),
        # what an entry does not take
        (
            "optimizer={name: 'python:torch.optim:Adam', momentum: 0.5}",
            "optimizer.momentum=0.5 changes nothing, as optimizer.name=python:torch.optim:Adam",
        ),
        (
            "optimizer={name: 'python:torch.optim:Rprop', weight_decay: 0}",
            "optimizer.weight_decay=0.0 changes nothing, as optimizer.name=python:torch.optim:Rpr",
        ),
        # options of an entry
        ("head.name=wied", "head.name: got 'wied'; did you mean 'wide'? choose one of wide, augl"),
        ("head.name=3", "head.name: should be text, got 3"),
        ("head={name: wide, width: 0}", "head.width: should be greater than or equal to 1, got 0"),
        (
            "head={name: wide, widht: 1}",
            "unknown key 'head.widht' for head.name=wide; did you mean",
        ),
        ("head={name: wide, lr: 1}", "unknown key 'head.lr' for head.name=wide; did you mean 'opt"),
        ("head={name: wide, zzz: 1}", "unknown key 'head.zzz' for head.name=wide; the keys here"),
        (
            "head={name: wide, depth: -1}",
            "head.depth: should be greater than or equal to 0, got -1",
        ),
        ("head.width=1", "unknown key 'head.width' for head.name=auglocal; did you mean 'head.dep"),
        (
            "head={1: 2}",
            "unknown key 'head.1'; the keys here are name, depth, taper",
        ),
        ("head.name=python:no.such:f", "head.name: module 'no.such' cannot be imported"),
        ("data.width=1", "unknown key 'data.width' for data.name=digits; the keys here are name"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, override: str, problem: str) -> None:
    (line,) = problems(tmp_path, TEXT, override)
    assert line.startswith(problem)


@pytest.mark.parametrize("name", ["dense", "multi_label", "regression", "tests.token_task"])
def test_labels_are_smoothed_where_the_task_does_so(tmp_path: Path, name: str) -> None:
    task = f"python:{name}:NextToken" if "." in name else name
    smoothed = ("train.label_smoothing=0.1", f"task.name={task}")
    (line,) = problems(tmp_path, TEXT, *smoothed)
    assert line.startswith(f"train.label_smoothing=0.1 changes nothing, as task.name={task} does")
    assert with_overrides(tmp_path, smoothed[0]).train.label_smoothing == 0.1


@pytest.mark.parametrize("direction", ["upstream", "both"])
def test_a_fixed_head_cannot_apply_feedback(tmp_path: Path, direction: str) -> None:
    upwards = ("head.name=etf", "reconcile.weight=0.1", f"reconcile.direction={direction}")
    (line,) = problems(tmp_path, TEXT, *upwards)
    assert line.startswith(f"reconcile.direction={direction} trains heads, and head.name=etf has")
    assert with_overrides(tmp_path, *upwards[:2]).head.name == "etf"


def test_reconciliation_needs_whole_signals(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, TEXT, "head.fraction=0.5", "reconcile.weight=0.1")
    assert line.startswith("head.fraction=0.5 gives signals for a part of the batch, and the last")
    assert with_overrides(tmp_path, "head.fraction=0.5").head.fraction == 0.5


def test_a_fixed_head_learns_from_no_teacher(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, TEXT, "head.name=etf", "distill.weight=0.5")
    assert line.startswith("distill.weight=0.5 trains heads, and head.name=etf has nothing to")
    (line,) = problems(tmp_path, TEXT, "distill.wieght=0.5")
    assert line.endswith("did you mean 'distill.weight'?")


def test_a_wire_is_narrower_than_what_it_carries(tmp_path: Path) -> None:
    low = ("precision=bfloat16", "parallel.wire_dtype=bfloat16")
    assert with_overrides(tmp_path, *low).parallel.wire_dtype == "bfloat16", "the same bytes"
    (line,) = problems(tmp_path, TEXT, "precision=bfloat16", "parallel.wire_dtype=float16")
    assert line.startswith("parallel.wire_dtype=float16 sends nothing narrower than precision=bf")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must hold sections of `key: value`, got None"),
        ("- 1", "must hold sections of `key: value`, got [1]"),
        ("a: [", "is not valid YAML: line 1: "),
        (TEXT + "train: {steps: 3}\n", "line 7: key 'train' stands twice; keep one"),
        ("a: &a [*a]\n", "line 1: an alias must stand for a single value"),
        ("a: &a {b: 1}\nc: *a\n", "line 1: an alias must stand for a single value"),
        ("a: " + "[" * 5000, "is not valid YAML: "),
        ("a: !!timestamp x", "is not valid YAML: line 1: 'x' is no timestamp of YAML 1.2"),
        ("a: !!python/name:os.system", "is not valid YAML: line 1: "),
        ("{[1]: {2: 3}}", "line 1: found unhashable key"),
        ("a: 0x1" + "0" * 16, "line 1: a whole number must be below 2^63"),
        ("a: \0", "is not valid YAML: "),
    ],
)
def test_a_file_that_cannot_be_one(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in problems(tmp_path, text)[0]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("3: 4", "unknown key '3'; the keys here are engine, compile, channels_last,"),
        ("on: 4", "unknown key 'on'; "),
        ("true: 4", "unknown key 'True'; the keys here are "),
        (
            "data.name: digits",
            "unknown key 'data.name'; in a file, write data: {name: ...}",
        ),
        ("trian: {steps: 3}", "unknown key 'trian'; did you mean 'train'?"),
        ("name: x", "unknown key 'name'; did you mean 'model.name' or 'data.name' or "),
        (
            "head: {1: 2}",
            "unknown key 'head.1'; the keys here are name, depth",
        ),
        (
            "head: [1]",
            "head: should be a section of `key: value` lines (in Python a dict), got [1]",
        ),
    ],
)
def test_a_line_that_should_not_stand_there(tmp_path: Path, line: str, problem: str) -> None:
    (got,) = problems(tmp_path, f"{TEXT}{line}\n")
    assert got.startswith(problem)


def test_a_model_argument_needs_a_name() -> None:
    with pytest.raises(ConfigError, match=r"^unknown key 'model\.1'"):
        configfile.parse({**MINIMAL, "model": {"name": "x", 1: 2}})


def wide(*, width: Annotated[int, Field(ge=1)] = 1, depth: int, note: Path | None = None) -> None:
    """An entry with options of its own, and one of the section's."""


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[Callable[..., None]] = Registry("head.name", "head")
    registry.add("wide", wide)
    registry.add("auglocal", lambda: None)
    monkeypatch.setitem(configfile.REGISTRIES, "head", registry)


@pytest.mark.usefixtures("heads")
def test_further_keys_are_options_of_the_entry(tmp_path: Path) -> None:
    config = with_overrides(tmp_path, "head={name: wide, width: 3, note: a, depth: 4}")
    assert config.head == HeadConfig("wide", depth=4, args={"width": 3, "note": "a"})
    path = tmp_path / "again.yaml"
    path.write_text(configfile.dump(config))
    assert configfile.load(path) == config
    assert with_overrides(tmp_path, "head.name=wide").head.args == {}


def test_an_entry_may_narrow_a_key_of_its_section(tmp_path: Path) -> None:
    """Readouts may have no block of their own; copies of later blocks are at least one."""
    (line,) = problems(tmp_path, TEXT, "head.depth=0")
    assert line == "head.depth: should be greater than or equal to 1, got 0"
    assert with_overrides(tmp_path, "head={name: readout, depth: 0}").head.depth == 0


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    for name, problem in [
        ("none.yaml", "does not exist"),
        ("", "cannot be read"),
        ("latin.yaml", "cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=problem):
            configfile.load(tmp_path / name)


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = "data: {name: nodata}\nhead: {dpth: 3}\ntrain: {steps: '5'}\nhaed: {name: conv}\n"
    assert sorted(problems(tmp_path, text, "optimizer.lr=0")) == [
        "data.name: got 'nodata'; choose one of digits, synthetic, cifar10, cifar100, imagefolder,"
        " webdataset, parquet, tokens, synthetic_tokens, or python:package.module:name",
        "missing key 'model.name'; add it to the file or pass model.name=VALUE",
        "optimizer.lr: should be greater than 0, got 0",
        "train.steps: should be a whole number, got '5'",
        "unknown key 'haed'; did you mean 'head'?",
        "unknown key 'head.dpth' for head.name=auglocal; did you mean 'head.depth'?",
    ]


def test_keys_are_dotted_and_known() -> None:
    assert {"model.name", "train.epochs", "engine"} <= set(KEYS)
    assert {key.split(".")[0] for key in KEYS if "." in key} == set(SECTIONS)
    assert "model.args" not in KEYS


def test_dump_loads_back(tmp_path: Path) -> None:
    tree = {
        "model": {"name": "x", "width": 4, "note": "1e-3", "sizes": [1, 2], "on": "yes"},
        "data": {"name": "cifar10", "root": "1e5", "batch_size": 96},
        "modules": {"count": 3, "cuts": ["layer1.0", 4]},
        "train": {"epochs": 2},
        "optimizer": {"lr": 1e-5, "clip": None},
        "run": {"dir": "2026-11-24", "resume": True},
    }
    config = configfile.parse(tree)
    path = tmp_path / "config.yaml"
    path.write_text(configfile.dump(config))
    assert configfile.load(path) == config
    assert config.data.root == Path("1e5")
    assert config.model.args["note"] == "1e-3"


def test_a_run_from_before_there_were_tasks_loads(tmp_path: Path) -> None:
    config = configfile.parse(MINIMAL)
    tree = yaml.safe_load(configfile.dump(config))
    assert tree.pop("task") == {"name": "classification"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert configfile.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("head", "title"),
    [
        ({"name": "linear"}, "linear"),
        ({"depth": 3}, "auglocal, 3 blocks"),
        ({"depth": 3, "taper": False}, "auglocal, 3 blocks each"),
    ],
)
def test_what_a_head_is_called(head, title):
    assert title_of(HeadConfig(**head)) == title


def test_a_file_named_by_text(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT)
    for name in (str(file), "~/mine.yaml", "$HOME/mine.yaml"):
        assert configfile.load(name) == configfile.load(file)
    with pytest.raises(ConfigError, match=r"config file .*/absent\.yaml does not exist"):
        configfile.load("~/absent.yaml")


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_a_root_that_nothing_reads(tmp_path, name):
    file = tmp_path / "mine.yaml"
    file.write_text(f"model: {{name: resnet20}}\ndata: {{name: {name}}}\ntrain: {{steps: 2}}\n")
    with pytest.raises(ConfigError, match=r"data\.root=/mine changes nothing, as data\.name="):
        configfile.load(file, ["data.root=/mine"])
    assert configfile.load(file, ["data.root=null"]).data.root is None
