"""Replicas of stages do what one chain with all microbatches does.

With two microbatches on two replicas every sum of gradients has the same two terms, so weights,
optimizer and messages under way are compared bit by bit. With more microbatches, or where lagged
messages give gradients of their own, sums have another order, and only their rounding may differ.
Running statistics are means over the replicas, where a single rank updates them one microbatch
after the other; nothing that learns depends on them.
"""

import json
import shutil
from dataclasses import replace
from socket import gethostname

import pytest
import torch
from safetensors.torch import load_file

from pipeline_local import BestCheckpoint
from pipeline_local.configfile import configfile
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.placement.costs import Cost
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.recorder import put_together
from pipeline_local.record.stage_trace import StageTrace
from pipeline_local.report.run import read as read_runs
from pipeline_local.report.stages import times
from pipeline_local.training.train import train
from pipeline_local.training.trainer import Trainer
from tests.placement.test_replication import measured
from tests.test_oracle import DIGITS, FINITE, LLAMA, RESNET, UPSTREAM, VIT, run_until, texts

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
BOTH = {**FINITE, **UPSTREAM, "direction": "both"}
EXACT_CASES = {
    "reconciled, mixup": {
        **RESNET,
        "data": {**DIGITS, "mixup": 0.3},
        "reconcile": {**FINITE, "estimator": "shift"},
    },
    "dropout, clipping, narrow wire": {
        **VIT,
        "reconcile": FINITE,
        "optimizer": {"name": "adamw", "lr": 0.001, "clip": 0.5},
        "parallel": {"wire_dtype": "bfloat16"},
    },
    "copies of parameters": {**RESNET, "head": {"name": "ema", "refresh": 3, "decay": 0.9}},
    "readouts over several hops": {**LLAMA, "reconcile": FINITE},
}
LAGGED_CASES = {
    "both directions": {**RESNET, "reconcile": {**BOTH, "estimator": "shift"}},
    "distillation, dropout": {**VIT, "distill": {"weight": 0.5, "every": 1}},
    "readouts, both directions": {**LLAMA, "reconcile": BOTH},
}
MESHES = ((2, 2), ([1, 2], 3), ([2, 1], 3), (2, 4))
"""Replicas, and all ranks."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def parse(case, folder, replicas=1, microbatches=2, **train_section):
    tree = {"modules": {"count": 3}, **case}
    tree["head"] = case.get("head", {"name": "auglocal", "depth": 1})
    tree["train"] = {
        "seed": 3,
        "steps": 14,
        "log_every": 5,
        "evaluate_every": 7,
        "microbatches": microbatches,
        **train_section,
    }
    tree["run"] = {"dir": str(folder)}
    tree["parallel"] = {"threads": 1, "replicas": replicas, **case.get("parallel", {})}
    if tree["data"]["name"] == "tokens":
        tree["data"] = {**tree["data"], "root": str(texts(folder.parent / "texts"))}
    return configfile.parse(tree)


def run_stage(rank_info, config):
    return train(config, rank_info, callbacks=[BestCheckpoint()])


def state(folder):
    """All tensors of the last checkpoint, but for statistics."""
    last = sorted(folder.glob("checkpoints/step-*"))[-1]
    return {
        f"{path.name} {name}": tensor
        for path in sorted(last.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
        if not name.endswith(STATISTICS)
    }


def assert_equal(left, right):
    assert left.keys() == right.keys()
    other = [name for name in left if not torch.equal(left[name], right[name])]
    assert not other, f"{len(other)} of {len(left)} differ, such as {other[:3]}"


PARTS_OF_OTHERS = {"copies of parameters"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if name in PARTS_OF_OTHERS else [])
        for name in EXACT_CASES
    ],
)
def test_two_replicas_give_the_bits_of_one_chain(name, tmp_path, run_ranks):
    case = EXACT_CASES[name]
    train(parse(case, tmp_path / "alone"), RankInfo())
    expected = state(tmp_path / "alone")
    for replicas, ranks in MESHES:
        folder = tmp_path / f"{replicas}-{ranks}"
        run_ranks(run_stage, ranks, parse(case, folder, replicas))
        assert_equal(state(folder), expected)
        assert (folder / "best.json").is_file(), "written by one of the replicas"


@pytest.mark.parametrize("replicas", [[1, 2], [2, 1]])
def test_a_profile_shares_out_the_ranks(replicas, tmp_path, run_ranks):
    """The slow stage gets two, on which all ranks agree; then it is the run with these numbers."""
    case = {
        "model": {"name": "mlp", "hidden": 8, "depth": 6},
        "data": DIGITS,
        "head": {"name": "linear"},
        "modules": {"count": 2},
        "parallel": {"stages": 2},
    }
    explicit = parse(case, tmp_path / "explicit", replicas)
    run_ranks(run_stage, 3, explicit)
    blocks = [Cost(count, count, 0, 0) for count in replicas for _ in range(3)]
    profile = measured(tmp_path / "profile.json", explicit, blocks)
    case["modules"] = {"count": 2, "profile": profile}
    run_ranks(run_stage, 3, parse(case, tmp_path / "auto", "auto"))
    assert_equal(state(tmp_path / "auto"), state(tmp_path / "explicit"))
    kept = configfile.load(tmp_path / "auto" / "config.yaml")
    assert kept.parallel.replicas == tuple(replicas)
    assert (tmp_path / f"auto/metrics/replica-1-of-stage-{replicas.index(2)}.jsonl").is_file()


def assert_close(left, right):
    """A message that is lost, or of another microbatch, moves weights a thousand times as much."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", LAGGED_CASES)
