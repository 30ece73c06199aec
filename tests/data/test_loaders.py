"""Loader processes: deaf to a request to stop, obedient to their rank, gone when it is gone."""

import multiprocessing
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pipeline_local.configfile import configfile
from pipeline_local.data import loaders as server
from pipeline_local.data.images.batches import train_batches
from pipeline_local.data.images.datasets import describe
from pipeline_local.data.loading import load
from pipeline_local.errors import UserError
from pipeline_local.process.early import STOP_SIGNALS

LONGEST = 60
DATA = {"name": "synthetic", "batch_size": 8, "image_size": 8, "limit": 64, "workers": 2}


def batches(steps=8):
    tree = {"model": {"name": "mlp"}, "data": DATA, "train": {"steps": steps}}
    data = configfile.parse(tree).data
    return train_batches(data, describe(data), 0, 0, steps)


def loaders():
    """{process number: parent} of the loaders that this process has made."""
    return {child.pid: child for child in multiprocessing.active_children()}


def alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def somebody_else_signals(number, processes):
    """Not this process, which is the loaders' rank."""
    subprocess.run(["kill", f"-{number}", *map(str, processes)], check=True)


def gone(numbers):
    until = time.monotonic() + LONGEST
    while any(map(alive, numbers)):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_that_asks_to_stop_is_for_the_rank_alone(number):
    """A launcher signals a rank's whole process group; the rank still needs its loaders."""
    loading = batches()
    next(loading)
    processes = loaders()
    assert len(processes) == 2
    somebody_else_signals(number, processes)
    assert sum(1 for _ in loading) == 7, "all that is left is delivered"
    assert gone(processes), "they end with the iterator"


def test_the_fork_server_is_as_deaf():
    """Nobody could start the loaders of the next evaluation otherwise."""
    assert sum(1 for _ in batches()) == 8
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    for number in STOP_SIGNALS:
        somebody_else_signals(number, [server])
    assert sum(1 for _ in batches()) == 8
    assert multiprocessing.forkserver._forkserver._forkserver_pid == server


def test_its_own_rank_may_end_a_loader():
    """As torch does with one that does not end by itself: by SIGTERM."""
    loading = batches(steps=1000)
    next(loading)
    (first, *_), children = loaders(), loaders().values()
    next(iter(children)).terminate()
    assert gone([first])
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(loading)


@pytest.mark.parametrize("lost", [ConnectionResetError, EOFError])
def test_a_loader_that_dies_while_it_hands_over_a_batch_is_named(monkeypatch, lost):
    """torch passes the broken socket's error on while the dead process is not reaped yet."""

    def broken(*_):
        raise lost()  # a new one, as its traceback keeps the loaders

    loading = batches()
    next(loading)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", broken)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        next(loading)


RANK = """
import multiprocessing, time
from pipeline_local.config import DataConfig
from pipeline_local.data.images import batches
from pipeline_local.data.images.datasets import describe

if __name__ == "__main__":
    data = DataConfig("synthetic", image_size=8, workers=1)
    iterator = batches.train_batches(data, describe(data), 0, 0, 10**6)
    next(iterator)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(60)
"""


def test_they_end_with_a_rank_that_is_killed(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    rank = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    with rank:
        loader = int(rank.stdout.readline())
        os.kill(loader, 0)
        rank.kill()
    assert gone([loader])


def test_a_long_tmpdir_gets_a_folder_for_sockets_elsewhere(tmp_path, monkeypatch):
    """The system limits the path of a socket to 107 bytes."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(server.tempfile, "tempdir", str(long))
    monkeypatch.delenv(server.SOCKETS, raising=False)
    assert len(server._base()) < 20
    with server.socket_folder() as folder:
        assert len(folder + "/pymp-12345678/listener-12345678") < 108
    assert not Path(folder).exists()
    monkeypatch.setattr(server.tempfile, "tempdir", str(tmp_path)[:40])
    assert server._base() == str(tmp_path)[:40]


def test_nobody_can_make_a_folder(monkeypatch):
    def refuse():
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setattr(server.tempfile, "gettempdir", refuse)
    with server.socket_folder() as folder:
        assert folder is None


def test_torchs_empty_folder_goes_and_its_cache_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(server.tempfile, "tempdir", str(tmp_path))
    for name in ("torchinductor_me", "torchinductor_you/cache", "mine"):
        (tmp_path / name).mkdir(parents=True)
    server.drop_empty_caches()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "torchinductor_you"]


@dataclass(frozen=True)
class Full:
    """Where it computes a batch, no file may grow: as in a /dev/shm that is full."""

    skipped: list[str]

    def batch(self, step):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        return torch.zeros(2**20), torch.zeros(1)


def test_loaders_without_shared_memory_end_a_run_in_one_line():
    with pytest.raises(UserError, match=r"for a batch of 4\.0 MiB.*--shm-size") as said:
        next(load(Full(skipped=[]), range(4), workers=1))
    assert "\n" not in str(said.value)
