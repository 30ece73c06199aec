"""The trainer: what the ranks agree on before anything begins, and what a failure leaves."""

import time
from dataclasses import replace

import pytest

from pipeline_local.configfile import configfile
from pipeline_local.errors import RefusedElsewhereError, UserError
from pipeline_local.gpus.telemetry import Telemetry
from pipeline_local.pipeline.source import Source
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.metrics import Metrics
from pipeline_local.record.progress import Progress
from pipeline_local.record.recorder import Recorder
from pipeline_local.record.writer import Writer
from pipeline_local.training import agreement, trainer
from pipeline_local.training.callbacks import Callback
from pipeline_local.training.train import train


def parse(folder, **sections):
    tree = {
        "model": {"name": "resnet20", "width": 4},
        "data": {"name": "digits", "batch_size": 32},
        "modules": {"count": 4},
        "train": {"steps": 4, "log_every": 2},
        "parallel": {"threads": 1},
        "run": {"dir": str(folder)},
    }
    return configfile.parse({**tree, **sections})


@pytest.mark.parametrize(
    ("section", "changes", "problem"),
    [
        ("train", {"epochs": 1}, "give one of train.epochs, train.steps .* got epochs and steps"),
        ("train", {"steps": None}, "give one of train.epochs, train.steps .* got none"),
        ("train", {"microbatches": 3}, "must be a multiple of train.microbatches, got 32 and 3"),
        ("optimizer", {"name": "sdg"}, "did you mean 'sgd'"),
        ("optimizer", {"lr": "much"}, "optimizer.lr: should be a number, got 'much'"),
    ],
)
def test_a_configuration_of_ones_own_is_checked(tmp_path, section, changes, problem):
    config = parse(tmp_path / "run")
    part = replace(getattr(config, section), **changes)
    with pytest.raises(UserError, match=problem):
        train(replace(config, **{section: part}))
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_configuration():
    with pytest.raises(
        UserError, match=r"^config: should be a Config, as load_config.* 'mine.yaml'"
    ):
        train("mine.yaml")


def test_text_is_a_path(tmp_path):
    config = parse(tmp_path / "run")
    summary = train(replace(config, run=replace(config.run, dir=str(tmp_path / "text"))))
    assert RunFolder(tmp_path / "text").load_summary() == summary


def refused(rank_info, config):
    """How this rank ends."""
    try:
        train(config, rank_info)
    except (UserError, RefusedElsewhereError) as error:
        return str(error)
    return "trained"


def test_a_refusal_is_explained_by_the_first_rank_alone(tmp_path, run_ranks):
    (tmp_path / "run" / "trace").mkdir(parents=True)
    (tmp_path / "run" / "trace" / "old").write_text("")
    first, *others = run_ranks(refused, 3, parse(tmp_path / "run"))
    assert "never overwritten" in first
    assert others == ["", ""]


