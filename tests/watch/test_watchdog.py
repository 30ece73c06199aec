"""No silent hang: real ranks, killed, stopped, raising and sleeping, each time in mid-run.

Every test asks for the same three things: all ranks end, with the right exit code; exactly one line
is printed; it names the culprit, and what it was doing.
"""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist

from pipeline_local.configfile import configfile
from pipeline_local.data.images import batches
from pipeline_local.errors import (
    EXIT_NEIGHBOUR_LOST,
    EXIT_STALLED,
    EXIT_USER_ERROR,
    StalledError,
    UserError,
)
from pipeline_local.learning.body import Body
from pipeline_local.pipeline.stage import Stage
from pipeline_local.ranks.mesh import Mesh, chain
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training import preflight
from pipeline_local.training import train as entry
from pipeline_local.training.train import train
from pipeline_local.watch.liveness import LivenessLinks
from pipeline_local.watch.store import RankStore
from pipeline_local.watch.watchdog import PATIENCE_SECONDS, Watchdog
from tests.faults import once_results_are_in
from tests.ports import free_port

RANKS = 3
LONGEST = 40
"""Seconds; generous, as machines are noisy. What is expected is one or two."""


MLP = {"name": "mlp", "hidden": 8, "depth": 6}


def config(folder, direction="downstream", steps=10**6, microbatches=1, model=MLP, **parallel):
    return configfile.parse(
        {
            "model": model,
            "modules": {"count": RANKS},
            "reconcile": {"weight": 0.1, "every": 1, "direction": direction},
            "data": {"name": "digits", "batch_size": 16},
            "train": {"steps": steps, "log_every": 5, "microbatches": microbatches},
            "parallel": {"threads": 1, **parallel},
            "run": {"dir": str(folder / "run")},
        }
    )


