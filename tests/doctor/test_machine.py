"""Machines that are too small for a run, or set up for something else."""

import resource
from collections import namedtuple

import pytest

from pipeline_local.doctor import machine

Usage = namedtuple("Usage", "total used free")
GIB = 2**30


@pytest.mark.parametrize(
    ("allowed", "status"), [(None, "PASS"), (8.0, "PASS"), (2.0, "WARN"), (0.5, "WARN")]
)
def test_processors(lines, monkeypatch, allowed, status):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine.cgroup, "processors", lambda: allowed)
    ((found, text),) = lines(machine.processors)
    assert (found, "--cpuset-cpus=0-" in text) == (status, status == "WARN")


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("OMP_NUM_THREADS", "", "PASS"),
        ("OMP_NUM_THREADS", "4", "PASS"),
        ("OMP_NUM_THREADS", "2,1", "PASS"),
        ("OMP_NUM_THREADS", "64", "WARN"),
        ("OMP_NUM_THREADS", "many", "WARN"),
        ("OMP_WAIT_POLICY", "ACTIVE", "WARN"),
        ("OMP_WAIT_POLICY", "passive", "PASS"),
        ("GOMP_CPU_AFFINITY", "0-3", "WARN"),
    ],
)
def test_threads(lines, monkeypatch, name, value, status):
    for known in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"):
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    ((found, _),) = lines(machine.threads)
    assert found == status


@pytest.mark.parametrize(
    ("free", "container", "status", "says"),
    [
        (8, None, "PASS", "8.0 GiB of 16.0 GiB are free (the host)"),
        (1, None, "WARN", "1.0 GiB of 16.0 GiB are free, two ranks need 2.0 GiB; end other"),
        (8, (4 * GIB, 3 * GIB), "PASS", "3.0 GiB of 4.0 GiB are free (the container)"),
        (8, (4 * GIB, GIB // 2), "WARN", "512 MiB of 4.0 GiB"),
        (8, (32 * GIB, 30 * GIB), "PASS", "8.0 GiB of 16.0 GiB are free (the host)"),
    ],
)
def test_memory(lines, monkeypatch, tmp_path, free, container, status, says):
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "meminfo")
    text = f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable:  {free * 2**20} kB\n"
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(machine.cgroup, "memory", lambda: container)
    ((found, text),) = lines(machine.memory)
    assert found == status
    assert text.startswith(says)


@pytest.mark.parametrize(("free", "status"), [(64 * 2**20, "WARN"), (GIB, "PASS")])
def test_shared_memory(lines, monkeypatch, tmp_path, free, status):
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(2 * GIB, 0, free))
    ((found, text),) = lines(machine.shared_memory)
    assert (found, "--shm-size=2g" in text) == (status, status == "WARN")


def test_no_shared_memory(lines, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "none")
    assert lines(machine.shared_memory)[0][0] == "WARN"


@pytest.mark.parametrize(
    ("files", "processes", "locked", "warnings"),
    [
        (20000, 90000, 2**23, []),
        (-1, -1, -1, []),
        (256, 90000, -1, ["256 open files"]),
        (256, 100, -1, ["256 open files", "100 processes"]),
    ],
)
def test_limits(lines, monkeypatch, files, processes, locked, warnings):
    known = {
        resource.RLIMIT_NOFILE: files,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_MEMLOCK: locked,
    }
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (known[kind], -1))
    found = lines(machine.limits)
    assert [status for status, _ in found] == ["WARN"] * len(warnings) or ["PASS"]
    assert all(text.startswith(w) for (_, text), w in zip(found, warnings, strict=False))


def test_locked_memory_matters_with_infiniband(lines, monkeypatch, tmp_path):
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(machine, "INFINIBAND", tmp_path)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (2**16, -1))
    ((status, text),) = lines(machine.limits)
    assert (status, "--ulimit memlock=-1" in text) == ("WARN", True)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(tmp_path / "scratch"))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(0, 0, 5 * GIB))
    monkeypatch.delenv("TMPDIR", raising=False)
    return tmp_path


def test_disk(lines, folders):
    assert [status for status, _ in lines(machine.disk)] == ["PASS", "PASS"]
    assert not list((folders / "here").iterdir())


def test_a_full_disk(lines, folders, monkeypatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(0, 0, 2**20))
    here, scratch = lines(machine.disk)
    assert here == (
        "WARN",
        "the current folder has 1 MiB free; remove files, or set run.dir to a folder of yours",
    )
    assert scratch[0] == "WARN"


def test_a_folder_that_cannot_be_written(lines, folders):
    (folders / "here").rmdir()
    (folders / "here").write_text("now a file")
    found = machine._folder(folders / "here", "the current folder", "move")
    assert (found.status, "cannot be written" in found.found) == ("WARN", True)


@pytest.mark.parametrize("there", [True, False])
def test_a_temporary_folder_that_is_not_taken(lines, folders, monkeypatch, there):
    asked = folders / "asked"
    if there:
        asked.mkdir()
    monkeypatch.setenv("TMPDIR", str(asked))
    _, warning, _ = lines(machine.disk)
    assert (warning[0], "TMPDIR=" in warning[1]) == ("WARN", True)
