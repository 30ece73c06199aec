"""The device's paths without a device: on GPUs that are simulated (simulated_gpu/simgpu.cpp).

Their kernels are the CPU's, so a run must leave the very bytes that it leaves on a CPU; what a GPU
punishes at random (memory read too early, streams that do not wait) ends the process.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from simulated_gpu.build import build

from tests.ports import free_port

TESTS = Path(__file__).parent
PREAMBLE = """
import torch
assert torch.accelerator.device_count() == 2
device, other = torch.device("simgpu", 0), torch.device("simgpu", 1)
x = torch.ones(3, device=device)
side = torch.Stream(device)
current = torch.accelerator.current_stream(device)
side.wait_stream(current)
room = torch.empty(3, pin_memory=True)
"""


@pytest.fixture(scope="module")
def gpus(tmp_path_factory, request):
    """Run a Python command on so many of them; gives the finished process.

    All are forked from one process (simulated_gpu/server.py), ranks included.
    """
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler: g++")
    folder = tmp_path_factory.mktemp("simgpu")
    cache = getattr(request.config, "cache", None)
    build(folder, cache and cache.mkdir("simgpu"))
    own = {"PYTHONPATH": f"{folder}:{TESTS.parent}", "PIPELINE_LOCAL_TEST_GPU": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.simulated_gpu.server"],
        env=os.environ | own,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(count, *arguments, cwd=folder):
        output = tmp_path_factory.mktemp("command") / "output"
        output.with_name("ranks").mkdir()
        request = {
            "arguments": [str(argument) for argument in arguments],
            "environment": os.environ | own | {"SIMGPU_DEVICES": str(count)},
            "folder": str(cwd),
            "output": str(output),
        }
        print(json.dumps(request), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        told = output.read_text(), output.with_name("output.err").read_text()
        return subprocess.CompletedProcess(arguments, code, *told)

    with server:
        yield run
        server.stdin.close()


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("with side: y = x + 1\nx.add_(1)", "race: stream 0 aten::add"),
        ("with side: x.add_(1)\nx + 1", "race: stream 0 aten::add"),
        ("y = x + 1\nwith side: y + 1", "race: stream 2 aten::add"),
        ("with side: y = x + 1\ndel x", "freed too early: memory of stream 0"),
        ("x + torch.ones(3)", "RuntimeError: Expected all tensors to be on the same device"),
        ("x + x.to(other)", "RuntimeError: Expected all tensors to be on the same device"),
        ("room.copy_(x, non_blocking=True); print(room)", "[nan, nan, nan]"),
        (
            "room.fill_(1); x.copy_(room, non_blocking=True); room.fill_(2); print(x)",
            "[2., 2., 2.]",
        ),
        ("print(torch.empty(3, device=device))", "[nan, nan, nan]"),
    ],
)
def test_a_mistake_shows(gpus, mistake, told):
    done = gpus(2, "-c", PREAMBLE + mistake)
    assert told in done.stdout + done.stderr


def test_no_mistake_shows_where_there_is_none(gpus):
    program = """
with side:
    y = x + 1
    room.copy_(y, non_blocking=True)
    copied = side.record_event()
