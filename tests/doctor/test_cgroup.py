"""Limits of containers, in the files of both versions of control groups."""

import pytest

from pipeline_local.doctor import cgroup

OWN = {2: "0::/job/step\n", 1: "4:memory:/job/step\n1:cpu,cpuacct:/job/step\n0::/\n"}


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Says which groups this process is in."""
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
    return lambda version: (tmp_path / "own").write_text(OWN[version])


def put(tmp_path, path, text):
    file = tmp_path / "cgroup" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_nothing_is_known(group):
    assert (cgroup.processors(), cgroup.memory()) == (None, None)


@pytest.mark.parametrize("folder", ["job/step/", "job/", ""])
def test_version_2(group, tmp_path, folder):
    """The own group limits, or one further up; of a container only the root may be seen."""
    group(2)
    put(tmp_path, f"{folder}cpu.max", "150000 100000\n")
    put(tmp_path, f"{folder}memory.max", "1000\n")
    put(tmp_path, f"{folder}memory.current", "900\n")
    put(tmp_path, f"{folder}memory.stat", "anon 500\ninactive_file 300\n")
    assert (cgroup.processors(), cgroup.memory()) == (1.5, (1000, 400))


def test_the_tightest_counts(group, tmp_path):
    group(2)
    for folder, cpus, limit in (("job/step/", "max", 5000), ("job/", "400000", 900)):
        put(tmp_path, f"{folder}cpu.max", f"{cpus} 100000")
        put(tmp_path, f"{folder}memory.max", str(limit))
        put(tmp_path, f"{folder}memory.current", "800")
    assert (cgroup.processors(), cgroup.memory()) == (4, (900, 100))


def test_version_1(group, tmp_path):
    group(1)
    put(tmp_path, "cpu/job/cpu.cfs_quota_us", "50000")
    put(tmp_path, "cpu/job/cpu.cfs_period_us", "100000")
    put(tmp_path, "memory/job/memory.limit_in_bytes", "1000")
    put(tmp_path, "memory/job/memory.usage_in_bytes", "900")
    put(tmp_path, "memory/job/memory.stat", "total_inactive_file 50\ninactive_file 0\n")
    assert (cgroup.processors(), cgroup.memory()) == (0.5, (1000, 150))


def test_no_limit(group, tmp_path):
    group(1)
    put(tmp_path, "cpu/cpu.cfs_quota_us", "-1")
    put(tmp_path, "cpu/cpu.cfs_period_us", "100000")
    put(tmp_path, "memory/memory.limit_in_bytes", "9223372036854771712")
    put(tmp_path, "memory/memory.usage_in_bytes", "900")
    assert (cgroup.processors(), cgroup.memory()) == (None, None)
