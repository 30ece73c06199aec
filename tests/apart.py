"""Ranks under a launcher that says only RANK and WORLD_SIZE, as Kubernetes' Indexed Job does."""

from dataclasses import replace
from types import SimpleNamespace

from pipeline_local.ranks import rank
from pipeline_local.ranks.rank import RankInfo


def apart(rank_info: RankInfo) -> RankInfo:
    """This rank, alone on a host of its own name; for forked ranks, as their processes end."""
    rank.socket = SimpleNamespace(gethostname=lambda: f"host-{rank_info.rank}")
    return replace(rank_info, located=False)
