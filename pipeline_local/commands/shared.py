"""What several commands do."""

import argparse
from collections.abc import Callable, Sequence

from pipeline_local import configfile
from pipeline_local.config import Config
from pipeline_local.ranks.rank import RankInfo

Run = dict[str, Callable[[argparse.Namespace, Sequence[str]], int]]
"""What commands do, by the name that their parsers give as `run`."""


def read(options: argparse.Namespace) -> tuple[Config, RankInfo, int]:
    """The configuration, this rank, and the number of stages."""
    config = configfile.load(options.config, options.overrides)
    rank_info = RankInfo.from_environment()
    num_stages = rank_info.mesh(config.parallel).num_stages
    return config.on_stages(num_stages), rank_info, num_stages
