"""The command line: the life of a run; what is typed badly is in test_bad_input.py."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline_local import cli
from pipeline_local.cli import main
from pipeline_local.commands.table import COMMANDS
from pipeline_local.console import startup
from pipeline_local.errors import UserError
from pipeline_local.models import registry

CONFIG = """
model: {name: resnet20, width: 4}
modules: {count: 4}
reconcile: {weight: 0.1, every: 1}
data: {name: digits, batch_size: 32}
train: {steps: 6, log_every: 2}
parallel: {threads: 1}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return str(path)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_a_dry_run_checks_and_starts_nothing(config, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert run("train", config, "--dry-run", "run.dir=out", "parallel.stages=2") == 0
    shown = capsys.readouterr().out
    assert "resnet20" in shown
    assert "6 steps (train.steps)" in shown
    rows = [line.split("│") for line in shown.splitlines() if line.startswith("│")]
    assert [row[2].strip() for row in rows] == ["0", "0", "1", "1"]
    assert run("train", config, "--dry-run", "run.dir=out", "modules.count=11") == 2
    assert "11 modules for 10 blocks" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_an_error_before_the_ranks_have_met_names_the_rank_alone(config, capsys, monkeypatch):
    """Which stage that is depends on the configuration."""

    def refuse(*_):
        raise UserError("nobody is there")

    monkeypatch.setitem(COMMANDS, "train", refuse)
    monkeypatch.setattr(cli, "FIRST_SPEAKS", 0.0)
    for name, number in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, number)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert run("train", config) == 2
    assert capsys.readouterr().err.startswith("[rank 3] error: nobody is there (")


