"""The two edges of a stage: data or a neighbour upstream, a neighbour or nothing downstream."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.data.images.skipping import Skipped
from pipeline_local.pipeline.edge import Nowhere
from pipeline_local.pipeline.source import Source
from pipeline_local.pipeline.transport import Inlet, Outlet, Receiver, Sender
from pipeline_local.ranks.p2p import (
    HOST_BACKEND,
    P2P,
    P2PS,
    P2PKind,
    Pending,
    by_device,
    lagged_kind,
)
from pipeline_local.ranks.rank import NO_LIMIT, RankInfo, connecting, device_backend
from pipeline_local.watch.status import RankStatus


@dataclass(frozen=True)
class P2PEnds:
    """A stage's point-to-point connections to its neighbours; None where it has none.

    Attributes:
        upstream: receives activations and signals.
        downstream: sends activations and signals.
        lagged_upstream: sends lagged messages.
        lagged_downstream: receives lagged messages.
    """

    upstream: P2P | None
    downstream: P2P | None
    lagged_upstream: P2P | None = None
    lagged_downstream: P2P | None = None


def open_edges(
    blueprint: Blueprint, rank_info: RankInfo, kind: P2PKind, status: RankStatus
) -> P2PEnds:
    """Opens this stage's connections to its neighbours; all ranks call it together.

    Args:
        blueprint: the run.
        rank_info: this rank; its stage has the same number.
        kind: the point-to-point transport between the ranks.
        status: the status of this rank, which notes waits on the connections.
    """
    options = blueprint.config.parallel.args
    upstream, downstream = open_p2p(rank_info, kind, status, options=options)
    if not blueprint.run_plan.lag.contents:
        return P2PEnds(upstream, downstream)
    backward = lagged_kind(kind)  # one that is derived has no options
    own = options if backward == kind else None
    lagged = open_p2p(rank_info, backward, status, to_upstream=True, options=own)
    return P2PEnds(upstream, downstream, *lagged)


def connect(
    blueprint: Blueprint,
    modules: range,
    rank_info: RankInfo,
    ends: P2PEnds,
    start: int,
    skipped: Skipped | None = None,
) -> tuple[Source | Inlet, Nowhere | Outlet]:
    """Returns this stage's edges, over its connections.

    Args:
        blueprint: the run.
        modules: the modules of this stage.
        rank_info: this rank; its stage has the same number.
        ends: this stage's connections; no other edges may use them at the same time.
        start: the optimizer steps already done.
        skipped: collects the images that the data skips.
    """
    return (
        _inlet(
            blueprint, modules[0] - 1, ends.upstream, ends.lagged_upstream, start, rank_info.device
        )
        if ends.upstream
        else _data(blueprint, rank_info, start, skipped),
        _outlet(
            blueprint, modules[-1], ends.downstream, ends.lagged_downstream, start, rank_info.device
        )
        if ends.downstream
        else Nowhere(),
    )


def _data(blueprint: Blueprint, rank_info: RankInfo, start: int, skipped: Skipped | None) -> Source:
    run_plan = blueprint.run_plan
    return Source(
        blueprint.config,
        blueprint.info,
        run_plan.actions(start),
        range(start, run_plan.num_steps),
        rank_info.device,
        blueprint.dtype,
        skipped,
    )


def _inlet(
    blueprint: Blueprint,
    index: int,
    p2p: P2P,
    back: P2P | None,
    start: int,
    device: torch.device,
) -> Inlet:
    contract, run_plan = blueprint.contract(index), blueprint.run_plan
    messages = Receiver(p2p, contract.traffic(run_plan, start), device)
    if back is None:
        return Inlet(messages)
    lagged = contract.lagged_traffic(run_plan, start)
    return Inlet(messages, Sender(back, lagged, device, run_plan.most_pending))


def _outlet(
    blueprint: Blueprint,
    index: int,
    p2p: P2P,
    back: P2P | None,
    start: int,
    device: torch.device,
) -> Outlet:
    contract, run_plan = blueprint.contract(index), blueprint.run_plan
    messages = Sender(p2p, contract.traffic(run_plan, start), device)
    if back is None:
        return Outlet(messages)
    return Outlet(messages, Receiver(back, contract.lagged_traffic(run_plan, start), device))


def open_p2p(
    rank_info: RankInfo,
    kind: P2PKind,
    status: RankStatus | None = None,
    to_upstream: bool = False,
    options: Mapping[str, Any] | None = None,
) -> tuple[P2P | None, P2P | None]:
    """Opens connections to the upstream and the downstream neighbour (None at the ends).

    Every rank calls this with the same arguments. Each edge and direction gets a two-rank group of
    its own; all ranks make them in one order, even edges first, so that no rank is in two of a
    round. Lazy creation in different orders hangs (Megatron-LM#5240). Each connection is then used
    once, in its direction, so that it is established before the first step.

    Args:
        rank_info: this rank.
        kind: the point-to-point transport between the ranks.
        status: the status of this rank, which notes waits on the connections.
        to_upstream: whether messages flow from each stage to its upstream neighbour.
        options: of the transport.
    """
    upstream: P2P | None = None
    downstream: P2P | None = None
    at = status or RankStatus()
    chosen = P2PS.options(kind, options or {})

    def make(group: dist.ProcessGroup, peer: int) -> P2P:
        given = {"group": group, "peer": peer, "device": rank_info.device}
        made: P2P = P2PS.make(kind, P2P, given, chosen)
        return made

    edges = range(rank_info.world_size - 1)
    for edge in [*edges[::2], *edges[1::2]]:
        backend = device_backend(rank_info.device) if by_device(kind) else HOST_BACKEND
        with connecting():
            group = dist.new_group([edge, edge + 1], timeout=NO_LIMIT, backend=backend)
        if not isinstance(group, dist.ProcessGroup):
            continue  # an edge between other ranks
        if rank_info.rank == edge:
            downstream = WatchedP2P(make(group=group, peer=edge + 1), edge + 1, at)
            _connect(downstream, rank_info.device, sends=not to_upstream)
        else:
            upstream = WatchedP2P(make(group=group, peer=edge), edge, at)
            _connect(upstream, rank_info.device, sends=to_upstream)
    return upstream, downstream


def _connect(p2p: P2P, device: torch.device, sends: bool) -> None:
    if sends:
        p2p.isend(torch.zeros(1, device=device)).wait()
    else:
        p2p.irecv((1,), torch.float32).wait()


class WatchedP2P:
    """Any transport; while the host waits for it, the rank's status names the peer.

    Args:
        p2p: does the work.
        peer: global rank of the other end.
        status: of this rank.
    """

    def __init__(self, p2p: P2P, peer: int, status: RankStatus) -> None:
        self._p2p = p2p
        self._peer = peer
        self._status = status

    def isend(self, tensor: Tensor) -> Pending:
        """Start sending."""
        return self._watched(self._p2p.isend(tensor))

    def irecv(self, shape: tuple[int, ...], dtype: torch.dtype) -> Pending:
        """Post a receive."""
        return self._watched(self._p2p.irecv(shape, dtype))

    def _watched(self, pending: Pending) -> Pending:
        def wait() -> Tensor:
            with self._status.waiting(self._peer):
                return pending.wait()

        return Pending(pending.tensor, wait)