current.wait_event(copied)
x.add_(1)
x.record_stream(side)
del x
before = torch.simgpu.waits()
copied.synchronize()
print(room, torch.simgpu.waits() - before, (y.to(other) * 2).sum().item())
"""
    done = gpus(2, "-c", PREAMBLE + program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tensor([2., 2., 2.]) 1 12.0\n"


def train(run, folder, *settings):
    """Gives the bytes of all checkpoints."""
    done = run(
        *("-m", "pipeline_local", "train", "configs/synthetic.yaml", f"run.dir={folder}"),
        *(
            "model.name=resnet20",
            "model.width=8",
            "data.image_size=16",
            "parallel.threads=1",
            "parallel.timeout=300",
        ),
        *("train.steps=6", "train.evaluate_every=5", "train.log_every=4", "reconcile.every=2"),
        *("checkpoint.every_steps=2", "checkpoint.keep=9", "reconcile.direction=both", *settings),
        cwd=TESTS.parent,
    )
    assert done.returncode == 0, done.stderr
    files = sorted((folder / "checkpoints").glob("*/*.safetensors"))
    assert len(files) == 3 * 4
    return {file.relative_to(folder): file.read_bytes() for file in files}, done.stdout


@pytest.mark.parametrize(
    "settings",
    [
        ("train.microbatches=2", "channels_last=true", "optimizer.name=adamw"),
        pytest.param(("head.name=auglocal", "data.workers=1"), marks=pytest.mark.long),
        pytest.param(
            ("modules.recompute=true", "parallel.wire_dtype=bfloat16"), marks=pytest.mark.long
        ),
    ],
)
def test_a_run_leaves_the_bytes_that_it_leaves_on_a_cpu(gpus, settings, tmp_path):
    """On one device or several, by pinned memory or by a device's own messages."""
    on_cpu, said = train(lambda *a, **b: gpus(0, *a, **b), tmp_path / "cpu", *settings)
    assert "1 stage on cpu" in said
    for devices, stages, over in ((1, 1, ""), (1, 2, " over staged"), (3, 3, " over nccl")):
        folder = tmp_path / f"{stages} on {devices}"
        run = lambda *a, n=devices, **b: gpus(n, *a, **b)  # noqa: E731
        files, said = train(run, folder, f"parallel.stages={stages}", *settings)
        assert f"on simgpu{over};" in said
        assert files == on_cpu


EXCHANGES = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist

from pipeline_local.engines.replicas import Replicas
def rank(number, port, work):
    store = dist.TCPStore("localhost", port, 2, number == 0, timedelta(seconds=60))
    dist.init_process_group("simccl", store=store, rank=number, world_size=2)
    device = torch.device("simgpu", number)
    torch.accelerator.set_device_index(number)
    group = dist.group.WORLD
    replicas = Replicas(group)
    exec(work)
    sys.stdout.flush()

"""
"""Two processes with a device each, which `exchange` lets do something together."""


@pytest.fixture
def exchange(gpus):
    def run(work):
        program = (
            EXCHANGES
            + f"""
import multiprocessing, os
context = multiprocessing.get_context("fork")
ranks = [context.Process(target=rank, args=(n, {free_port()}, {work!r})) for n in range(2)]
[each.start() for each in ranks]
[each.join() for each in ranks]
sys.exit(max(abs(each.exitcode) for each in ranks))
"""
        )
        return gpus(2, "-c", program)

    return run


def test_replicas_exchange_what_is_on_their_devices(exchange):
    done = exchange("""
x = torch.full((3,), 1.0 + number, device=device)
wait = replicas.sum([x, torch.ones(2, dtype=torch.bfloat16, device=device)])
x.add_(1)  # what is summed up is a copy
(total, others), taken = wait(), [x.clone(), torch.full((1,), number, device=device)]
replicas.take(taken, 1)
named = replicas.gather({f"of {number}": x})
assert total.tolist() == [3] * 3 and others.tolist() == [2, 2]
assert taken[0].tolist() == [3] * 3 and taken[1].tolist() == [1]
assert {k: t.tolist() for k, t in named.items()} == ({"of 0": [2.0] * 3, "of 1": [3.0] * 3}
    if number == 0 else {"of 1": [3.0] * 3})
dist.all_reduce(x)
dist.all_reduce(x)  # reads what the one before it writes
assert x.tolist() == [10] * 3
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("dist.all_reduce(x, async_op=True)\nx.add_(1)", "aten::add"),
        ("dist.broadcast(x, 0, async_op=True)\nx.add_(1)", "aten::add"),
        ("dist.all_reduce(x, async_op=True)\ndel x", "freed too early"),
        ("dist.broadcast(x, 0, async_op=True)\ndel x", "freed too early"),
    ],
)
def test_who_does_not_wait_for_an_exchange_is_told(exchange, mistake, told):
    end = "torch.accelerator.synchronize()"
    done = exchange(f"x = torch.ones(3, device=device)\n{mistake}\n{end}")
    assert told in done.stderr
    assert done.returncode == 86


DOWNSTREAM = ("reconcile.direction=downstream",)
"""With messages upstream, batch norms over replicas and several stages, ranks may wait in a circle
where one makes page-locked memory: a limit in docs/gpus.md."""


