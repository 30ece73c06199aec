"""What a run folder holds, finished or not."""

import json

import pytest

from pipeline_local.errors import UserError
from pipeline_local.record.folder import RunFolder
from pipeline_local.report.run import Metric, read
from tests.report.folders import cut_off, make_run, resume


def test_a_finished_run(tmp_path):
    (run,) = read([make_run(tmp_path / "first")])
    assert (run.name, run.step, run.num_modules, run.num_stages) == ("first", 8, 2, 2)
    assert run.settings["data.batch_size"] == 32
    assert run.settings["engine"] == "torch", "a key without a section"
    assert run.metric == Metric("accuracy", True, ())
    assert [head["accuracy"] for head in run.heads] == [0.75, 0.875]
    assert [head["ensemble_accuracy"] for head in run.heads] == [0.75, 0.8125]
    assert run.samples_per_second == 1000
    assert run.memory == [2**30, 2**29]
    assert run.starts[0]["device"] == "cpu"


def test_a_run_that_goes_on(tmp_path):
    (run,) = read([cut_off(make_run(tmp_path / "first"))])
    assert run.results is None
    assert [head["accuracy"] for head in run.heads] == [0.5, 0.75], "of the last complete one"
    assert run.samples_per_second == 1000
    assert run.memory == [2**30, 2**29]


def test_the_summary_of_a_shorter_run_is_not_this_ones(tmp_path):
    path = make_run(tmp_path / "first")
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, "steps": 4}))
    (run,) = read([path])
    assert run.results is None


def test_work_that_was_abandoned_is_not_this_runs(tmp_path):
    (run,) = read([resume(make_run(tmp_path / "first"), step=4, stages=2, steps=6)])
    assert (run.step, run.results is not None) == (6, True)
    assert [(head["step"], head["accuracy"]) for head in run.heads] == [(6, 0.5)] * 2


@pytest.mark.parametrize("named", [True, False])
def test_resumed_on_fewer_stages(tmp_path, named):
    """Whether the configuration names their number, or only the launcher."""
    path = resume(make_run(tmp_path / "first"), step=4, stages=1, steps=8)
    (path / "summary.json").unlink()
    if not named:
        text = (path / "config.yaml").read_text()
        (path / "config.yaml").write_text(text.replace("\n  stages: 1\n", "\n  stages: null\n"))
    (run,) = read([path])
    assert (run.num_stages, run.num_modules) == (1, 2)
    assert run.memory == [2**20]
    assert run.samples_per_second == 500
    assert len(run.frame) > len(run.logged) == 8, "curves have all steps"
    run.folder.add_start(8, 2, "cpu")
    (run,) = read([path])
    assert (run.begun, run.memory, run.samples_per_second) == (8, [], None)
    assert run.num_stages == (1 if named else 2)


@pytest.mark.parametrize(
    ("stages", "replicas", "found"), [("2", "2", 2), ("null", "2", 3), ("null", "[1, 2]", 2)]
)
def test_stages_of_replicas(tmp_path, stages, replicas, found):
    path = make_run(tmp_path / "first")
    text = (path / "config.yaml").read_text()
    text = text.replace(
        "\n  stages: 2\n  replicas: 1\n", f"\n  stages: {stages}\n  replicas: {replicas}\n"
    )
    (path / "config.yaml").write_text(text)
    RunFolder(path).add_start(0, 6, "cpu")
    assert read([path])[0].num_stages == found


def test_a_run_that_has_logged_nothing(tmp_path):
    path = cut_off(make_run(tmp_path / "first"))
    for file in (path / "metrics").iterdir():
        file.write_text("")
    (run,) = read([path])
    assert (run.frame, run.step, run.heads, run.memory) == (None, 0, [], [])
    assert (run.samples_per_second, run.num_modules, run.num_stages) == (None, 2, 2)


def test_a_task_that_only_a_program_knows(tmp_path):
    path = make_run(tmp_path / "first")
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("name: classification", "name: mine"))
    for file in (path / "metrics").iterdir():
        file.write_text(file.read_text().replace("accuracy", "dice"))
    (run,) = read([path])
    assert run.metric == Metric("dice", percent=False)
    assert run.metric.text(0.5) == "0.5"


def test_names_are_the_shortest_that_differ(tmp_path):
    paths = [make_run(tmp_path / name) for name in ("a/run", "b/run", "b/other")]
    assert [run.name for run in read(paths)] == ["a/run", "b/run", "b/other"]
    assert [run.name for run in read(paths[1:])] == ["run", "other"]


def test_the_same_run_twice(tmp_path, monkeypatch):
    path = make_run(tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is given more than once; name each run once"):
        read([path, path.relative_to(tmp_path)])


@pytest.mark.parametrize("text", ["][", "1", b"\xff\xfe"])
def test_a_damaged_configuration(tmp_path, text):
    path = make_run(tmp_path / "first")
    (path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"config\.yaml .*; restore it"):
        read([path])


@pytest.mark.parametrize("key", ["steps", "samples_per_second", "peak_memory_bytes"])
def test_a_damaged_summary(tmp_path, key):
    path = make_run(tmp_path / "first")
    facts = json.loads((path / "summary.json").read_text())
    facts.pop(key)
    (path / "summary.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=rf"summary\.json is damaged \(it has no '{key}'\); remove"):
        read([path])


def test_a_run_of_an_earlier_version(tmp_path):
    path = make_run(tmp_path / "first")
    for file in (path / "metrics").iterdir():
        file.write_text(file.read_text().replace('"time"', '"seen"'))
    with pytest.raises(UserError, match=r"recorded by an earlier version, .* say no stage or time"):
        read([path])


def test_no_run(tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder: it has no config\.yaml"):
        read([tmp_path])
