"""What several commands do."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline_local.config import Config
from pipeline_local.configfile import configfile
from pipeline_local.ranks.rank import RankInfo

Commands = dict[str, Callable[[argparse.Namespace, Sequence[str]], int]]
"""What commands do, by the name that their parsers give as `run`."""


def read(options: argparse.Namespace, single: bool = False) -> tuple[Config, RankInfo, int]:
    """The configuration, this rank, and the number of stages.

    Args:
        options: name the configuration.
        single: whether to take one replica of each stage, whatever it says.
    """
    config = configfile.load(options.config, options.overrides)
    if single:
        several, stages = config.parallel.replicas, config.parallel.stages
        stages = len(several) if isinstance(several, tuple) else stages
        parallel = replace(config.parallel, replicas=1, stages=stages)
        config = replace(config, parallel=parallel)
    rank_info = RankInfo.from_environment().placed(config.parallel)
    num_stages = rank_info.mesh(config.parallel).num_stages
    return config.on_stages(num_stages), rank_info, num_stages


def on_new_ranks(
    count: int, config: Config, rank_info: RankInfo, arguments: Sequence[str]
) -> int | None:
    """Run a command on all its ranks, where it needs several and this process is none of them.

    Args:
        count: the ranks that it needs.
        config: the configuration, which says how they talk.
        rank_info: this process.
        arguments: of the command, for each rank.

    Returns:
        Their exit code; None: this process is the only rank, or one of those that were started.
    """
    if count == 1 or rank_info.launched:
        return None
    from pipeline_local.ranks.launcher import start_ranks  # it loads torch's elastic agent

    RankInfo.of_host(count).p2p_kind(config.parallel)
    return start_ranks(count, arguments)