def test_the_first_rank_of_a_host_speaks_first(config, capsys, monkeypatch):
    """What all ranks see before they meet; a launcher ends them all with the first that leaves."""
    slept = []
    monkeypatch.setattr(cli.time, "sleep", slept.append)
    for name, number in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, number)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert run("train", config, "train.steps=0") == 2
    assert (slept, capsys.readouterr().err) == ([cli.FIRST_SPEAKS], "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run("train", config, "train.steps=0") == 2
    assert len(slept) == 1
    assert "train.steps" in capsys.readouterr().err


def test_the_configuration_is_shown(config, capsys):
    assert run("config", config, "optimizer.lr=0.25") == 0
    shown = capsys.readouterr().out
    assert "  lr: 0.25" in shown
    assert "# command line" in shown


def test_train_evaluate_export(config, tmp_path, capsys):
    """The whole life of a run, in one process."""
    assert run("train", config, "run.dir=out") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    scores, took = ["accuracy", "ensemble_accuracy", "loss"], ["seconds", "samples_per_second"]
    keys = [*scores, "steps", "resumed_after", *took]
    assert list(summary) == [
        *keys,
        "efficiency",
        "peak_memory_bytes",
        "memory_of",
        "checkpoint_stall_seconds",
    ]
    assert [len(summary[name]) for name in scores] == [4, 4, 4]
    assert summary["steps"] == 6
    assert summary["peak_memory_bytes"][0] > 0

    assert capsys.readouterr().out.splitlines()[-1].startswith("run folder: out; ")

    lines = (tmp_path / "out" / "metrics" / "stage-0.jsonl").read_text().splitlines()
    facts = [json.loads(line) for line in lines]
    assert [f["step"] for f in facts if f["event"] == "train"] == [2, 4, 6]
    last = facts[-2]["modules"]["2"]
    assert {"loss", "accuracy", "discord", "cosine", "input_norm", "signal_norm"} <= set(last)
    assert set(facts[-2]["seconds"]) >= {"forward", "signal", "learn", "update"}
    assert (tmp_path / "out" / "trace" / "stage-0.json").is_file()

    capsys.readouterr()
    assert run("evaluate", "out") == 0
    shown = capsys.readouterr().out
    for name in ("accuracy", "ensemble_accuracy"):
        assert all(f"{100 * accuracy:.2f} %" in shown for accuracy in summary[name])

    assert run("trace", "out", "--waits", "1") == 0
    assert "timeline: out/trace.json; open it in" in capsys.readouterr().out
    assert (tmp_path / "out" / "trace.json").is_file()
    assert run("trace", "out", "--waits=-1") == 2
    assert run("trace", "elsewhere") == 2
    assert "elsewhere is not a run folder" in capsys.readouterr().err

    assert "evaluation, Predictor takes head" in shown
    assert run("evaluate", "out", "data.batch_size=100", "parallel.threads=1") == 0
    assert run("diagnose", "out", "--batches=1", "data.workers=0") == 0
    assert run("evaluate", "out", "train.seed=1") == 2

    assert run("export", "out", "--output", "model.safetensors") == 0
    state = load_file("model.safetensors")
    backbone = registry.build("resnet20", {"width": 4}, (10,), (1, 8, 8))[0]
    names = [b.prefix + n for b in backbone.blocks for n in b.module.state_dict()]
    assert set(state) == {*names, "fc.weight", "fc.bias"}


def test_paths_of_the_command_line_are_expanded(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JOB", "17")
    assert run("train", config, "train.steps=1", "run.dir=~/$JOB") == 0
    assert run("resume", "~/$JOB", "train.steps=2") == 0
    assert run("export", "~/${JOB}", "--output=~/model.safetensors") == 0
    assert (tmp_path / "home/model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "home"]
    with pytest.raises(SystemExit) as ended:
        run("evaluate", "$NOT_SET")
    assert ended.value.code == 2
    assert "should be a path of variables that are set (NOT_SET is not)" in capsys.readouterr().err


def test_a_complete_run_stays_as_it_is(config, tmp_path, capsys):
    assert run("train", config, "run.dir=out") == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert run("train", config, "run.dir=out", "run.resume=true", "parallel.threads=1") == 0
    assert "out is complete after 6 steps; raise train." in capsys.readouterr().out
    assert run("resume", "out", "checkpoint.keep=9") == 0
    assert "out is complete after 6 steps; raise train." in capsys.readouterr().out
    for more in ("data.batch_size=16", "train.steps=5"):
        assert run("resume", "out", more) == 2
    refusals = capsys.readouterr().err.splitlines()
    assert "another data.batch_size (16, was" in refusals[0]
    assert "train.steps: 5 steps are fewer than the 6 that are done" in refusals[1]
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_weights_are_exported_as_what_they_are(config, capsys):
    assert run("train", config, "run.dir=out") == 0
    assert run("export", "out", "--output", "model.pt") == 2
    assert (
        "--output: must end in one of .safetensors, .pt2, .onnx, got model.pt"
        in capsys.readouterr().err
    )


def test_exported_torchvision_model_gives_the_same_accuracy(tmp_path, monkeypatch):
    """The file loads into torchvision's own model, which then does what the run did."""
    import torchvision

    from pipeline_local.config import DataConfig
    from pipeline_local.data.images.batches import test_batches
    from pipeline_local.data.images.datasets import describe
    from pipeline_local.data.images.normalize import Normalize

    monkeypatch.chdir(tmp_path)
    data = {"name": "synthetic", "image_size": 32, "limit": 64, "batch_size": 32}
    (tmp_path / "c.yaml").write_text(
        f"model: {{name: resnet18}}\nmodules: {{count: 3}}\ndata: {json.dumps(data)}\n"
        "head: {name: linear}\ntrain: {steps: 3}\noptimizer: {lr: 0.02}\nparallel: {threads: 1}\n"
    )
    assert run("train", "c.yaml", "run.dir=out") == 0
    assert run("export", "out", "--output", "model.safetensors") == 0
    model = torchvision.models.resnet18(num_classes=10)
    model.load_state_dict(load_file("model.safetensors"), strict=True)
    config = DataConfig(**data)
    info, correct = describe(config), 0
    with torch.no_grad():
        for images, labels in test_batches(config, info):
            logits = model.eval()(Normalize(info)(images))
            correct += int((logits.argmax(1) == labels).sum())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["accuracy"][-1] == correct / info.num_test


def test_fine_tuning_starts_from_a_state_dict(config, tmp_path):
    assert run("train", config, "run.dir=first") == 0
    assert run("export", "first", "--output", "model.safetensors") == 0
    weights = "model.weights=model.safetensors"
    assert run("train", config, weights, "run.dir=second", "optimizer.lr=1e-30") == 0
    assert run("export", "second", "--output", "again.safetensors") == 0
    first, second = load_file("model.safetensors"), load_file("again.safetensors")
    assert torch.equal(first["layer2.0.conv1.weight"], second["layer2.0.conv1.weight"])


def test_resume_and_never_overwrite(config, tmp_path, capsys):
    assert run("train", config, "run.dir=out") == 0
    before = (tmp_path / "out" / "summary.json").read_bytes()
    assert run("train", config, "run.dir=out") == 2
    assert "never overwritten" in capsys.readouterr().err
    assert (tmp_path / "out" / "summary.json").read_bytes() == before
    assert run("train", config, "run.dir=out", "run.resume=true") == 0
    assert "complete" in capsys.readouterr().out
    assert (tmp_path / "out" / "summary.json").read_bytes() == before
    assert run("export", "out", "--output", "m.safetensors") == 0
    assert run("export", "out", "--output", "m.safetensors") == 2
    assert "never overwritten" in capsys.readouterr().err


def test_all_mistakes_at_once(config, capsys):
    assert run("train", config, "optimizer.lr=-1", "trian.steps=3", "precision=int8") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 3


def test_ranks_but_the_first_stay_silent(config, capsys, monkeypatch):
    monkeypatch.setattr(cli, "FIRST_SPEAKS", 0.0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("train", config, "modules.cuont=3") == 2
    assert capsys.readouterr().err == ""


def test_deepspeeds_local_rank_is_accepted(config, tmp_path):
    assert run("--local_rank=0", "train", config, "run.dir=out", "train.steps=1") == 0


def test_overrides_may_stand_behind_options(config, capsys):
    bench = ["bench", "reconcile", config, "modules.count=2", "--runs", "1", "train.steps=1"]
    assert run(*bench, "head.name=linear") == 0
    assert "module 2 of 2, head linear" in capsys.readouterr().out
    for stray in ("--nonsense", "word"):
        with pytest.raises(SystemExit) as caught:
            run(*bench, stray)
        assert caught.value.code == 2
    with pytest.raises(SystemExit):
        run("compare", "out", "other", "a=b")


def test_version_and_help(capsys):
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit) as caught:
            run(flag)
        assert caught.value.code == 0
    assert "train" in capsys.readouterr().out


def test_a_run_is_resumed_by_its_own_configuration(config, tmp_path, monkeypatch, capsys):
    """From another folder, without what it began with; the same run in the end."""
    assert run("train", config, "run.dir=first") == 0
    assert run("export", "first", "--output", "w.safetensors") == 0
    began = [
        "model.weights=w.safetensors",
        "optimizer.lr=0.02",
        "train.steps=9",
        "train.epochs=null",
    ]
    assert run("train", config, *began, "run.dir=whole") == 0
    assert run("train", config, *began[:2], "train.steps=6", began[3], "run.dir=out") == 0
    (tmp_path / "w.safetensors").unlink()
    assert run("train", config, "run.dir=out", "run.resume=true", "train.steps=9", began[3]) == 2
    assert "optimizer.lr=0.1 (was 0.02) in out, and no key=value" in capsys.readouterr().err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("resume", "../out", "train.steps=9") == 0
    said = "resuming after step 6, train.steps=9 (was 6): 3 of 9 steps to go, the next with"
    assert said in capsys.readouterr().out
    text = (tmp_path / "out" / "config.yaml").read_text()
    assert f"weights: {tmp_path / 'w.safetensors'}" in text
    assert f"dir: {tmp_path / 'elsewhere' / '..' / 'out'}" in text


def test_results_of_a_shorter_run_do_not_make_a_longer_one_complete(config, tmp_path, capsys):
    """It was ended after its last checkpoint, before its results were written."""
    assert run("train", config, "run.dir=out") == 0
    short = (tmp_path / "out" / "summary.json").read_bytes()
    assert run("resume", "out", "train.steps=9") == 0
    (tmp_path / "out" / "summary.json").write_bytes(short)
    capsys.readouterr()
    assert run("resume", "out") == 0
    assert "is complete" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["steps"] == 9


def test_the_error_is_the_last_line(config, monkeypatch):
    """What is being done is not said again behind it."""
    said = []
    monkeypatch.setattr(startup, "over", lambda: said.append("over"))
    monkeypatch.setattr("pipeline_local.cli.complain", said.append)
    assert run("train", config, "train.steps=no") == 2
    assert said[0] == "over"
    assert said[1].startswith("error: train.steps")


def test_what_may_be_left_out_is_not_asked_for(capsys):
    with pytest.raises(SystemExit):
        run("train")
    assert "the following arguments are required: config\n" in capsys.readouterr().err
