"""The harness with real ranks: baselines are interleaved, and every row is complete."""

from dataclasses import replace

import pytest
import torch

from pipeline_local.bench import table
from pipeline_local.bench.baseline import UnavailableError, Workload
from pipeline_local.bench.harness import Turns, entries, measure
from pipeline_local.bench.options import BenchOptions
from pipeline_local.bench.pipelines import TO_ITSELF
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.ranks import environment
from pipeline_local.ranks.rank import RankInfo
from tests.apart import apart

TREE = {
    "model": {"name": "mlp", "hidden": 32, "depth": 6, "activation": "gelu"},
    "data": {"name": "digits", "batch_size": 512},
    "modules": {"count": 2},
    "head": {"name": "linear"},
    "reconcile": {"weight": 0.5, "every": 2},
    "train": {"steps": 1},
    "parallel": {"threads": 1},
}
PIPELINES = ("gpipe", "1f1b", "interleaved", "zerobubble", *(() if TO_ITSELF else ("zbv",)))
DUAL = () if TO_ITSELF else ("dualpipev",)
ALL = ("bp", "checkpoint", "accumulate", "loop", "ddp", *PIPELINES, *DUAL, "local")


def rows(rank_info, baselines, microbatches, more):
    config = configfile.parse({**TREE, **more})
    request = BenchOptions(baselines, microbatches, runs=2, steps=2, output=None)
    measured = measure(config, rank_info, request)
    return table.rows(measured, config.data.batch_size, request.steps)


@pytest.fixture(scope="module")
def found():
    """Filled once, by the first test that runs the ranks."""
    return {}


@pytest.fixture
def two_ranks(run_ranks, found):
    if not found:
        answers = run_ranks(rows, 2, ALL, (2, 4), {})
        assert answers[0] == answers[1]
        found.update({(row.method, row.microbatches): row for row in answers[0]})
        for name in DUAL:
            refused = found.pop((name, 2))
            assert refused.reason.endswith("4 stages, got 2; pass --microbatches 4")
    return found


def test_every_row_is_complete(two_ranks):
    pipelines = [(name, count) for name in PIPELINES for count in (2, 4)]
    whole = [("bp", 1), ("checkpoint", 1), ("accumulate", 2), ("accumulate", 4), ("loop", 1)]
    whole.append(("ddp", 1))
    pipelines += [(name, 4) for name in DUAL]
    assert list(two_ranks) == [*whole, *pipelines, ("local", 1), ("local, reconciled", 1)]
    for (name, _), row in two_ranks.items():
        assert not row.reason
        assert row.samples_per_second == pytest.approx(512 / row.step_seconds)
        assert row.ranks == (1 if name in ("bp", "checkpoint", "accumulate", "loop") else 2)
        assert len(row.peak_memory_bytes) == row.ranks
        assert all(size > 0 for size in row.peak_memory_bytes)
        assert (row.overhead is not None) == name.startswith("local")
        assert (row.efficiency is not None) == name.startswith("local")
        assert (row.waited is not None) == name.startswith("local")
        assert (row.bubble is not None) == (name in (*PIPELINES, *DUAL))
    assert two_ranks["1f1b", 2].bubble_in_theory == pytest.approx(1 / 3)
    assert two_ranks["1f1b", 4].bubble_in_theory == pytest.approx(1 / 5)
    assert two_ranks["zerobubble", 4].bubble_in_theory == pytest.approx(1 / 25)
    assert two_ranks["1f1b", 2].ratio == 1


def test_memory_is_as_theory_says(two_ranks):
    def peak(name, count, rank=0):
        return two_ranks[name, count].peak_memory_bytes[rank]

    assert peak("checkpoint", 1) < peak("bp", 1)
    assert peak("accumulate", 4) < peak("accumulate", 2) < peak("bp", 1)
    assert peak("1f1b", 4, rank=1) < peak("gpipe", 4, rank=1)  # one microbatch at a time


