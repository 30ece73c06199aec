"""The run folder is never overwritten."""

import errno
import os

import pytest
import yaml

from pipeline_local import atomic
from pipeline_local.configfile import configfile
from pipeline_local.errors import UserError
from pipeline_local.record.folder import RunFolder

CONFIG = {"model": {"name": "resnet20"}, "data": {"name": "digits"}, "train": {"steps": 1}}


def test_a_new_or_empty_folder_is_fine(tmp_path):
    config = configfile.parse(CONFIG)
    RunFolder(tmp_path / "new").check(config, "{}", resume=False)
    RunFolder(tmp_path).check(config, "{}", resume=False)


def test_an_existing_run_is_only_resumed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create(configfile.parse(CONFIG), "{}")
    refusal = r"holds a run \(config.yaml, data.json\), .* overwritten; .* pipeline-local resume"
    with pytest.raises(UserError, match=refusal):
        folder.check(configfile.parse(CONFIG), "{}", resume=False)
    folder.check(configfile.parse(CONFIG), "{}", resume=True)
    assert folder.load_config().model == configfile.parse(CONFIG).model


@pytest.mark.parametrize("name", ["slurm-17.out", ".gitkeep", "lost+found/x", "my-config.yaml"])
def test_what_no_run_has_left_is_no_run(tmp_path, name):
    """A batch system's log, a new volume, empty folders that are mounted for what is to come."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    (tmp_path / "checkpoints").mkdir()
    RunFolder(tmp_path).check(configfile.parse(CONFIG), "{}", resume=False)


def test_files_of_a_rank_have_the_name_of_its_stage_and_replica(tmp_path):
    """The first replica's are those of its stage."""
    folder = RunFolder(tmp_path)
    made = [folder.trace(1), folder.trace(1, 0), folder.trace(0, 2), folder.profile(0, 2)]
    names = ["stage-1", "stage-1", "replica-2-of-stage-0", "profiler-replica-2-of-stage-0"]
    assert made == [tmp_path / "trace" / f"{name}.json" for name in names]
    assert folder.metrics(0, 2) == tmp_path / "metrics" / "replica-2-of-stage-0.jsonl"
    (tmp_path / "trace").mkdir()
    for path in made:
        path.touch()
    assert folder.traces() == [made[2], made[0]], "what is the profiler's is none"


@pytest.mark.parametrize("name", ["metrics/stage-0.jsonl", "checkpoints/x", "trace/y", "best.json"])
def test_any_part_of_a_run_is_one(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=rf"holds a run \({name.partition('/')[0]}\)"):
        RunFolder(tmp_path).check(configfile.parse(CONFIG), "{}", resume=False)


def test_links_to_nowhere(tmp_path):
    """Such as to a scratch disk that was cleaned: nothing is there, and yet nothing can be made."""
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"run is a link to .*gone, which is not there"):
        RunFolder(tmp_path / "run").check(configfile.parse(CONFIG), "{}", resume=False)
    (tmp_path / "checkpoints").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"holds a run \(checkpoints\)"):
        RunFolder(tmp_path).check(configfile.parse(CONFIG), "{}", resume=False)


@pytest.mark.parametrize("narrow", ["bfloat16", "float16"])
def test_a_run_keeps_its_wire(narrow, tmp_path):
    """Its modules have learned from what was rounded so."""
    folder, narrow = RunFolder(tmp_path), {**CONFIG, "parallel": {"wire_dtype": narrow}}
    folder.create(configfile.parse(CONFIG), "{}")
    with pytest.raises(UserError, match=r"with another parallel\.wire_dtype; resume it as it was"):
        folder.check(configfile.parse(narrow), "{}", resume=True)
    folder.create(configfile.parse(narrow), "{}")
    folder.check(configfile.parse(narrow), "{}", resume=True)
    with pytest.raises(UserError, match=r"with another parallel\.wire_dtype; resume it as it was"):
        folder.check(configfile.parse(CONFIG), "{}", resume=True)


