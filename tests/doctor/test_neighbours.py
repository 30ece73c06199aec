"""What ranks find out together: reported once, by the first one."""

import json
import time
from dataclasses import asdict

import pytest

from pipeline_local.doctor import neighbours
from pipeline_local.doctor.finding import Finding
from pipeline_local.errors import NeighbourLostError
from tests.apart import apart

LINK = {"latency_seconds": 1e-4, "bytes_per_second": 1e9}
OWN = [Finding("PASS", "torch 2.14", name="libraries"), Finding("PASS", "8 CPUs", name="cpus")]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_measure(run_ranks, ranks):
    def measured(rank_info):
        return [asdict(f) for f in neighbours.together(rank_info, OWN)]

    first, *others = run_ranks(measured, ranks)
    assert others == [[]] * (ranks - 1)
    names = [finding["name"] for finding in first]
    assert names == ["", "clocks", *["link"] * (ranks - 1)]
    edges = [f["values"]["upstream"] for f in first if f["name"] == "link"]
    assert edges == list(range(ranks - 1))
    assert all(f["values"]["bytes_per_second"] > 0 for f in first if f["name"] == "link")


def test_hosts_that_no_launcher_tells_apart_are_compared(run_ranks):
    """Only the first rank of each host reports what its host has found."""

    def measured(rank_info, together):
        own = [Finding("WARN", "a slow disk", name="disk")] if rank_info.rank else []
        rank_info = rank_info if together else apart(rank_info)
        return [f.name for f in neighbours.together(rank_info, own)]

    assert run_ranks(measured, 2, False)[0] == ["", "clocks", "link", "disk, rank 1"]
    assert run_ranks(measured, 2, True)[0] == ["", "clocks", "link"]


def test_a_clock_that_is_late_is_noticed(run_ranks, monkeypatch):
    """By an hour, on the last of three ranks."""

    def measured(rank_info):
        if rank_info.rank == 2:
            clock = time.time
            neighbours.time = type("Clock", (), {"time": staticmethod(lambda: clock() - 3600)})
        return [asdict(f) for f in neighbours.together(rank_info, [])]

    (clocks,) = (f for f in run_ranks(measured, 3)[0] if f["name"] == "clocks")
    assert (clocks["status"], "chrony" in clocks["remedy"]) == ("WARN", True)
    assert clocks["found"].startswith("rank 2")
    skews = clocks["values"]["skews"]
    assert skews[2] == pytest.approx(3600, abs=30)
    assert abs(skews[1]) < 30


def test_ranks_that_do_not_come(monkeypatch):
    monkeypatch.setattr(neighbours, "LIMIT_SECONDS", 0.01)

    def late(rank_info, own, at):
        at[0] = "connecting all ranks"
        time.sleep(0.5)

    monkeypatch.setattr(neighbours, "_measured", late)
    (finding,) = neighbours.together(None, [])
    assert (finding.status, "'connecting all ranks'" in finding.found) == ("FAIL", True)
    assert "GLOO_SOCKET_IFNAME" in finding.remedy


def test_a_rank_that_is_lost(monkeypatch):
    def lost(*_):
        raise NeighbourLostError(1, "closed")

    monkeypatch.setattr(neighbours, "_measured", lost)
    with pytest.raises(NeighbourLostError):
        list(neighbours.together(None, []))


@pytest.mark.parametrize(
    ("link", "status"),
    [
        ({}, "PASS"),
        ({"latency_seconds": 0.1}, "WARN"),
        ({"bytes_per_second": 1e6}, "WARN"),
        ({"at_least": True}, "WARN"),
    ],
)
def test_slow_links(link, status):
    finding = neighbours._link(3, {"link": LINK | link})
    assert (finding.status, finding.found[:7]) == (status, "2 -> 3:")


def test_other_hosts_are_compared():
    """Other versions are a warning; another number of CPUs is none of anybody's business."""
    own = [asdict(finding) for finding in OWN]
    other = [own[0] | {"found": "torch 2.11"}, own[1] | {"found": "64 CPUs"}]
    failing = [own[0], own[1] | {"status": "FAIL"}]
    reports = [{"own": own}, {"own": []}, {"own": other}, {"own": failing}, {"own": own}]
    versions, cpus = neighbours._other_hosts(json.loads(json.dumps(reports)))
    assert (versions.status, versions.name) == ("WARN", "libraries, rank 2")
    assert (cpus.status, cpus.name) == ("FAIL", "cpus, rank 3")