def differing(rank_info, folder):
    seed = {"steps": 4, "seed": rank_info.rank // 2}
    return refused(rank_info, parse(folder, train=seed))


def test_ranks_with_different_configurations_do_not_train(tmp_path, run_ranks):
    first, second, third = run_ranks(differing, 3, tmp_path / "run")
    assert first == second == ""
    assert "differs from the first rank's" in third


@pytest.mark.parametrize("stages", [1, 3])
def test_what_is_derived_is_announced_with_its_reason(tmp_path, run_ranks, capfd, stages):
    run_ranks(refused, stages, parse(tmp_path / "run"))
    shown = capfd.readouterr().out
    assert "resnet20: 0.02 M parameters in 10 blocks, 4 modules; images 1x8x8" in shown
    assert "4 steps (train.steps), 32 of 1442 samples each" in shown
    assert f"{stages} stage" in shown
    assert "1 CPU thread each (parallel.threads)" in shown
    assert shown.count("Test set, per head") == 1


def test_checkpoints_are_kept_as_asked(tmp_path):
    checkpoint = {"every_steps": 1, "keep": 2}
    train(parse(tmp_path / "run", checkpoint=checkpoint), RankInfo())
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000004"]


def test_a_run_folder_that_is_not_shared_is_refused(tmp_path, run_ranks):
    """The configurations would differ too, but for relative folders on different hosts."""

    def on_its_own_host(rank_info, folder):
        import os

        (folder / str(rank_info.rank)).mkdir()
        os.chdir(folder / str(rank_info.rank))
        return refused(rank_info, parse("run"))

    first, second = run_ranks(on_its_own_host, 2, tmp_path)
    assert first == ""
    assert "all hosts share" in second


def crashing(rank_info, config):
    """The second rank cannot build its modules."""
    import pipeline_local.training.train as entry

    def broken(*_):
        raise MemoryError("no room")

    if rank_info.rank == 1:
        entry.modules_of = broken
    try:
        return refused(rank_info, config)
    except MemoryError as error:
        return str(error)


def test_a_rank_that_fails_at_the_start_does_not_leave_the_others_waiting(tmp_path, run_ranks):
    assert run_ranks(crashing, 3, parse(tmp_path / "run")) == ["", "no room", ""]


class Opened:
    """What a rank has open in its run, and has closed again."""

    def __init__(self, monkeypatch):
        self.closed = set()
        for owner, name in (
            (Metrics, "close"),
            (Telemetry, "close"),
            (Writer, "close"),
            (Source, "close"),
            (Recorder, "write"),
            (Progress, "close"),
        ):
            self._watch(monkeypatch, owner, name)

    def _watch(self, monkeypatch, owner, name):
        end = getattr(owner, name)

        def noted(this, **how):
            self.closed.add(owner.__name__)
            end(this, **how)

        monkeypatch.setattr(owner, name, noted)


def test_what_is_open_is_closed_where_the_making_fails(tmp_path, monkeypatch):
    """As where the edges of this stage cannot be connected."""
    opened = Opened(monkeypatch)

    def refuse(*_):
        raise UserError("no edges today")

    monkeypatch.setattr(trainer, "connect", refuse)
    with pytest.raises(UserError, match="no edges today"):
        train(parse(tmp_path / "run"), RankInfo())
    assert opened.closed == {"Metrics", "Telemetry", "Writer", "Recorder"}


class Failing(Callback):
    def on_step(self, run, step):
        raise ValueError("mine")


def test_a_trace_that_cannot_be_exported_does_not_hide_the_error(tmp_path, monkeypatch, capsys):
    opened = Opened(monkeypatch)

    def refuse(*_):
        raise RuntimeError("export failed")

    monkeypatch.setattr(Recorder, "_stage_trace", refuse)
    with pytest.raises(ValueError, match="mine"):
        train(parse(tmp_path / "run"), RankInfo(), [Failing()])
    assert "cannot be written (export failed)" in capsys.readouterr().err
    assert opened.closed == {"Metrics", "Telemetry", "Writer", "Source", "Recorder", "Progress"}


def test_one_that_cannot_be_closed_does_not_keep_the_others_open(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError("no terminal")

    monkeypatch.setattr(Progress, "close", refuse)
    opened = Opened(monkeypatch)
    with pytest.raises(OSError, match="no terminal") as raised:
        train(parse(tmp_path / "run"), RankInfo(), [Failing()])
    assert "mine" in str(raised.value.__context__)
    assert opened.closed == {"Metrics", "Telemetry", "Writer", "Source", "Recorder", "Progress"}


def resume(folder, **sections):
    return parse(folder, **sections, run={"dir": str(folder), "resume": True})


def test_a_run_is_not_resumed_as_another(tmp_path):
    train(parse(tmp_path / "run"), RankInfo())
    with pytest.raises(UserError, match="a run with another modules and head; resume it as it was"):
        train(resume(tmp_path / "run", modules={"count": 5}, head={"name": "linear"}), RankInfo())


def test_a_run_cut_off_before_its_summary_is_concluded(tmp_path):
    before = train(parse(tmp_path / "run"), RankInfo())
    (tmp_path / "run" / "summary.json").unlink()
    after = train(resume(tmp_path / "run"), RankInfo())
    assert (tmp_path / "run" / "summary.json").is_file()
    assert after["accuracy"] == before["accuracy"]
    assert after["steps"] == before["steps"]


def test_torchruns_restart_resumes(tmp_path):
    train(parse(tmp_path / "run"), RankInfo())
    longer = parse(tmp_path / "run", train={"steps": 6, "log_every": 2})
    assert train(longer, RankInfo(restarted=True))["steps"] == 6
    assert (tmp_path / "run" / "summary-1.json").is_file(), "of the first four steps"


def test_divergence_is_named(tmp_path):
    with pytest.raises(UserError, match=r"module \d: .* not finite (at|after) step \d; lower"):
        train(parse(tmp_path / "run", optimizer={"lr": 1e9}), RankInfo())
    assert not (tmp_path / "run" / "summary.json").exists()


def test_what_was_begun_beyond_the_checkpoint_is_dropped(tmp_path):
    train(parse(tmp_path / "run"), RankInfo())
    left = tmp_path / "run" / "checkpoints" / "step-00000005"
    left.mkdir()
    (left / "module-001.safetensors").write_bytes(b"of another life")
    longer = {"steps": 6, "log_every": 2}
    train(resume(tmp_path / "run", train=longer), RankInfo())
    assert not left.exists()


@pytest.mark.parametrize("seed", [0, 1])
def test_what_has_run_between_check_and_claim_is_not_taken_over(tmp_path, monkeypatch, seed):
    """Neither is another run gone on with, nor, if it is the same, one that nobody resumes."""
    config, lead = parse(tmp_path / "run"), agreement._lead

    def late(*args):
        monkeypatch.setattr(agreement, "_lead", lead)
        train(parse(tmp_path / "run", train={"steps": 2, "seed": seed}), RankInfo())
        return lead(*args)

    monkeypatch.setattr(agreement, "_lead", late)
    with pytest.raises(UserError, match="already holds a run"):
        train(config, RankInfo())
    assert RunFolder(tmp_path / "run").load_summary()["steps"] == 2


def beside_another_run(rank_info, folder):
    """Rank 0 uses the folder until rank 1 has tried to resume it."""
    here, tried = folder / "here", folder / "tried"
    if rank_info.rank == 0:
        with RunFolder(folder).claimed():
            here.touch()
            wait_for(tried)
        return ""
    wait_for(here)
    message = refused(RankInfo(), resume(folder))
    tried.touch()
    return message


def wait_for(file):
    while not file.exists():
        time.sleep(0.01)


def test_a_run_that_is_at_work_is_not_resumed(tmp_path, run_ranks):
    train(parse(tmp_path / "run"), RankInfo())
    (tmp_path / "run" / "summary.json").unlink()
    before = (tmp_path / "run" / "metrics" / "stage-0.jsonl").read_text()
    _, message = run_ranks(beside_another_run, 2, tmp_path / "run")
    assert "another run is using" in message
    assert (tmp_path / "run" / "metrics" / "stage-0.jsonl").read_text() == before