class Ranks:
    """Forked ranks of one run, what they printed, and how each ended."""

    def __init__(self, config, folder, fault):
        self.output = folder / "output"
        self.context = multiprocessing.get_context("fork")
        self.reached = self.context.Event()
        self.count = Mesh.of(config.parallel, RANKS).num_ranks
        port = free_port()
        self.processes = [
            self.context.Process(target=self._main, args=(config, rank, port, fault))
            for rank in range(self.count)
        ]
        for process in self.processes:
            process.start()

    def _main(self, config, rank, port, fault):
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
        multiprocessing.forkserver._forkserver.__init__()
        output = os.open(self.output, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # what pytest has put there belongs to its own process
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        rank_info = RankInfo(rank, self.count, rank, self.count, launched=True)
        self._count_steps(rank_info, fault)
        from pipeline_local import cli
        from pipeline_local.commands.table import COMMANDS

        os.environ.update(RANK=str(rank), WORLD_SIZE=str(self.count))
        COMMANDS["train"] = lambda *_: train(config, rank_info) and 0
        os._exit(cli.main(["train", "unused.yaml"]))

    def _count_steps(self, rank_info, fault):
        """The fault, if it is this rank's, strikes in step 8; the last stage tells of step 5."""
        learn = Stage.train

        def counting(stage, step):
            if step.number == 5 and rank_info.rank == rank_info.world_size - 1:
                self.reached.set()
            if step.number == 8:
                fault(rank_info.rank)
            learn(stage, step)

        Stage.train = counting

    def wait(self):
        """Until all ranks are at work."""
        assert self.reached.wait(LONGEST), self.output.read_text()

    def ends(self):
        """Exit codes, by rank."""
        until = time.monotonic() + LONGEST
        for process in self.processes:
            process.join(max(0, until - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def errors(self):
        """The lines that tell of an error."""
        text = self.output.read_text()
        assert "Traceback" not in text, text
        return [line for line in text.splitlines() if "error: " in line]

    def close(self):
        for process in self.processes:
            process.kill()
            process.join()


@pytest.fixture
def start(tmp_path):
    started = []

    def run(fault=lambda rank: None, **settings):
        started.append(Ranks(config(tmp_path, **settings), tmp_path, fault))
        return started[-1]

    yield run
    for ranks in started:
        ranks.close()


def test_a_launcher_that_hears_of_the_death_first(start):
    """It asks the others to stop at once; one of them still tells why."""

    def fault(rank):
        if rank == 0:
            time.sleep(1)  # the others get this far, too
            os.kill(os.getpid(), signal.SIGKILL)
        elect = Watchdog._elect
        Watchdog._elect = lambda *verdict: time.sleep(1) or elect(*verdict)
        threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()

    ranks = start(fault)
    assert ranks.ends() == [-signal.SIGKILL, EXIT_NEIGHBOUR_LOST, EXIT_NEIGHBOUR_LOST]
    (line,) = ranks.errors()
    assert line.startswith("[stage 0 | rank 0] error: its process is gone"), line


@pytest.mark.parametrize("victim", range(RANKS))
def test_a_killed_rank(start, victim):
    ranks = start()
    ranks.wait()
    begin = time.monotonic()
    os.kill(ranks.processes[victim].pid, signal.SIGKILL)
    expected = [EXIT_NEIGHBOUR_LOST] * RANKS
    expected[victim] = -signal.SIGKILL
    assert ranks.ends() == expected
    assert time.monotonic() - begin < 15, "promised are 5 s"
    (line,) = ranks.errors()
    assert line.startswith(f"[stage {victim} | rank {victim}] error: its process is gone"), line


MESH = {"stages": 2, "replicas": 2, "microbatches": 2}
PLACES = ["stage 0, replica 0", "stage 0, replica 1", "stage 1, replica 0", "stage 1, replica 1"]
"""Of the ranks of `MESH`."""


@pytest.mark.parametrize("victim", [1, 2])
def test_a_killed_replica_is_named(start, victim):
    ranks = start(**MESH)
    ranks.wait()
    os.kill(ranks.processes[victim].pid, signal.SIGKILL)
    expected = [EXIT_NEIGHBOUR_LOST] * len(PLACES)
    expected[victim] = -signal.SIGKILL
    assert ranks.ends() == expected
    (line,) = ranks.errors()
    assert line.startswith(f"[{PLACES[victim]} | rank {victim}] error: its process is gone"), line


def test_a_replica_without_data_is_named(start):
    """The other replica of its stage waits for its gradients, the next stage for its output."""

    def fault(rank):
        if rank == 1:
            batches.ImageTrainSource.batch = lambda *_: time.sleep(LONGEST * 2)

    ranks = start(fault, **MESH, timeout=3)
    assert ranks.ends() == [EXIT_STALLED] * len(PLACES)
    (line,) = ranks.errors()
    assert line.startswith(f"[{PLACES[1]} | rank 1] error: no progress for "), line
    assert "waiting for the data, module 1, microbatch 1, step " in line
    assert "rank 3 waits for it on the edge 1 -> 3" in line


SYNCED = {**MESH, "model": {"name": "resnet20", "width": 2}, "sync_batchnorm": True}
"""Replicas that wait for each other within a pass."""


def in_a_pass(rank, do):
    """A fault: the next forward pass of a rank is `do()`."""

    def fault(mine):
        if mine == rank:
            Body.forward = lambda *_: do()

    return fault


@pytest.mark.parametrize("victim", [1, 2])
def test_a_replica_killed_within_a_pass_is_named(start, victim, monkeypatch):
    """Its batch norms' connection breaks before any watchdog has looked."""
    judge = Watchdog._judge
    late = PATIENCE_SECONDS / 5  # a rank waits no longer than that for a verdict
    monkeypatch.setattr(Watchdog, "_judge", lambda self: time.sleep(late) or judge(self))
    ranks = start(in_a_pass(victim, lambda: time.sleep(1) or die()), **SYNCED)
    expected = [EXIT_NEIGHBOUR_LOST] * len(PLACES)
    expected[victim] = -signal.SIGKILL
    assert ranks.ends() == expected
    lines = ranks.errors()
    assert len(lines) == 1, lines
    (line,) = lines
    assert line.startswith(f"[{PLACES[victim]} | rank {victim}] error: its process is gone"), line


@pytest.mark.parametrize("victim", [1, 3])
def test_a_replica_that_hangs_within_a_pass_is_named(start, victim):
    """And not one that waits for it in a batch norm, which has come there first."""
    ranks = start(in_a_pass(victim, lambda: time.sleep(LONGEST * 2)), **SYNCED, timeout=3)
    assert ranks.ends() == [EXIT_STALLED] * len(PLACES)
    (line,) = ranks.errors()
    assert line.startswith(f"[{PLACES[victim]} | rank {victim}] error: no progress for "), line


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_is_named_and_ended(start, victim):
    ranks = start(timeout=4)
    ranks.wait()
    os.kill(ranks.processes[victim].pid, signal.SIGSTOP)
    expected = [EXIT_STALLED] * RANKS
    expected[victim] = -signal.SIGKILL
    assert ranks.ends() == expected
    (line,) = ranks.errors()
    assert line.startswith(f"[stage {victim} | rank {victim}] error: "), line


def test_a_rank_stopped_for_a_moment_goes_on(start):
    ranks = start(timeout=30)
    ranks.wait()
    os.kill(ranks.processes[1].pid, signal.SIGSTOP)
    time.sleep(4)
    os.kill(ranks.processes[1].pid, signal.SIGCONT)
    time.sleep(2)
    assert all(process.is_alive() for process in ranks.processes)


def test_a_rank_killed_before_the_first_step(start, monkeypatch):
    """The others wait for it at the store, not on an edge."""
    make = entry.modules_of
    making = multiprocessing.get_context("fork").Event()

    def slowly(blueprint, rank_info, *others):
        if rank_info.rank == 1:
            making.set()
            time.sleep(LONGEST * 2)
        return make(blueprint, rank_info, *others)

    monkeypatch.setattr(entry, "modules_of", slowly)
    ranks = start()
    assert making.wait(LONGEST)
    os.kill(ranks.processes[1].pid, signal.SIGKILL)
    assert ranks.ends() == [EXIT_NEIGHBOUR_LOST, -signal.SIGKILL, EXIT_NEIGHBOUR_LOST]
    (line,) = ranks.errors()
    assert line.startswith("[stage 1 | rank 1] error: its process is gone"), line


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_stopped_at_the_very_end(start, victim):
    """All is saved and handed in; the others have not left it alone."""

    def stop(rank):
        if rank == victim:
            once_results_are_in(lambda: os.kill(os.getpid(), signal.SIGSTOP))

    ranks = start(stop, steps=10, timeout=3)
    expected = [EXIT_STALLED] * RANKS
    expected[victim] = -signal.SIGKILL
    assert ranks.ends() == expected
    (line,) = ranks.errors()
    assert line.startswith(f"[stage {victim} | rank {victim}] error: "), line


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_first_rank_killed_while_it_checks_the_configuration(start, monkeypatch):
    """The others have not been refused: its death is told."""
    monkeypatch.setattr(preflight, "check", lambda *_: time.sleep(1) or die())
    ranks = start()
    assert ranks.ends() == [-signal.SIGKILL, EXIT_NEIGHBOUR_LOST, EXIT_NEIGHBOUR_LOST]
    (line,) = ranks.errors()
    assert line.startswith("[stage 0 | rank 0] error: its process is gone"), line


def test_a_first_rank_killed_before_there_are_liveness_links(start, monkeypatch):
    """Nobody watches yet: each of the others tells what it knows, without a traceback."""
    monkeypatch.setattr(LivenessLinks, "host", die)
    ranks = start()
    assert ranks.ends() == [-signal.SIGKILL, EXIT_NEIGHBOUR_LOST, EXIT_NEIGHBOUR_LOST]
    assert all("error: the connection to rank 0 broke: " in line for line in ranks.errors())


MINE = StalledError("mine")
"""Any error that the command line tells in one line."""


def raise_on(rank, error=MINE):
    def fault(mine):
        if mine == rank:
            raise error

    return fault


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (MINE, EXIT_STALLED, "mine ("),
        (torch.OutOfMemoryError("CUDA has no more"), EXIT_USER_ERROR, "out of memory (CUDA"),
        (MemoryError(), EXIT_USER_ERROR, "out of memory (MemoryError)"),
        (UserError("wrong"), EXIT_USER_ERROR, "wrong ("),
    ],
)
def test_a_replica_that_raises_says_where(start, error, code, told):
    """Whatever the class of the error."""
    ranks = start(raise_on(3, error), **MESH)
    assert ranks.ends() == [*[EXIT_NEIGHBOUR_LOST] * 3, code]
    (line,) = ranks.errors()
    assert line.startswith(f"[{PLACES[3]} | rank 3] error: {told}"), line


@pytest.mark.parametrize("direction", ["downstream", "both"])
@pytest.mark.parametrize("culprit", range(RANKS))
def test_a_rank_that_raises_is_the_only_one_to_speak(start, culprit, direction):
    """And waits for nobody, though gradients that it has sent back may be on their way."""
    ranks = start(raise_on(culprit), direction=direction)
    expected = [EXIT_NEIGHBOUR_LOST] * RANKS
    expected[culprit] = EXIT_STALLED
    assert ranks.ends() == expected
    (line,) = ranks.errors()
    assert "error: mine (" in line, line


def test_a_rank_that_hangs_in_its_work(start):
    ranks = start(lambda rank: time.sleep(LONGEST * 2 if rank == 1 else 0), timeout=3)
    assert ranks.ends() == [EXIT_STALLED] * RANKS
    (line,) = ranks.errors()
    assert line.startswith("[stage 1 | rank 1] error: no progress for "), line
    assert "step 9" in line
    assert re.search(r"rank [02] waits for it on the edge (0 -> 1|1 -> 2)", line), line


def sleeping_loader(monkeypatch, seconds=LONGEST * 2):
    """The data of step 8 never comes."""
    batch = batches.ImageTrainSource.batch

    def sleep(self, step):
        if step == 8:
            time.sleep(seconds)
        return batch(self, step)

    monkeypatch.setattr(batches.ImageTrainSource, "batch", sleep)


def test_a_loader_that_sleeps_for_ever(start, monkeypatch):
    sleeping_loader(monkeypatch)
    ranks = start(timeout=3)
    assert ranks.ends() == [EXIT_STALLED] * RANKS
    (line,) = ranks.errors()
    assert line.startswith("[stage 0 | rank 0] error: no progress for "), line
    assert "waiting for the data, module 1, microbatch 0, step 9" in line
    assert "rank 1 waits for it on the edge 0 -> 1" in line


def test_all_ranks_end_where_nobody_reads_the_message(start):
    """As in `2>&1 | head`: the one that is to report it finds a closed pipe."""

    def fault(rank):
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 2)
        time.sleep(LONGEST * 2 if rank == 1 else 0)

    ranks = start(fault, timeout=3)
    assert ranks.ends() == [EXIT_STALLED] * RANKS


