"""From a configuration and a profile to simulated times; and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline_local.cli import main
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.placement.costs import LinkOptions
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.simulation import simulate
from pipeline_local.simulation.programs import METHODS
from pipeline_local.simulation.scenario import Scenario
from pipeline_local.simulation.simulate import SimulationRow, drawn, rows, step_seconds
from pipeline_local.simulation.work import stage_works
from tests.simulation.profiled import profiled

ROW = SimulationRow("local", 2, 2, 1.0, 1.0, None, 1.0, 0.0)


@pytest.fixture
def config(tmp_path):
    return profiled(tmp_path)


def scenario(**more):
    return Scenario(**{"methods": ("local", "1f1b", "gpipe", "ddp"), "stages": (2,), **more})


def by_method(config, **more):
    return {row.method: row for row in simulated(config, scenario(**more))}


def simulated(config, asked):
    return rows(drawn(config, describe(config.data), asked), asked)


@pytest.mark.parametrize(
    ("every", "distilled", "steps"),
    [
        pytest.param((0.1, 4), (0.0, 7), 32, id="enough"),
        pytest.param((0.1, 10), (0.1, 25), 50, id="whole intervals"),
        pytest.param((0.0, 97), (0.0, 101), 32, id="what is off does not count"),
        pytest.param((0.1, 97), (0.1, 101), 20 * 97, id="bounded"),
        pytest.param((0.1, 5000), (0.0, 1), 2000, id="seldom"),
    ],
)
def test_as_many_steps_are_simulated_as_needed(tmp_path, monkeypatch, every, distilled, steps):
    """Twice what is measured, as the pipeline fills first."""
    told, local = [], METHODS["local"]
    monkeypatch.setitem(METHODS, "local", lambda run: told.append(run.steps) or local(run))
    sections = {
        name: dict(zip(("weight", "every"), values, strict=True))
        for name, values in (("reconcile", every), ("distill", distilled))
    }
    simulated(profiled(tmp_path, **sections), scenario(methods=("local",)))
    assert told == [2 * steps]


def test_a_narrow_wire_is_local_learnings(config):
    narrow = replace(config, parallel=replace(config.parallel, wire_dtype="bfloat16"))
    info = describe(config.data)
    wide, half = (stage_works(draw_blueprint(c, info), 2, 16)[0] for c in (config, narrow))
    assert half.messages == wide.messages / 2 == 16 * 8 * 2
    assert half.activations == wide.activations, "other methods send full activations"
    slow = 16 * 8 * 4 / 2.0 * 8  # bits per second: all wait for the link
    link = LinkOptions(bandwidth=slow)
    before, after = by_method(config, link=link), by_method(narrow, link=link)
    assert after["local"].step_seconds == pytest.approx(before["local"].step_seconds / 2, rel=0.01)
    assert after["1f1b"].step_seconds == before["1f1b"].step_seconds


def test_a_compressed_pipeline_stands_beside_1f1b(config, tmp_path):
    """A message of 16 samples takes 2 s; stages compute 0.2 s. So messages are nearly all."""
    slow = {"link": LinkOptions(bandwidth=16 * 8 * 4 / 2.0 * 8)}
    slow["methods"] = ("1f1b", "1f1b-8bit", "1f1b-1percent")
    found = by_method(config, **slow)
    assert found["1f1b"].ratio == 1
    assert found["1f1b-8bit"].ratio == pytest.approx(4, rel=0.2), "float32"
    assert found["1f1b-1percent"].ratio > 10
    (tmp_path / "half").mkdir()
    half = by_method(profiled(tmp_path / "half", precision="bfloat16"), **slow)
    assert half["1f1b"].step_seconds == pytest.approx(found["1f1b"].step_seconds / 2, rel=0.1)
    assert half["1f1b-8bit"].step_seconds == found["1f1b-8bit"].step_seconds
    near = by_method(config, methods=("1f1b", "1f1b-8bit"))
    assert near["1f1b-8bit"].ratio == pytest.approx(1)


def test_local_learning_beats_the_bubble(config):
    found = by_method(config)
    assert found["local"].busy == pytest.approx(1.0)
    assert found["1f1b"].ratio == 1
    assert found["1f1b"].busy == pytest.approx(2 / 3, rel=0.15), "(p - 1) / (m + p - 1) = 1 / 3"
    assert found["local"].ratio > 1.15
    assert found["gpipe"].step_seconds == pytest.approx(found["1f1b"].step_seconds, rel=0.1)


def test_a_long_line_costs_local_learning_nothing(config):
    near, far = by_method(config), by_method(config, link=LinkOptions(0.004))
    added = {name: far[name].step_seconds - near[name].step_seconds for name in ("local", "1f1b")}
    assert added["local"] < 0.004, "most of one message, on the steps that compare"
    assert added["1f1b"] > 3 * 0.004, "there and back, for more than one microbatch"


@pytest.mark.parametrize("method", ["local", "1f1b", "ddp"])
def test_a_step_takes_as_long_in_a_plan(config, method):
    blueprint = draw_blueprint(config, describe(config.data))
    wanted = by_method(config, microbatches=4)[method].step_seconds
    assert step_seconds(blueprint, method, 2, 4) == pytest.approx(wanted)
    unknown = replace(config, modules=replace(config.modules, profile=None))
    assert step_seconds(draw_blueprint(unknown, describe(config.data)), method, 2) is None


def test_a_plan_tells_what_the_line_costs(config, tmp_path, capsys):
    """Of a profile with a slow link: 2 s for each of two messages, while stages need 0.2."""
    profile = json.loads(Path(config.modules.profile).read_text())
    profile["link"] = {"latency_seconds": 0.0, "bytes_per_second": 16 * 8 * 4 / 2.0}
    (tmp_path / "slow.json").write_text(json.dumps(profile))
    (tmp_path / "config.yaml").write_text(configfile.dump(config))
    command = ["plan", str(tmp_path / "config.yaml"), "parallel.stages=2"]
    assert main([*command, "--json", str(tmp_path / "fast-plan.json")]) == 0
    assert "the link between stages" not in capsys.readouterr().out
    slow = f"modules.profile={tmp_path / 'slow.json'}"
    assert main([*command, slow, "--json", str(tmp_path / "slow-plan.json")]) == 0
    shown = capsys.readouterr().out
    assert (
        "warning: the link between stages is the bottleneck: no stage computes for more than"
        in shown
    )
    fast, slow = (json.loads((tmp_path / f"{n}-plan.json").read_text()) for n in ("fast", "slow"))
    computing = max(sum(map(total, stage["modules"])) for stage in fast["stages"])
    assert fast["seconds"] == pytest.approx(computing, rel=0.01)
    assert slow["seconds"] > 2 * 2.0, "more where signals cross, too"
    assert f"Predicted: {1000 * slow['seconds']:.1f} ms per step" in shown
    alone = next(one for one in slow["alternatives"] if one["method"] == "BP")
    assert alone["name"] == "BP, 1 device, m=2"
    blocks = len(profile["blocks"])
    assert alone["seconds"] == pytest.approx(blocks * (2 * 0.03 + 0.001)), "it has no link"
    again = next(one for one in slow["alternatives"] if one["method"] == "BP checkpointed")
    assert again["seconds"] == pytest.approx(alone["seconds"] + blocks * 2 * 0.01)


def total(module):
    return sum(module["cost"][act] for act in ("forward", "signal", "learn"))


def test_more_stages_than_modules(config):
    found = by_method(config, stages=(64,), methods=("local", "1f1b"))
    assert found["local"].stages == 64
    assert found["local"].busy > 0.99


def with_replicas(config, replicas):
    return replace(config, parallel=replace(config.parallel, replicas=replicas))


def test_replicas_share_a_batch(config):
    """Updates are each one's own, so that two are not quite twice as fast."""
    one, two = by_method(config), by_method(with_replicas(config, 2))
    for method in ("local", "1f1b", "ddp"):
        ratio = two[method].samples_per_second / one[method].samples_per_second
        assert 1.6 < ratio < 2, method


