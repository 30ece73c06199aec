"""A link between two ranks, or two threads of this process: all ranks get the same numbers."""

import pytest
import torch
import torch.distributed as dist

from pipeline_local.planning.measure_link import LinkBenchmark
from pipeline_local.ranks.rank import joined

CPU = torch.device("cpu")


def test_between_threads():
    link = LinkBenchmark(2**20, 3, CPU).between_threads()
    assert 0 < link.latency_seconds < 1
    assert link.seconds(2**20) > link.latency_seconds


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
