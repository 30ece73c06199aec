"""The connections of a rank in a chain, where each neighbour is one rank."""

from pipeline_local.pipeline.connect import open_p2p


def open_chain(rank_info, kind):
    """The connection to the upstream and to the downstream neighbour; None at the ends."""
    upstream, downstream = open_p2p(rank_info, kind)
    return next(iter(upstream.values()), None), next(iter(downstream.values()), None)