UPSTREAM = {**CONFIG, "reconcile": {"weight": 0.1, "direction": "upstream"}}
DISTILLED = {**CONFIG, "distill": {"weight": 0.1}}


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        (CONFIG, UPSTREAM, "kind of lagged message"),
        (UPSTREAM, CONFIG, "kind of lagged message"),
        (UPSTREAM, {**UPSTREAM, "reconcile": {**UPSTREAM["reconcile"], "every": 4}}, "every"),
        (UPSTREAM, {**UPSTREAM, "train": {"steps": 1, "microbatches": 2}}, "microbatches"),
        (CONFIG, DISTILLED, "kind of lagged message"),
        (DISTILLED, CONFIG, "kind of lagged message"),
        (DISTILLED, {**CONFIG, "distill": {"weight": 0.1, "every": 4}}, "distill.every"),
        (DISTILLED, {**CONFIG, "distill": {"weight": 0.1, "teacher": "last"}}, "distill.teacher"),
        (DISTILLED, {**DISTILLED, "train": {"steps": 1, "microbatches": 2}}, "microbatches"),
    ],
)
def test_feedback_under_way_is_for_the_steps_it_was_meant_for(tmp_path, before, after, key):
    """With others, it would be applied later or sooner, or fit nobody."""
    folder = RunFolder(tmp_path)
    folder.create(configfile.parse(before), "{}")
    with pytest.raises(UserError, match=rf"with another .*{key}.*; resume it as it was"):
        folder.check(configfile.parse(after), "{}", resume=True)


@pytest.mark.parametrize(
    "task", [{"name": "multi_label"}, {"name": "classification", "label_smoothing": 0.1}]
)
def test_a_run_keeps_its_task(tmp_path, task):
    """Also one from before there were tasks, whose file does not say it."""
    folder = RunFolder(tmp_path)
    folder.create(configfile.parse(CONFIG), "{}")
    tree = yaml.safe_load(folder.config.read_text())
    assert tree.pop("task") == {"name": "classification"}
    folder.config.write_text(yaml.safe_dump(tree))
    folder.check(configfile.parse(CONFIG), "{}", resume=True)
    with pytest.raises(UserError, match=r"with another task; resume it as it was"):
        folder.check(configfile.parse({**CONFIG, "task": task}), "{}", resume=True)


def test_without_feedback_those_may_change(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create(configfile.parse(CONFIG), "{}")
    changed = {"train": {"steps": 1, "microbatches": 2}, "reconcile": {"weight": 0.1}}
    folder.check(configfile.parse({**CONFIG, **changed}), "{}", resume=True)


def test_an_earlier_configuration_is_kept(tmp_path):
    folder = RunFolder(tmp_path)
    texts = []
    for steps in (1, 2, 2, 3):
        folder.create(configfile.parse({**CONFIG, "train": {"steps": steps}}), "{}")
        texts.append(folder.config.read_text())
    kept = [(tmp_path / f"config-{number}.yaml").read_text() for number in (1, 2)]
    assert kept == [texts[0], texts[1]]
    assert len(list(tmp_path.glob("config*"))) == 3


def test_a_full_disk_leaves_the_configuration(tmp_path, monkeypatch):
    """It alone says which run the checkpoints are of."""
    folder = RunFolder(tmp_path)
    folder.create(configfile.parse(CONFIG), "{}")
    text, write = folder.config.read_text(), atomic.write_text

    def fill_up(path, text):
        if path == folder.config:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, text)

    monkeypatch.setattr(atomic, "write_text", fill_up)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        folder.create(configfile.parse({**CONFIG, "train": {"steps": 2}}), "{}")
    assert folder.config.read_text() == text


def test_checkpoints_without_a_configuration_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"has checkpoints, and no config\.yaml .*; put it back"):
        RunFolder(tmp_path).check(configfile.parse(CONFIG), "{}", resume=True, begun=True)


def test_results_of_a_run_that_goes_on_are_set_aside(tmp_path):
    folder = RunFolder(tmp_path)
    for steps in (1, 2, 3):
        folder.create(configfile.parse({**CONFIG, "train": {"steps": steps}}), "{}")
        assert not folder.summary.exists()
        folder.summary.write_text(f'{{"steps": {steps}}}')
    kept = [(tmp_path / f"summary-{number}.json").read_text() for number in (1, 2)]
    assert kept == ['{"steps": 1}', '{"steps": 2}']


def test_what_is_resumed_and_how_it_differs(tmp_path):
    folder, config = RunFolder(tmp_path), configfile.parse(CONFIG)
    assert folder.describe_resume(config, 0) == f"nothing to resume in {tmp_path}: a new run"
    folder.create(config, "{}")
    assert folder.describe_resume(config, 0) == "no checkpoint yet: from the beginning"
    assert folder.describe_resume(config, 7) == "resuming after step 7"
    places = {"stages": 1, "threads": 1, "sync_batchnorm": True}
    other = {**CONFIG, "optimizer": {"lr": 0.5}, "parallel": places, "channels_last": True}
    assert folder.describe_resume(configfile.parse(other), 7) == (
        "resuming after step 7, channels_last=True (was False), optimizer.lr=0.5 (was 0.1),"
        " parallel.sync_batchnorm=True (was False)"
    )


def test_what_is_not_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "file").check(configfile.parse(CONFIG), "{}", resume=True)
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder(tmp_path).load_config()
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").create(configfile.parse(CONFIG), "{}")