@pytest.mark.parametrize(
    ("stages", "replicas", "settings"),
    [
        (1, 2, ("parallel.sync_batchnorm=true", "parallel.zero=1", "optimizer.name=adamw")),
        (2, "[2,1]", ("head.name=ema", "head.refresh=2", "modules.recompute=true")),
        pytest.param(
            *(2, "[2,1]", ("parallel.zero=1", *DOWNSTREAM, "parallel.sync_batchnorm=true")),
            marks=pytest.mark.long,
        ),
    ],
)
def test_replicas_leave_the_bytes_that_they_leave_on_a_cpu(
    gpus, stages, replicas, settings, tmp_path
):
    """On a device each, which exchange gradients, copies of parameters and statistics."""
    settings = (f"parallel.stages={stages}", f"parallel.replicas={replicas}", *settings)
    settings += ("train.microbatches=2",)
    on_cpu, said = train(lambda *a, **b: gpus(0, *a, **b), tmp_path / "cpu", *settings)
    assert "on cpu" in said
    files, said = train(lambda *a, **b: gpus(4, *a, **b), tmp_path / "gpus", *settings)
    assert "on simgpu over nccl;" in said
    assert files == on_cpu


WAITS = """
import sys, torch
from pipeline_local.cli import main
main(["train", "configs/synthetic.yaml", "model.name=resnet20", "model.width=8",
      "data.image_size=16", "train.log_every=99", "train.evaluate_every=99", *sys.argv[1:]])
print(torch.simgpu.waits())
"""


@pytest.mark.parametrize(
    "settings",
    [
        (),
        pytest.param(("reconcile.fraction=0.25", "train.on_nan=skip"), marks=pytest.mark.long),
        pytest.param(("precision=bfloat16", "head.name=auglocal"), marks=pytest.mark.long),
        pytest.param(("reconcile.direction=both", "train.microbatches=2"), marks=pytest.mark.long),
    ],
)
def test_the_host_never_waits_for_a_training_step(gpus, settings, tmp_path):
    def waits(steps):
        run = (f"run.dir={tmp_path / str(steps)}", f"train.steps={steps}", "reconcile.every=1")
        done = gpus(1, "-c", WAITS, *run, *settings, cwd=TESTS.parent)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1])

    assert waits(9) == waits(14) > 0


FAILS = """
import os, sys
from pipeline_local.cli import main
from pipeline_local.errors import UserError
from pipeline_local.pipeline.stage import Stage

learn = Stage._learn

def failing(stage, slot, step, microbatch):
    if os.environ.get("RANK") == "1" and step.number == 5:
        raise UserError("what went wrong")
    learn(stage, slot, step, microbatch)

Stage._learn = failing
sys.exit(main(["train", "configs/synthetic.yaml", *sys.argv[1:]]))
"""


def test_an_error_is_told_and_ends_the_run(gpus, tmp_path):
    """Its rank has posted a receive, and the end of the device's library would wait for it."""
    run = ("parallel.stages=2", "train.steps=9", f"run.dir={tmp_path / 'run'}")
    done = gpus(2, "-c", FAILS, *run, cwd=TESTS.parent)
    assert "over nccl" in done.stdout
    assert "[stage 1 | rank 1] error: what went wrong" in done.stderr
    assert done.returncode == 2
    assert done.stderr.count("error") == 1


STOPS = """
import os, signal, sys, time
from pipeline_local.cli import main
from pipeline_local.pipeline.stage import Stage

learn = Stage._learn

def slow(stage, slot, step, microbatch):
    if os.environ.get("RANK") == "0" and slot is stage._chain[0]:
        time.sleep(0.1)
        if step.number == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
    learn(stage, slot, step, microbatch)

Stage._learn = slow
sys.exit(main(["train", "configs/synthetic.yaml", *sys.argv[1:]]))
"""


def test_a_stop_is_the_same_step_for_all(gpus, tmp_path):
    """The second stage sends to nobody, and nccl does not make its host wait for what it gets."""
    folder = tmp_path / "run"
    run = ("train.steps=60", "train.log_every=99", "train.evaluate_every=99", "train.on_nan=skip")
    run += ("parallel.stages=2", "parallel.timeout=20", "parallel.threads=1", f"run.dir={folder}")
    done = gpus(2, "-c", STOPS, *run, cwd=TESTS.parent)
    assert "over nccl" in done.stdout
    assert done.returncode == 75, done.stderr
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert checkpoint.name == "step-00000008"
    assert len(list(checkpoint.iterdir())) == 4