def test_unequal_replicas_are_local_learnings(config):
    unequal = with_replicas(config, (2, 1))
    found = by_method(unequal, methods=("local", "ddp"))
    alone = by_method(with_replicas(config, (1, 1)), methods=("local",))
    assert found["local"].step_seconds <= alone["local"].step_seconds
    with pytest.raises(
        UserError, match=r"replicas=\[2, 1\] with a pipeline .* --methods local,ddp"
    ):
        by_method(unequal)
    with pytest.raises(UserError, match=r"parallel.replicas: got \[2, 1\] for 4 stages"):
        by_method(unequal, methods=("local",), stages=(4,))
    with pytest.raises(UserError, match=r"--microbatches: a multiple of parallel.replicas=2"):
        by_method(with_replicas(config, 2), microbatches=1)


def test_the_command(config, tmp_path, capsys):
    path, output = tmp_path / "config.yaml", tmp_path / "rows.json"
    path.write_text(configfile.dump(config))
    command = ["simulate", str(path), "--stages", "1,4", "--json", str(output)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert [name for name in METHODS if f"| {name} | 4 | 4 |" not in shown] == ["local", "ddp"]
    assert len(json.loads(output.read_text())["rows"]) == 2 * len(METHODS)
    assert main(command) == 2
    assert "files are never overwritten" in capsys.readouterr().err
    assert main(["simulate", str(path), "modules.profile=null"]) == 2
    assert "a simulation needs measured times" in capsys.readouterr().err
    assert main(["simulate", str(path), "--stages", "two"]) == 2
    expected = (
        "error: --stages: whole numbers such as 4,64, got 'two' (docs/commands.md#simulate)\n"
    )
    assert capsys.readouterr().err == expected


def test_a_lower_bound_of_the_bandwidth_is_told(tmp_path):
    """Where it is the bandwidth that is simulated."""
    busy = profiled(tmp_path, at_least=True)
    info, bound = describe(busy.data), "jitter 0 ms, the bandwidth of the link is a lower bound\n"
    assert bound in simulate.report(busy, info, scenario())
    assert bound in simulate.report(busy, info, scenario(link=LinkOptions(latency=0.1)))
    said = simulate.report(busy, info, scenario(link=LinkOptions(bandwidth=1e9)))
    assert "jitter 0 ms\n" in said


def test_tied_embeddings_are_published(tmp_path, monkeypatch):
    """Also where heads read no copies: the last module sends the first one its unembedding."""
    model = {"name": "causal_lm", "architecture": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 4}
    model |= {"n_positions": 8, "tie_word_embeddings": True}
    tokens = {"name": "synthetic_tokens", "vocabulary": 40, "sequence_length": 8, "limit": 64}
    sections = {"model": model, "data": {**tokens, "batch_size": 32}}
    config = profiled(tmp_path, **sections, task={"name": "next_token"}, head={"name": "linear"})
    seen = []
    monkeypatch.setattr(simulate, "simulate", lambda programs: seen.append(programs) or [])
    monkeypatch.setattr(simulate, "_row", lambda name, run, *_: seen.append(run) or ROW)
    simulated(config, scenario(methods=("local",)))
    assert seen[-1].refresh == 10
    assert seen[-1].stages[1].copies == 4 * 40 * 8
    assert seen[-1].steps % 20 == 0, "whole intervals are measured"
