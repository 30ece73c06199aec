"""Measuring a network's parts: everything is there, and nothing is overwritten."""

import json
from pathlib import Path

import pytest
import torch

from pipeline_local.cli import main
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.planning import profile
from pipeline_local.ranks import environment
from pipeline_local.ranks.rank import RankInfo
from tests.apart import apart

CPU = torch.device("cpu")
CONFIG = """
model: {name: resnet20, width: 4}
modules: {count: 3}
head: {name: auglocal, depth: 2}
reconcile: {weight: 0.1}
data: {name: digits, batch_size: 8}
train: {steps: 4}
parallel: {threads: 1}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG)
    return "config.yaml"


@pytest.fixture
def small(config):
    """Of few parts, which are soon measured."""
    few = CONFIG.replace("{name: resnet20, width: 4}", "{name: mlp, hidden: 8, depth: 5}")
    Path(config).write_text(few.replace("{name: auglocal, depth: 2}", "{name: linear}"))
    return config


def test_profile_then_plan_then_train(small, capsys):
    """A run that was cut by a profile resumes and evaluates without it."""
    config = small
    assert main(["profile", config, "--output", "p.json", "--runs", "1"]) == 0
    assert "modules.profile=p.json" in capsys.readouterr().out
    auto = ["modules.profile=p.json", "modules.cuts=auto", "parallel.cuts=auto", "run.dir=out"]
    assert main(["plan", config, *auto, "parallel.stages=2"]) == 0
    assert "samples/s" in capsys.readouterr().out
    assert main(["train", config, *auto]) == 0
    summary = json.loads(Path("out/summary.json").read_text())
    assert len(summary["predicted_stage_seconds"]) == len(summary["stage_seconds"]) == 1
    assert min(summary["predicted_stage_seconds"] + summary["stage_seconds"]) > 0
    cuts = configfile.load(Path("out/config.yaml")).modules.cuts
    assert len(cuts) == 2
    assert main(["train", config, *auto, "run.resume=true", "train.steps=5"]) == 0
    Path("p.json").unlink()
    assert main(["evaluate", "out"]) == 0


def test_every_part_is_measured(config, capsys):
    loaded = configfile.load(Path(config))
    info = describe(loaded.data)
    facts = profile.measure(loaded, info, 1, RankInfo())
    blueprint = draw_blueprint(loaded, info)
    names = [block.name for block in blueprint.backbone.blocks]
    assert list(facts["blocks"]) == names
    ends = {(row["end"], row["copies"]) for row in facts["heads"]}
    shallow = {(end, 1) for end in range(2, 10)}  # the first module copies two blocks
    assert ends == shallow | {(end, 2) for end in range(1, 9)}
    parts = [*facts["blocks"].values(), *facts["heads"], facts["classifier"]]
    assert all(part["forward"] > 0 and part["update"] > 0 for part in parts)
    assert all(facts["blocks"][name]["backward"] > 0 for name in names)
    assert facts["link"]["bytes_per_second"] > 0
    assert (facts["device"]["type"], facts["device"]["workspaces"]) == ("cpu", 0)
    json.dumps(facts)


def on_two_ranks(rank_info, path):
    loaded = configfile.load(Path(path))
    return profile.profile(loaded, describe(loaded.data), 1, Path("p.json"), rank_info)


def on_hosts_of_three_cores(rank_info, path):
    environment.cores = lambda: 3
    loaded = configfile.load(Path(path), ["parallel.threads=null"])
    return profile.profile(loaded, describe(loaded.data), 1, Path("p.json"), apart(rank_info))


def test_each_host_has_its_cores_where_no_launcher_tells_hosts_apart(small, run_ranks):
    run_ranks(on_hosts_of_three_cores, 2, small)
    devices = [json.loads(Path(f"p-{rank}.json").read_text())["device"] for rank in range(2)]
    assert [device["threads"] for device in devices] == [3, 3]


def test_each_rank_measures_its_own_device(small, run_ranks):
    config = small
    assert "modules.profile=[p-0.json,p-1.json]" in run_ranks(on_two_ranks, 2, config)[0]
    links = [json.loads(Path(f"p-{rank}.json").read_text())["link"] for rank in range(2)]
    assert links[0] == links[1]
    profiles = "modules.profile=[p-0.json,p-1.json]"
    assert main(["plan", config, profiles, "parallel.stages=2", "parallel.cuts=auto"]) == 0
    assert main(["profile", config, "--output", "p.json", "parallel.stages=2"]) == 2


def test_a_plan_for_another_device_than_the_profile_is_of(small, capsys):
    config = small
    assert main(["profile", config, "--output", "p.json", "--runs", "1"]) == 0
    arguments = ["plan", config, "modules.profile=p.json", "--device"]
    assert main([*arguments, "cpu"]) == 0
    capsys.readouterr()
    assert main([*arguments, "cuda"]) == 2
    error = capsys.readouterr().err
    assert "--device: modules.profile was measured on cpu, got cuda" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "p.json", "--runs", "0"], "--runs: at least 1, got 0"),
        (["--output", "config.yaml"], "never overwritten"),
        (["--output", "config.yaml/p.json", "--runs", "1"], "cannot be written"),
    ],
)
def test_mistakes_are_reported(config, capsys, options, message):
    assert main(["profile", config, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
