"""The timeline of real runs of two ranks: what is recorded when, and that nothing else changes."""

import json
import re
import time
from collections import Counter

import pytest
import torch
import torch.distributed as dist

from pipeline_local.config import TraceConfig
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.learning.module import LocalModule
from pipeline_local.ranks.mesh import chain
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record import clocks
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.recorder import Recorder, put_together
from pipeline_local.record.stage_trace import StageTrace
from pipeline_local.training.train import train
from pipeline_local.watch.status import RankStatus
from pipeline_local.watch.store import RankStore

HOUR = 3600 * 10**9


def parse(folder, **sections):
    tree = {
        "model": {"name": "mlp", "hidden": 8, "depth": 4},
        "data": {"name": "digits", "batch_size": 32, "limit": 64},
        "head": {"name": "linear"},
        "modules": {"count": 4},
        "reconcile": {"weight": 0.1, "every": 2, "direction": "both"},
        "train": {"steps": 14, "microbatches": 2, "evaluate_every": 5, "log_every": 3},
        "parallel": {"threads": 1},
        "trace": {"steps": [2, 11]},
        "run": {"dir": str(folder)},
    }
    return configfile.parse({**tree, **sections})


def run(rank_info, config, faults=()):
    """Trains; the faults are of the second rank, but for slowness, which is of the first."""
    if "clock" in faults and rank_info.rank == 1:
        real = time.monotonic_ns
        time.monotonic_ns = lambda: real() + HOUR
        clocks.host = lambda: "another"
    if "slow" in faults and rank_info.rank == 0:
        learn = LocalModule.learn

        def slow(module):
            time.sleep(0.12 * (module.index == 1))
            return learn(module)

        LocalModule.learn = slow
    if "unwritable" in faults and rank_info.rank == 1:
        StageTrace.write = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    train(config, rank_info)


def read(folder):
    """The events, the slices in time of their rows, and the names of rows."""
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    rows = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    return events, slices, rows


def arrows(events, slices):
    """The slices at both ends of each arrow."""
    ends = {kind: {e["id"]: e for e in events if e["ph"] == kind} for kind in "sf"}
    assert ends["s"].keys() == ends["f"].keys()
    assert len(ends["s"]) == sum(e["ph"] == "s" for e in events)

    def around(event):
        (found,) = (
            s
            for s in slices
            if (s["pid"], s["tid"]) == (event["pid"], event["tid"])
            and s["ts"] <= event["ts"] <= s["ts"] + s["dur"]
            and s["name"].endswith(event["name"])
        )
        return found

    return [(around(ends["s"][number]), around(ends["f"][number])) for number in ends["s"]]


@pytest.mark.parametrize("faults", [(), ("clock",)])
def test_rows_window_and_arrows(run_ranks, tmp_path, capfd, faults):
    run_ranks(run, 2, parse(tmp_path / "run"), faults)
    events, slices, rows = read(tmp_path / "run")
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert [re.sub(r", .*\)", "", name) for name in names.values()] == [
        "stage 0 (rank 0",
        "stage 1 (rank 1",
    ]
    first, second = ({name for (pid, _), name in rows.items() if pid == p} for p in names)
    beside = {"receives", "sends", "between steps", "checkpoint writer"}
    assert first == {"data", "module 1", "module 2", *beside}
    assert second == {"module 3", "module 4", *beside}
    assert {s["args"]["step"] for s in slices} == set(range(2, 12))
    assert not [s["name"] for s in slices if re.search(r"\d", s["name"]) and s["cat"] != "write"]

    found = arrows(events, slices)
    # 10 steps of 2 microbatches, of which every second and the logged ones compare
    contents = Counter(send["args"]["content"] for send, _ in found)
    assert contents["activations"] == 20
    assert contents["signal"] == 2 * len({3, 5, 6, 7, 9, 11})
    assert contents["test batch"] > 0
    assert contents["lagged message"] > 0
    for send, recv in found:
        assert send["pid"] != recv["pid"]
        assert send["args"]["microbatch"] == recv["args"]["microbatch"]
        late = recv["ts"] + recv["dur"] - send["ts"]
        assert -1000 * len(faults) <= late < HOUR / 2000, "microseconds"
    shown = capfd.readouterr().out
    assert "steps 2 to 11, " in shown
    assert "timeline: " in shown


def test_the_summary_names_the_slow_stage(run_ranks, tmp_path, capfd):
    quiet = {"steps": 14, "evaluate_every": 14, "log_every": 14}
    run_ranks(run, 2, parse(tmp_path / "run", train=quiet), ("slow",))
    wait = capfd.readouterr().out.partition("largest waits:\n")[2].splitlines()[0]
    assert re.fullmatch(
        r"  stage 1 waited [\d.]+ ms in step \d+ for stage 0's activations \(.*\):"
        r" stage 0 was in 'learn' of module 2",
        wait,
    )


def checkpoints(folder):
    files = sorted((folder / "checkpoints").rglob("*.safetensors"))
    return {file.relative_to(folder): file.read_bytes() for file in files}