def test_a_baseline_that_cannot_run_has_a_reason(run_ranks):
    (answer,) = run_ranks(rows, 1, ("1f1b", "local", "bp"), (1,), {"reconcile": {"weight": 0.0}})
    reasons = {row.method: row.reason for row in answer}
    assert reasons["1f1b"].startswith("needs at least 2 ranks")
    assert reasons["local, reconciled"] == "reconcile.weight is 0"
    assert reasons["local"] == reasons["bp"] == ""
    assert [row.ratio for row in answer if row.method == "local"] == [1]  # the first that ran
    shown = table.markdown(answer)
    assert "over local |" in shown
    assert "needs at least 2 ranks" in shown


class RankStore:
    """The store of a single rank."""

    def set(self, topic, facts):
        self.facts = facts

    def gather(self, topic, timeout):
        return [self.facts]


class Recorder:
    """A baseline that records its calls."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def setup(self):
        if self.name == "c":
            raise UnavailableError("no c today")

    def begin(self, steps):
        if self.name == "d":
            raise torch.OutOfMemoryError("no room\nfor d")
        self.calls.append(f"{self.name}{steps}")

    def step(self):
        self.calls.append("step")

    def end(self):
        self.calls.append("end")

    def seconds(self):
        return {"waited": float(len(self.calls))}


def test_turns_are_interleaved_and_begin_with_an_untimed_step():
    config = configfile.parse(TREE)
    workload = Workload(draw_blueprint(config, describe(config.data)), RankInfo(), "gloo")
    (entry,) = entries(workload, BenchOptions(("bp",), (1,), 1, 1, None))
    calls = []
    found = [entry.__class__(name, 1, 1, Recorder(name, calls), 1) for name in "abcd"]
    results = Turns(workload, RankStore(), steps=2).run(found, runs=2)
    turns = [[f"{name}3", "step", "step", "step", "end"] for name in "ab"]
    assert calls == [*turns[0], *turns[1]] * 3
    assert [len(result.seconds) for result in results] == [2, 2, 0, 0]
    reasons = ["", "", "no c today", "out of memory: no room"]
    assert [result.reason for result in results] == reasons
    assert results[0].spent == [{"waited": 2.0}] * 2  # of the timed steps alone


def test_out_of_memory_in_a_baseline_of_several_ranks_ends_the_comparison():
    """The other ranks would wait for this one."""
    config = configfile.parse(TREE)
    workload = Workload(draw_blueprint(config, describe(config.data)), RankInfo(), "gloo")
    (entry,) = entries(workload, BenchOptions(("bp",), (1,), 1, 1, None))
    shared = replace(entry, ranks=2, baseline=Recorder("d", []))
    with pytest.raises(torch.OutOfMemoryError):
        Turns(workload, RankStore(), steps=2).run([shared], runs=1)


def on_hosts_of_two_cores(rank_info):
    environment.cores = lambda: 2
    config = configfile.parse({**TREE, "parallel": {}})
    request = BenchOptions(("dualpipev",), (2,), runs=1, steps=1, output=None)  # needs more of them
    return table.report(config, apart(rank_info), request)


def test_each_host_has_its_cores_where_no_launcher_tells_hosts_apart(run_ranks):
    assert ", threads 2, " in run_ranks(on_hosts_of_two_cores, 2)[0]


def test_replicas_have_rows_for_what_their_exchange_costs(run_ranks):
    replicated = {"threads": 1, "stages": 1, "replicas": 2}
    more = {"parallel": replicated, "train": {"steps": 1, "microbatches": 2}}
    answers = run_ranks(rows, 2, ("local",), (2,), more)
    assert answers[0] == answers[1]
    for name, row in zip(
        ("local", "local, reconciled"), (answers[0][:3], answers[0][3:]), strict=True
    ):
        exchanging = [f"{name}, bytes alone", f"{name}, nothing exchanged"]
        assert [each.method for each in row] == [name, *exchanging]
        assert not any(each.reason for each in row)