def test_lagged_gradients_are_those_of_one_chain(name, tmp_path, run_ranks):
    case = LAGGED_CASES[name]
    steps = {"steps": 8, "evaluate_every": 8}
    train(parse(case, tmp_path / "alone", **steps), RankInfo())
    expected = state(tmp_path / "alone")
    assert any("lagged.pending" in key for key in expected)
    for replicas, ranks in MESHES[1::2]:  # unequal, and several stages
        folder = tmp_path / f"{replicas}-{ranks}"
        run_ranks(run_stage, ranks, parse(case, folder, replicas, **steps))
        assert_close(state(folder), expected)


def metrics(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_measurements_are_those_of_the_whole_batch(tmp_path, run_ranks):
    """The losses of all microbatches, and every test sample once."""
    case = {**VIT, "reconcile": FINITE}
    whole = train(parse(case, tmp_path / "alone"), RankInfo())
    results = run_ranks(run_stage, 4, parse(case, tmp_path / "four", 2))
    assert results[0] == results[3]
    for name in ("accuracy", "ensemble_accuracy", "loss"):
        assert results[0][name] == pytest.approx(whole[name], rel=1e-6), name
    assert len(results[0]["peak_memory_bytes"]) == 2
    found = tmp_path / "four" / "metrics"
    assert sorted(path.name for path in found.iterdir()) == [
        "replica-1-of-stage-0.jsonl",
        "replica-1-of-stage-1.jsonl",
        "stage-0.jsonl",
        "stage-1.jsonl",
    ]
    alone = [row["modules"] for row in metrics(tmp_path / "alone/metrics/stage-0.jsonl")]
    rows = [metrics(found / f"stage-{stage}.jsonl") for stage in (0, 1)]
    together = [a["modules"] | b["modules"] for a, b in zip(*rows, strict=True)]
    for mine, theirs in zip(together, alone, strict=True):
        for number, values in theirs.items():
            assert mine[number] == pytest.approx(values, rel=1e-5)
    other = metrics(found / "replica-1-of-stage-1.jsonl")
    assert [row["modules"] for row in other if row["event"] == "train"] == [{}] * 3


def test_files_of_the_timeline_are_named_as_those_of_the_metrics(tmp_path, run_ranks):
    """A rank's number is not that of its stage."""
    case = {**RESNET, "trace": {"steps": [2, 3], "profiler": True}}
    names = ["replica-1-of-stage-0", "stage-0", "stage-1"]
    folder = tmp_path / "run"
    run_ranks(run_stage, 3, parse(case, folder, [2, 1], steps=4))
    assert [path.stem for path in sorted(folder.glob("metrics/*"))] == names
    written = sorted(path.stem for path in folder.glob("trace/*"))
    assert written == sorted([*names, *(f"profiler-{name}" for name in names)])
    places = [StageTrace.read(folder / f"trace/{name}.json").place for name in names]
    assert places == ["stage 0, replica 1", "stage 0, replica 0", "stage 1"]
    whole = (folder / "trace.json").read_bytes()
    assert json.loads(whole)["otherData"]["stages"] == [
        f"{places[n]} (rank {rank}, {gethostname()})" for rank, n in enumerate((1, 0, 2))
    ]
    put_together(RunFolder(folder))
    assert (folder / "trace.json").read_bytes() == whole


@pytest.mark.parametrize("replicas", [3, [1, 3], [2, 1]])
def test_more_microbatches_are_equal_up_to_rounding(replicas, tmp_path, run_ranks):
    """Of one optimizer step each, as differences grow."""
    data = {"name": "digits", "batch_size": 36}
    case = {**RESNET, "data": data, "reconcile": FINITE}
    parts = 6 if replicas != [2, 1] else 4
    train(parse(case, tmp_path / "alone", microbatches=parts, steps=1), RankInfo())
    ranks = 3 if replicas == 3 else sum(replicas)
    several = parse(case, tmp_path / "several", replicas, parts, steps=1)
    run_ranks(run_stage, ranks, several)
    expected, found = state(tmp_path / "alone"), state(tmp_path / "several")
    assert found.keys() == expected.keys()
    assert any(not torch.equal(found[name], expected[name]) for name in found)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_replicas_stay_equal(tmp_path, run_ranks):
    """Also their statistics, which are the means over all of them."""
    held = run_ranks(run_and_hold, 2, parse({**RESNET}, tmp_path / "run", 2))
    assert_equal(*({k: torch.from_numpy(v) for k, v in each.items()} for each in held))
    assert any(name.endswith("running_var") for name in held[0])


def run_and_hold(rank_info, config):
    """The state of all modules at the end, as this rank holds it."""
    held = {}

    def conclude(self):
        for module in self.stage.modules:
            tensors = module.state_dict().items()
            held.update({f"{module.index} {k}": v.numpy() for k, v in tensors})
        return conclude_run(self)

    conclude_run, Trainer._conclude = Trainer._conclude, conclude
    train(config, rank_info)
    return held


@pytest.mark.parametrize(
    ("before", "after"),
    [((2, 4), (1, 1)), ((1, 2), (2, 2)), (([2, 1], 3), ([1, 2], 3)), ((2, 2), (2, 4))],
    ids=str,
)
def test_resuming_on_another_mesh_changes_nothing(before, after, tmp_path, run_ranks):
    """With messages of all microbatches on their way."""
    case = {
        **VIT,
        "modules": {"count": 3},
        "reconcile": BOTH,
        "head": {"name": "ema", "refresh": 2},
        "distill": {"weight": 0.5, "every": 1},
        "checkpoint": {"every_steps": 5, "keep": 9},
    }
    train(parse(case, tmp_path / "whole"), RankInfo())
    cut = tmp_path / "cut"
    (replicas, ranks), (others, other_ranks) = before, after
    with pytest.raises(AssertionError, match="the process died"):
        run_ranks(run_until, ranks, parse(case, cut, replicas), 12)
    config = parse(case, cut, others)
    resumed = replace(config, run=replace(config.run, resume=True))
    run_ranks(run_stage, other_ranks, resumed)
    assert_close(state(cut), state(tmp_path / "whole"))
    (run,) = read_runs([cut])
    stages = len(others) if isinstance(others, list) else other_ranks // others
    assert (run.begun, run.starts[-1]["ranks"], run.num_stages) == (10, other_ranks, stages)
    assert (len(run.memory), len(times(run))) == (stages, stages)
    assert {*run.logged.step} == {14}, "earlier ones are of the other mesh"


@pytest.mark.long
def test_copies_under_way_fit_any_microbatches(tmp_path, run_ranks):
    """They go on with the last microbatch, which may be another replica's than before."""
    case = {**RESNET, "head": {"name": "ema", "refresh": 3}, "optimizer": {"schedule": "constant"}}
    first = parse(case, tmp_path / "one", microbatches=1, steps=5)
    train(first, RankInfo())
    assert any("lagged.pending.3" in name for name in state(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for folder, replicas in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        config = parse(case, folder, replicas, microbatches=2, steps=9)
        run_ranks(run_stage, replicas, replace(config, run=replace(config.run, resume=True)))
    assert_equal(state(tmp_path / "two"), state(tmp_path / "one"))


@pytest.mark.parametrize(
    ("parallel", "microbatches", "message"),
    [
        ({"replicas": 2}, 1, "got 1 and 2; pass train.microbatches=2"),
        ({"replicas": [2, 3]}, 4, r"got 4 and \(2, 3\); pass train.microbatches=6"),
        ({"replicas": [1, 2], "stages": 3}, 2, r"each of parallel.stages=3, got \[1, 2\]"),
        ({"replicas": []}, 2, "parallel.replicas"),
        ({"replicas": 0}, 2, "parallel.replicas"),
    ],
)
def test_mistakes_are_told(parallel, microbatches, message, tmp_path):
    case = {**RESNET, "parallel": parallel}
    with pytest.raises(ConfigError, match=message):
        parse(case, tmp_path, **{"replicas": parallel["replicas"]}, microbatches=microbatches)


def test_another_number_of_ranks_is_refused(tmp_path):
    config = parse({**RESNET, "parallel": {"stages": 2}}, tmp_path, 2)
    launched = RankInfo(0, 3, 0, 3, launched=True)
    with pytest.raises(UserError, match="replicas=2 of 2 stages needs 4 ranks, but the launcher"):
        train(config, launched)


def test_synced_batch_norms_see_all_replicas(tmp_path, run_ranks):
    """Two replicas with half of the batch each are one rank with the whole batch."""
    steps = {"steps": 3, "evaluate_every": 3}
    case = {**RESNET}
    train(parse(case, tmp_path / "alone", microbatches=1, **steps), RankInfo())
    synced = {**case, "parallel": {"sync_batchnorm": True}}
    run_ranks(run_stage, 4, parse(synced, tmp_path / "synced", 2, **steps))
    run_ranks(run_stage, 2, parse(case, tmp_path / "apart", 2, **steps))
    expected, found, apart = (state(tmp_path / name) for name in ("alone", "synced", "apart"))
    weight = "module-001.safetensors body.0.conv1.weight"
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert (apart[weight] - expected[weight]).abs().max() > 1e-3
    last = [sorted((tmp_path / name).glob("checkpoints/*/module-001*"))[-1] for name in NAMES]
    one, two = map(load_file, last)
    for name in (name for name in one if name.endswith(("running_mean", "running_var"))):
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


NAMES = ("alone", "synced")