def test_nothing_of_it_changes_a_weight(run_ranks, tmp_path):
    run_ranks(run, 2, parse(tmp_path / "plain", trace={}))
    run_ranks(run, 2, parse(tmp_path / "traced", trace={"steps": [2, 4], "profiler": True}))
    assert checkpoints(tmp_path / "traced") == checkpoints(tmp_path / "plain") != {}
    for stage, act in enumerate(("learn, module 2", "learn, module 3")):
        events = json.loads(RunFolder(tmp_path / "traced").profile(stage).read_text())[
            "traceEvents"
        ]
        assert sum(e["name"] == act for e in events if e["ph"] == "X") == 3 * 2
    assert not (tmp_path / "plain" / "trace.json").exists()
    assert put_together(RunFolder(tmp_path / "plain"))[-1].startswith("timeline: ")
    assert {s["args"]["step"] for s in read(tmp_path / "plain")[1]} == set(range(1, 15))


def test_a_trace_that_cannot_be_written_does_not_fail_the_run(run_ranks, tmp_path, capfd):
    run_ranks(run, 2, parse(tmp_path / "run"), ("unwritable",))
    shown = capfd.readouterr()
    assert "rank 1 has left no trace" in shown.out
    assert "the trace in" in shown.err
    assert (tmp_path / "run" / "summary.json").is_file()


def test_what_a_run_has_left_stays_where_a_resumed_one_is_beyond_the_steps(tmp_path, capfd):
    config = parse(tmp_path / "run", parallel={"threads": 1, "stages": 1})
    train(config, RankInfo())
    before = (tmp_path / "run" / "trace.json").read_bytes()
    longer = {"steps": 16, "microbatches": 2, "evaluate_every": 5, "log_every": 3}
    capfd.readouterr()
    train(
        parse(tmp_path / "run", train=longer, run={"dir": str(tmp_path / "run"), "resume": True}),
        RankInfo(),
    )
    assert (tmp_path / "run" / "trace.json").read_bytes() == before
    assert "timeline" not in capfd.readouterr().out


def test_a_folder_without_a_trace_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        put_together(RunFolder(tmp_path))
    for keys, reason in (({}, "ended"), ({"steps": [50, 60]}, r"reached trace\.steps=\[50,60\]")):
        folder = RunFolder(tmp_path / f"run-{len(keys)}")
        config = parse(folder.path, trace=keys)
        folder.path.mkdir()
        folder.create(config, describe(config.data).to_json())
        with pytest.raises(UserError, match=f"has not {reason}, or was killed; let it end, or"):
            put_together(folder)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"steps": [5, 4]}, r"trace.steps must be \[first, last\], got \[5, 4\]"),
        ({"steps": [0, 4]}, "trace.steps"),
        ({"profiler": True}, "trace.profiler=true needs trace.steps"),
    ],
)
def test_impossible_steps_are_refused(tmp_path, keys, problem):
    with pytest.raises(UserError, match=problem):
        parse(tmp_path, trace=keys)


def test_steps_behind_the_end_are_refused_before_anything_is_spent(tmp_path):
    with pytest.raises(UserError, match=r"trace\.steps: the run ends with step 14, got"):
        train(parse(tmp_path / "run", trace={"steps": [15, 20]}), RankInfo())
    assert not (tmp_path / "run").exists()


def failing(rank_info, folder):
    """How a rank ends whose weights are not finite, while the profiler runs."""
    config = parse(
        folder, trace={"steps": [1, 14], "profiler": True}, optimizer={"lr": 1e9}, reconcile={}
    )
    try:
        train(config, rank_info)
    except UserError as error:
        return type(error).__name__
    return "trained"


def test_a_run_that_fails_leaves_its_trace(run_ranks, tmp_path):
    (ended,) = run_ranks(failing, 1, tmp_path / "run")
    assert ended == "UserError"
    assert put_together(RunFolder(tmp_path / "run"))[-1].startswith("timeline: ")
    assert RunFolder(tmp_path / "run").profile(0).is_file()


def test_after_an_error_no_rank_waits_for_its_whole_gpu(tmp_path, monkeypatch):
    """Torch's profiler does when it ends: see its `__exit__`. A receive may be posted there."""
    config = TraceConfig(steps=(1, 3), profiler=True)
    store, folder = RankStore(dist.HashStore(), 0, 1), RunFolder(tmp_path)
    two = RankInfo(world_size=2)
    recorder = Recorder(config, folder, two, store, RankStatus(), chain(2))
    profiler = recorder._profiler
    recorder.reach(1)
    with recorder.trace.span("learn", 0, 0, 0):
        pass
    with monkeypatch.context() as patched:
        patched.setattr(RankInfo, "device", torch.device("cuda", 0))
        patched.setattr(profiler, "stop", lambda: pytest.fail("it waits"))
        recorder.write(failed=True)
    profiler.stop()
    assert put_together(folder)[-1].startswith("timeline: ")
    assert not [*tmp_path.rglob("*profile*")]
