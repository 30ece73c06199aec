"""What the first rank finds out and hands out, and what becomes of its refusal."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from pipeline_local.configfile import configfile
from pipeline_local.errors import NeighbourLostError, RefusedElsewhereError, UserError
from pipeline_local.placement import replication
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training import agreement
from pipeline_local.watch.status import EVERYONE, RankStatus
from pipeline_local.watch.store import RankStore


def parse(replicas, microbatches=2):
    return configfile.parse(
        {
            "model": {"name": "mlp", "hidden": 8, "depth": 6},
            "modules": {"count": 2},
            "data": {"name": "digits", "batch_size": 16},
            "train": {"steps": 2, "microbatches": microbatches},
            "head": {"name": "linear"},
            "parallel": {"stages": 2, "replicas": replicas},
        }
    )


def share(store, rank, ranks, config):
    """The first rank goes first, so that nobody waits."""
    rank_info = RankInfo(rank, ranks, rank, ranks)
    return agreement.share_replicas(config, rank_info, RankStore(store, rank, ranks))


def test_all_ranks_get_the_replicas_that_the_first_one_finds(monkeypatch):
    """The others count no costs."""
    asked, found = [], replication.resolved

    def resolved(config, ranks):
        asked.append(ranks)
        return found(config, ranks)

    monkeypatch.setattr(agreement, "resolved", resolved)
    store, config = dist.HashStore(), parse("auto")
    configs = [share(store, rank, 3, config) for rank in range(3)]
    assert configs[0].parallel.replicas == (2, 1), "64 pixels come in, 8 units go on"
    assert configs[1:] == [configs[0]] * 2
    assert asked == [3]


def test_a_refusal_ends_all_of_them():
    store, config = dist.HashStore(), parse("auto")
    with pytest.raises(UserError, match="5 ranks cannot share 2 microbatches on 2 stages"):
        share(store, 0, 5, config)
    for rank in range(1, 5):
        with pytest.raises(RefusedElsewhereError):
            share(store, rank, 5, config)


@pytest.mark.parametrize("replicas", [2, [1, 2]])
def test_numbers_need_no_agreement(replicas):
    store, config = dist.HashStore(), parse(replicas)
    assert share(store, 1, 3, config) is config
    assert store.num_keys() == 0


@pytest.mark.parametrize("where", ["new_group", "broadcast"])
def test_a_rank_that_is_gone_while_weights_are_shared_is_a_lost_one(where, monkeypatch):
    """And who waits for all others is known to do so."""
    status, peers = RankStatus(), []

    def call(result, name):
        peers.append(status.now.peer)
        if name == where:
            raise RuntimeError("Connection closed by peer")
        return result

    group = dist.ProcessGroup(0, 2)
    monkeypatch.setattr(dist, "new_group", lambda **_: call(group, "new_group"))
    monkeypatch.setattr(dist, "broadcast", lambda *_, **__: call(None, "broadcast"))
    classifier = SimpleNamespace(values={"weight": torch.ones(1)})
    network = SimpleNamespace(blocks=[], classifier=classifier)
    with pytest.raises(NeighbourLostError):
        agreement.share_values(network, RankInfo(0, 2), status)
    assert set(peers) == {EVERYONE}