def test_what_is_written_for_gpus_passes_there(gpus):
    """Those of the other tests that are skipped where there is no GPU."""
    mine = ["ranks/test_p2p.py", "ranks/test_caller.py", "engines/test_guard.py"]
    mine += ["record/test_snapshot.py", "record/test_stopwatch.py", "fitting/test_fitting.py"]
    names = "staged or nccl or on_a_gpu or never_waits"
    done = gpus(2, "-m", "pytest", "-q", "-k", names, *(TESTS / name for name in mine))
    assert done.returncode == 0, done.stdout
    assert "17 passed" in done.stdout
    assert "skipped" not in done.stdout


def test_what_a_stream_waits_for_is_told(gpus, tmp_path):
    """The second stage has far less to do; its host never stands still for a message."""
    rows = tmp_path / "rows.json"
    done = gpus(
        *(2, "-m", "pipeline_local", "bench", "baselines", "configs/synthetic.yaml"),
        *("parallel.stages=2", "parallel.cuts=[4]", "modules.cuts=[layer1.0,layer1.1,layer4.1]"),
        *("data.image_size=32", "data.batch_size=16", "reconcile.weight=0"),
        *("--baselines", "local", "--runs", "1", "--steps", "6"),
        *("--json", str(rows)),
        cwd=TESTS.parent,
    )
    assert done.returncode == 0, done.stderr
    (row, *_) = json.loads(rows.read_text())["rows"]
    assert row["waited"][1] > 0.2


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [1, 2])
def test_channels_and_placement_hold_there(gpus, count):
    mine = ("pipeline/test_transport.py", "engines/test_guard.py", "test_oracle.py")
    done = gpus(count, "-m", "pytest", "-q", *(TESTS / name for name in mine))
    assert done.returncode == 0, done.stdout


@pytest.mark.long
def test_what_plan_predicts_is_what_the_allocator_holds(gpus, tmp_path):
    """On a device everything is allocated by it: boundaries, batches, and sizes are rounded up."""
    command = ("-m", "pipeline_local")
    settings = ("configs/synthetic.yaml", "parallel.stages=2", "train.steps=9")
    planned, run = tmp_path / "plan.json", tmp_path / "run"
    done = gpus(0, *command, "plan", *settings, "--json", str(planned), cwd=TESTS.parent)
    assert done.returncode == 0, done.stderr
    done = gpus(2, *command, "train", *settings, f"run.dir={run}", cwd=TESTS.parent)
    assert done.returncode == 0, done.stderr
    stages = json.loads(planned.read_text())["stages"]
    held = json.loads((run / "summary.json").read_text())["peak_memory_bytes"]
    assert [stage["memory"]["peak"] for stage in stages] == pytest.approx(held, rel=0.1)


def test_a_profile_measures_what_libraries_keep(gpus, tmp_path):
    """A workspace for the thread of forward passes and one for that of backward passes, and nothing
    of the profile's own."""
    found = tmp_path / "profile.json"
    settings = ("configs/digits.yaml", "model.width=4", "parallel.stages=1")
    more = ("--runs", "1", "--output", str(found))
    done = gpus(1, "-m", "pipeline_local", "profile", *settings, *more, cwd=TESTS.parent)
    assert done.returncode == 0, done.stderr
    device = json.loads(found.read_text())["device"]
    assert (device["type"], device["workspaces"]) == ("simgpu", 2 * 2**20)


def test_the_timeline_shows_what_the_device_did(gpus, tmp_path):
    """Without waiting for it, but for once where `trace.steps` begin."""
    train(
        lambda *a, **b: gpus(1, *a, **b), tmp_path / "run", "parallel.stages=2", "trace.steps=[3,6]"
    )
    events = json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    rows = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    slices = [e for e in events if e["ph"] == "X"]
    for stage in (1, 2):
        own = [e for e in slices if e["pid"] == stage and e["cat"] in ("forward", "learn")]
        device = [e for e in own if rows[stage, e["tid"]] == "device"]
        host = [e for e in own if rows[stage, e["tid"]] != "device"]
        assert len(device) == len(host) == 4 * 2 * 2
        assert all(d["args"] == h["args"] for d, h in zip(device, host, strict=True))
        ends = [(d["ts"] + d["dur"], h["ts"]) for d, h in zip(device, host, strict=True)]
        assert all(done >= begun - 1000 for done, begun in ends), "before the host queued it"