def test_a_stalled_rank_that_keeps_the_store_is_told_of_once(start, monkeypatch):
    """It is gone, and the store with it, before the others can ask there who speaks."""
    sleeping_loader(monkeypatch)
    claim = RankStore.compare_set

    def late(self, topic, facts):
        time.sleep(1 if self.rank else 0)
        return claim(self, topic, facts)

    monkeypatch.setattr(RankStore, "compare_set", late)
    ranks = start(timeout=3)
    assert ranks.ends() == [EXIT_STALLED] * RANKS
    assert len(ranks.errors()) == 1


def test_one_process_raises_where_it_hangs(tmp_path, monkeypatch):
    """Nobody else is concerned, and the caller's program is not ended."""
    sleeping_loader(monkeypatch)
    begin = time.monotonic()
    with pytest.raises(StalledError, match="waiting for the data, module 1"):
        train(config(tmp_path, timeout=2), RankInfo())
    assert time.monotonic() - begin < LONGEST
    assert not [t for t in threading.enumerate() if t.name in ("watchdog", "heartbeat")]


@pytest.mark.parametrize("value", [None, "1"])
def test_torchs_own_watchdog_ends_no_process(monkeypatch, value):
    """Unless the user wants that."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    monkeypatch.delenv(name, raising=False)
    if value:
        monkeypatch.setenv(name, value)
    with Watchdog(RankStore(dist.HashStore(), 0, 1), RankInfo(), 60, chain(1)):
        assert os.environ[name] == (value or "0")
    assert os.environ.get(name) == value


def test_a_long_act_within_the_timeout_is_no_stall(start):
    ranks = start(lambda rank: time.sleep(4 if rank == 1 else 0), timeout=20)
    ranks.wait()
    time.sleep(6)
    assert all(process.is_alive() for process in ranks.processes)
    assert not ranks.errors()


@pytest.mark.parametrize(
    ("hosts", "lost", "reporters"),
    [("aaa", 0, [1]), ("aab", 0, [2]), ("abb", 2, [0]), ("abc", 0, [1, 2]), ("aabbcc", 3, [0, 4])],
)
def test_where_the_store_does_not_answer_each_host_reports(hosts, lost, reporters):
    """As the network between them may be cut. What is lost is the business of other hosts."""

    def reports(rank):
        store = RankStore(dist.HashStore(), rank, len(hosts))
        watchdog = Watchdog(store, RankInfo(rank, len(hosts)), 60.0, chain(len(hosts)))
        watchdog._heart._beats = {rank: {"host": host} for rank, host in enumerate(hosts)}
        return watchdog._reports_on(lost)

    assert [rank for rank in range(len(hosts)) if reports(rank)] == reporters


@pytest.mark.parametrize("heard", [set(), {0}, {1}, {0, 1}])
def test_one_reports_before_all_heartbeats_have_come(heard):
    """Of one host; a rank knows its own host, and those of the ranks that it has heard of."""

    def reports(rank):
        store = RankStore(dist.HashStore(), rank, 3)
        watchdog = Watchdog(store, RankInfo(rank, 3), 60.0, chain(3))
        watchdog._heart._beats = {each: {"host": "a"} for each in {rank, *heard}}
        return watchdog._reports_on(0)

    assert [rank for rank in (1, 2) if reports(rank)] == [1]
