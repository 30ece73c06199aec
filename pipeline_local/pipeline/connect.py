"""The two edges of a stage: data or a neighbour upstream, a neighbour or nothing downstream."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.contract import Contract, Dealt, Spec
from pipeline_local.data.share import Share
from pipeline_local.data.skipped import Skipped
from pipeline_local.engines.replicas import Replicas
from pipeline_local.pipeline.dealing import DealtInlet, DealtOutlet
from pipeline_local.pipeline.edge import Nowhere
from pipeline_local.pipeline.source import Source
from pipeline_local.pipeline.transport import Inlet, Outlet, Receiver, Sender
from pipeline_local.ranks.join import connecting
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.ranks.p2p import (
    HOST_BACKEND,
    P2P,
    P2PS,
    P2PKind,
    Pending,
    by_device,
    device_backend,
    lagged_kind,
)
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.watch.status import EVERYONE, RankStatus

NO_LIMIT = timedelta(days=1)
"""The timeout of a transfer: none in effect, as the watchdog limits how long a rank waits."""


@dataclass(frozen=True)
class P2PEnds:
    """A rank's point-to-point connections to the ranks that it shares edges with, by their numbers.

    Attributes:
        upstream: receive activations and signals.
        downstream: send activations and signals.
        lagged_upstream: send lagged messages; none where there are no such messages.
        lagged_downstream: receive lagged messages.
    """

    upstream: Mapping[int, P2P]
    downstream: Mapping[int, P2P]
    lagged_upstream: Mapping[int, P2P] = field(default_factory=dict)
    lagged_downstream: Mapping[int, P2P] = field(default_factory=dict)


def open_edges(
    blueprint: Blueprint,
    rank_info: RankInfo,
    kind: P2PKind,
    status: RankStatus,
    mesh: Mesh,
) -> P2PEnds:
    """Opens this rank's connections to its neighbours; all ranks call it together.

    Args:
        blueprint: the run.
        rank_info: this rank.
        kind: the point-to-point transport between the ranks.
        status: the status of this rank, which notes waits on the connections.
        mesh: of all ranks.
    """
    options = blueprint.config.parallel.args
    upstream, downstream = open_p2p(rank_info, kind, mesh, status, options=options)
    if not blueprint.run_plan.lag.contents:
        return P2PEnds(upstream, downstream)
    backward = lagged_kind(kind)  # one that is derived has no options
    own = options if backward == kind else None
    lagged = open_p2p(rank_info, backward, mesh, status, to_upstream=True, options=own)
    return P2PEnds(upstream, downstream, *lagged)


def connect(
    blueprint: Blueprint,
    modules: range,
    rank_info: RankInfo,
    ends: P2PEnds,
    start: int,
    mesh: Mesh,
    skipped: Skipped | None = None,
) -> tuple[Source | Inlet | DealtInlet, Nowhere | Outlet | DealtOutlet]:
    """Returns this rank's edges, over its connections.

    Args:
        blueprint: the run.
        modules: the modules of this rank's stage.
        rank_info: this rank.
        ends: this rank's connections; no other edges may use them at the same time.
        start: the optimizer steps already done.
        mesh: of all ranks.
        skipped: collects the images that the data skips.
    """
    here = _RankEdges(blueprint, modules, rank_info, ends, start, mesh)
    return here.upstream(skipped), here.downstream()


class _RankEdges:
    """One rank, as its edges see it."""

    def __init__(
        self,
        blueprint: Blueprint,
        modules: range,
        rank_info: RankInfo,
        ends: P2PEnds,
        start: int,
        mesh: Mesh,
    ) -> None:
        self._blueprint = blueprint
        self._plan = blueprint.run_plan
        self._modules = modules
        self._device = rank_info.device
        self._mesh = mesh
        self._stage = mesh.stage(rank_info.rank)
        self._ends = ends
        self._start = start
        parts = range(self._plan.config.train.microbatches)
        self._own = [j for j in parts if mesh.rank(self._stage, j) == rank_info.rank]

    def upstream(self, skipped: Skipped | None) -> Source | Inlet | DealtInlet:
        ends = self._ends.upstream
        if not ends:
            return self._data(skipped)
        contract = self._blueprint.contract(self._modules[0] - 1)
        inlets = {peer: self._inlet(contract, peer) for peer in ends}
        if len(inlets) == 1:
            return inlets.popitem()[1]
        return DealtInlet(inlets, *self._turns(contract, self._stage - 1))

    def downstream(self) -> Nowhere | Outlet | DealtOutlet:
        ends = self._ends.downstream
        if not ends:
            return Nowhere()
        contract = self._blueprint.contract(self._modules[-1])
        outlets = {peer: self._outlet(contract, peer) for peer in ends}
        if len(outlets) == 1:
            return outlets.popitem()[1]
        return DealtOutlet(outlets, *self._turns(contract, self._stage + 1))

    def _data(self, skipped: Skipped | None) -> Source:
        return Source(
            self._blueprint.config,
            self._blueprint.info,
            self._plan.actions(self._start),
            range(self._start, self._plan.num_steps),
            self._device,
            self._blueprint.dtype,
            skipped,
            Share(self._plan.config.train.microbatches, tuple(self._own)),
        )

    def _inlet(self, contract: Contract, peer: int) -> Inlet:
        shared = self._shared(peer, self._stage - 1)
        messages = _of(shared, contract.traffic(self._plan, self._start))
        receiver = Receiver(self._ends.upstream[peer], messages, self._device)
        if peer not in self._ends.lagged_upstream:
            return Inlet(receiver)
        lagged = _of(shared, contract.lagged_traffic(self._plan, self._start))
        back = self._ends.lagged_upstream[peer]
        return Inlet(receiver, Sender(back, lagged, self._device, self._plan.most_pending))

    def _outlet(self, contract: Contract, peer: int) -> Outlet:
        shared = self._shared(peer, self._stage + 1)
        messages = _of(shared, contract.traffic(self._plan, self._start))
        sender = Sender(self._ends.downstream[peer], messages, self._device)
        if peer not in self._ends.lagged_downstream:
            return Outlet(sender)
        lagged = _of(shared, contract.lagged_traffic(self._plan, self._start))
        back = Receiver(self._ends.lagged_downstream[peer], lagged, self._device)
        below = self._modules[-1] + 1
        return Outlet(sender, back, partial(self._plan.under_way, below, own=shared))

    def _shared(self, peer: int, stage: int) -> set[int]:
        """The microbatches that this rank and one of another stage have in common."""
        return {j for j in self._own if self._mesh.rank(stage, j) == peer}

    def _turns(self, contract: Contract, stage: int) -> tuple[Iterator[int], Iterator[int]]:
        """The ranks of another stage, in the order of the messages, and of the lagged ones."""

        def ranks(traffic: Iterator[Dealt]) -> Iterator[int]:
            return (self._mesh.rank(stage, j) for j, _ in traffic if j in self._own)

        return (
            ranks(contract.traffic(self._plan, self._start)),
            ranks(contract.lagged_traffic(self._plan, self._start)),
        )


def _of(shared: set[int], traffic: Iterator[Dealt]) -> Iterator[tuple[Spec, ...]]:
    """The messages of some microbatches."""
    return (specs for microbatch, specs in traffic if microbatch in shared)


def open_p2p(
    rank_info: RankInfo,
    kind: P2PKind,
    mesh: Mesh,
    status: RankStatus | None = None,
    to_upstream: bool = False,
    options: Mapping[str, Any] | None = None,
) -> tuple[dict[int, P2P], dict[int, P2P]]:
    """Opens connections to the upstream and the downstream neighbours, by their ranks.

    Every rank calls this with the same arguments. Each edge and direction gets a two-rank group of
    its own; all ranks make them in one order, even edges first, so that no rank of a chain is in
    two of a round. Lazy creation in different orders hangs (Megatron-LM#5240). Each connection is
    then used once, in its direction, so that it is established before the first step.

    Args:
        rank_info: this rank.
        kind: the point-to-point transport between the ranks.
        mesh: of all ranks.
        status: the status of this rank, which notes waits on the connections.
        to_upstream: whether messages flow from each stage to its upstream neighbour.
        options: of the transport.
    """
    upstream: dict[int, P2P] = {}
    downstream: dict[int, P2P] = {}
    at = status or RankStatus()
    chosen = P2PS.options(kind, options or {})
    backend = group_backend(rank_info, kind)

    def make(group: dist.ProcessGroup, peer: int) -> P2P:
        given = {"group": group, "peer": peer, "device": rank_info.device}
        made: P2P = P2PS.make(kind, P2P, given, chosen)
        return WatchedP2P(made, peer, at)

    for above, below in mesh.edges():
        with connecting():
            group = dist.new_group([above, below], timeout=NO_LIMIT, backend=backend)
        if not isinstance(group, dist.ProcessGroup):
            continue  # an edge between other ranks
        if rank_info.rank == above:
            downstream[below] = make(group, below)
            _connect(downstream[below], rank_info.device, sends=not to_upstream)
        else:
            upstream[above] = make(group, above)
            _connect(upstream[above], rank_info.device, sends=to_upstream)
    return upstream, downstream


def open_replicas(
    mesh: Mesh, rank_info: RankInfo, kind: P2PKind, status: RankStatus | None = None
) -> Replicas:
    """Opens the group of the replicas of this rank's stage; all ranks call it together.

    The group is then used once, so that it is established before the first step: there a receive
    is posted already, which keeps a device busy that has to make a connection.

    Args:
        mesh: of all ranks.
        rank_info: this rank.
        kind: the point-to-point transport between the ranks, which says what groups can use.
        status: the status of this rank, which notes waits for the other replicas.
    """
    at = status or RankStatus()
    replicas = Replicas()
    for stage in range(mesh.num_stages):
        if mesh.replicas[stage] == 1:
            continue
        with connecting():
            group = dist.new_group(
                list(mesh.ranks(stage)), timeout=NO_LIMIT, backend=group_backend(rank_info, kind)
            )
        if isinstance(group, dist.ProcessGroup):
            replicas = Replicas(group, partial(together, at))
    (total,) = replicas.sum([torch.ones((), device=rank_info.device)])()
    with replicas.waiting():
        met = int(total.item())
    assert met == replicas.size, "one of each"
    return replicas


@contextmanager
def together(status: RankStatus) -> Iterator[None]:
    """A context in which a rank waits for several others, such as the replicas of its stage.

    Raises:
        NeighbourLostError: one of them is gone.
    """
    with status.waiting(EVERYONE), connecting():
        yield


def group_backend(rank_info: RankInfo, kind: P2PKind) -> str:
    """Returns the backend of groups whose ranks exchange tensors of their devices."""
    return device_backend(rank_info.device) if by_device(kind) else HOST_BACKEND


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
