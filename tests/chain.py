"""The connections of a rank in a chain, where each neighbour is one rank."""

import torch.distributed as dist

from pipeline_local.pipeline.connect import open_p2p
from pipeline_local.ranks.mesh import chain


def open_chain(rank_info, kind):
    """The connection to the upstream and to the downstream neighbour; None at the ends.

    No rank goes on before all are connected: the first one serves the store that they meet at, and
    may end at once. A run has more to wait for.
    """
    upstream, downstream = open_p2p(rank_info, kind, chain(rank_info.world_size))
    if rank_info.world_size > 1:
        dist.barrier()
    return next(iter(upstream.values()), None), next(iter(downstream.values()), None)
