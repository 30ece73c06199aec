"""A link between two ranks, or two threads of this process: all ranks get the same numbers."""

from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from pipeline_local.placement.costs import Link
from pipeline_local.planning import measure_link
from pipeline_local.planning.measure_link import LinkBenchmark
from pipeline_local.ranks.join import joined

CPU = torch.device("cpu")


def test_between_threads():
    link = LinkBenchmark(2**20, 3, CPU).between_threads()
    assert 0 < link.latency_seconds < 1
    assert link.seconds(2**20) > link.latency_seconds


@pytest.mark.parametrize(
    ("short", "long", "link"),
    [
        ([5.0, 2.0, 9.0], [70.0, 12.0, 30.0], Link(1.0, 100.0)),
        ([9.0, 8.0, 9.0], [70.0, 8.0, 30.0], Link(4.0, 125.0, at_least=True)),
        ([9.0, 8.0, 9.0], [70.0, 4.0, 30.0], Link(4.0, 250.0, at_least=True)),
    ],
)
def test_a_busy_host_adds_to_some_messages(monkeypatch, short, long, link):
    """The shortest of each size counts. Where the large one is none the longer, the bandwidth is at
    least what it would be without any latency."""
    times = accumulate(t for pair in zip(short, long, strict=True) for s in pair for t in (0.0, s))
    clock = SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(measure_link, "time", clock)
    monkeypatch.setattr(measure_link, "WARMUP", 1)
    found = LinkBenchmark(1000, 2, CPU)._ask(lambda _: None, lambda _: None)
    assert found == link


def test_all_messages_share_one_buffer():
    messages = LinkBenchmark(2**20, 3, CPU)._messages()
    assert {len(message) for message in messages} == {1, 2**20}
    assert len({message.untyped_storage().data_ptr() for message in messages}) == 1


@pytest.mark.parametrize(("ranks", "own_group"), [(2, False), (3, False), (3, True)])
def test_between_ranks(run_ranks, ranks, own_group):
    """Each gets its upstream link, the first one its downstream link."""

    def measured(rank_info):
        with joined(rank_info):
            group = dist.new_group(backend="gloo") if own_group else None
            return LinkBenchmark(2**20, 3, CPU, group).between_ranks(rank_info.rank, ranks)

    first, *others = run_ranks(measured, ranks)
    assert all(link.bytes_per_second > 2**20 for link in others)
    assert first == others[0]
    assert len(set(others)) == ranks - 1
