"""Fixtures: forked ranks (where there are GPUs by a fork server), one thread each, nothing left."""

import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Before torch. The suite proves equality bit for bit, on CPUs: GPUs stay out of sight unless asked
# for (`PIPELINE_LOCAL_TEST_GPU=1 bash launch/test.sh tests/ranks/test_p2p.py`). Asking CUDA
# itself whether there are any would spoil every fork after it.
if not os.environ.get("PIPELINE_LOCAL_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork

import torch
import torch._dynamo  # the first optimizer step imports it: once here, not in every forked rank

from pipeline_local.ranks.rank import RankInfo
from tests.ports import free_port

hypothesis.settings.register_profile("calm", deadline=None)  # no wall-clock assertions
hypothesis.settings.load_profile("calm")


_OWN = os.getpid()
_set_num_threads, _asked_for = torch.set_num_threads, set()


def _watched(count: int) -> None:
    if os.getpid() == _OWN:
        _asked_for.add(count)
    _set_num_threads(count)


# Equal thread counts everywhere, and no pool of threads: GNU OpenMP does not survive a fork once it
# has one, and forked ranks that use several threads would hang (see `nothing_leaks`). Here and not
# in a fixture, as modules of tests make tensors while pytest collects them.
torch.set_num_threads = _watched
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def autograd_without_threads() -> None:
    """A FakeTensorMode pretends that there is a GPU, for which autograd starts threads at the first
    backward pass of the process. Once there has been one, it never does."""
    torch.ones(1, requires_grad=True).backward()


def pytest_collection_finish() -> None:
    """What is imported and collected lasts as long as the process: neither collections nor forks
    need to visit it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def exit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three modules on digits, with checkpoints after 20 and 40 steps."""
    from pipeline_local.configfile import configfile
    from pipeline_local.training.train import train

    tree = {
        "model": {"name": "resnet20", "width": 4},
        "data": {"name": "digits", "batch_size": 32},
        "modules": {"count": 3},
        "train": {"steps": 40},
        "checkpoint": {"every_steps": 20},
        "parallel": {"threads": 1},
        "run": {"dir": str(tmp_path_factory.mktemp("exits") / "run")},
    }
    config = configfile.parse(tree)
    train(config, RankInfo())
    return config.run.dir


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Shells start background jobs with SIGINT ignored, and the watchdog interrupts by it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


SET_BY_LIBRARIES = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"}
SET_BY_LIBRARIES |= {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}
SET_BY_LIBRARIES |= {"_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"}


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in SET_BY_LIBRARIES}


@pytest.fixture
def idle_threads() -> Iterator[None]:
    """For a test that asks for several threads and has no work for them."""
    yield
    _asked_for.clear()


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """No test may leave environment variables, child processes or threads behind.

    A rank that fails stops listening to SIGTERM, as it is about to end; a test goes on.
    """
    os.environ.pop("COLUMNS", None)  # workers of pytest have one, and tables would be narrow
    before, threads = environment(), set(threading.enumerate())
    on_stop = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, on_stop)
    asked_for = max(_asked_for, default=1)
    _asked_for.clear()
    left = multiprocessing.active_children()
    for process in left:
        process.kill()  # it is this test's fault, not that of the next ones
        process.join()
    assert environment() == before
    assert torch.get_num_threads() == 1
    assert asked_for == 1, "parallel.threads=1 here, or several in a forked process (run_ranks)"
    assert not left
    own = [t for t in set(threading.enumerate()) - threads if not t.daemon]
    for thread in own:
        thread.join(10)  # transformers does not wait for the end of those that load weights
    assert not [thread for thread in own if thread.is_alive()]


def _rank_main(
    rank: int, world_size: int, port: int, outbox: Any, function: Callable, args: tuple
) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
    )
    # a fork server that the parent has started is not this process's child: forget it
    multiprocessing.forkserver._forkserver.__init__()
    try:
        rank_info = RankInfo(rank, world_size, rank, world_size, launched=True)
        outbox.send((function(rank_info, *args), None))
    except BaseException:
        outbox.send((None, traceback.format_exc()))
    finally:
        outbox.close()


@pytest.fixture
def run_ranks() -> Callable[..., list[Any]]:
    """Call `function(place, *args)` on forked ranks; gives their results in rank order.

    A failure on any rank fails the test with that rank's traceback, and ends the others.
    """

    def run(function: Callable, world_size: int, *args: Any, timeout: float = 100) -> list[Any]:
        # autograd has a thread for each GPU, which a fork would not have
        way = "forkserver" if torch.accelerator.is_available() else "fork"
        context = multiprocessing.get_context(way)
        context.set_forkserver_preload(["tests.conftest"])
        port = free_port()
        pipes, processes = [], []
        for rank in range(world_size):
            inbox, outbox = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank_main, args=(rank, world_size, port, outbox, function, args)
            )
            process.start()
            outbox.close()
            pipes.append(inbox)
            processes.append(process)
        try:
            return _collect(pipes, timeout)
        finally:
            for process in processes:
                process.join(5)
                process.kill()
                process.join()

    return run


@pytest.fixture
def forked_launcher(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`fit` and the commands fork their ranks; other tests start them as users do."""
    from pipeline_local.ranks import call, launcher
    from tests import forked

    start = partial(forked.start_ranks, folder=tmp_path_factory.mktemp("ranks"))
    for module in (call, launcher):
        monkeypatch.setattr(module, "start_ranks", start)


def _collect(pipes: list[Any], timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
        ready = multiprocessing.connection.wait(list(waiting), timeout)
        assert ready, f"ranks {sorted(waiting.values())} did not end within {timeout} s"
        for pipe in ready:
            rank = waiting[pipe]
            try:
                results[rank], failure = pipe.recv()
            except EOFError:
                failure = "the process died"
            assert failure is None, f"rank {rank}: {failure}"
    return [results[rank] for rank in range(len(pipes))]
