"""The two edges of a stage: the data or a neighbour upstream, a neighbour or nobody downstream."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.data.skipping import Skipped
from pipeline_local.pipeline.edge import Nowhere
from pipeline_local.pipeline.p2p import GlooWire, NcclWire, StagedWire, WatchedWire, Wire
from pipeline_local.pipeline.source import Source
from pipeline_local.pipeline.transport import Inlet, Outlet, Receiver, Sender
from pipeline_local.ranks.rank import NO_LIMIT, Kind, Place, connecting, device_backend
from pipeline_local.watch.status import Whereabouts


@dataclass(frozen=True)
class Wires:
    """A stage's ends of the wires to its neighbours; None where it has none.

    Attributes:
        up: activations and signals come in.
        down: activations and signals go out.
        back_up: input gradients go back.
        back_down: input gradients come back.
    """

    up: Wire | None
    down: Wire | None
    back_up: Wire | None = None
    back_down: Wire | None = None


def lay(blueprint: Blueprint, place: Place, kind: Kind, whereabouts: Whereabouts) -> Wires:
    """Make this stage's wires; all ranks call it together.

    Args:
        blueprint: the run.
        place: this rank; its stage has the same number.
        kind: how the ranks talk.
        whereabouts: of this rank; waits on the wires are noted there.
    """
    up, down = wires(place, kind, whereabouts)
    if not blueprint.schedule.has_feedback:
        return Wires(up, down)
    # A receive that nccl has posted keeps its device busy until the message is there, and whatever
    # the host waits for on that device (pinned memory, a kernel that is loaded) waits, too. Down
    # the chain that ends; with a message from below it would be a cycle (seen on an H200).
    backward: Kind = "staged" if kind == "nccl" else kind
    return Wires(up, down, *wires(place, backward, whereabouts, upwards=True))


def connect(
    blueprint: Blueprint,
    modules: range,
    place: Place,
    laid: Wires,
    start: int,
    skipped: Skipped | None = None,
) -> tuple[Source | Inlet, Nowhere | Outlet]:
    """This stage's edges over its wires.

    Args:
        blueprint: the run.
        modules: of this stage.
        place: this rank; its stage has the same number.
        laid: this stage's wires; no other edges use them any more.
        start: optimizer steps already done.
        skipped: gets the images that the data passes over.
    """
    return (
        _inlet(blueprint, modules[0] - 1, laid.up, laid.back_up, start, place.device)
        if laid.up
        else _data(blueprint, place, start, skipped),
        _outlet(blueprint, modules[-1], laid.down, laid.back_down, start, place.device)
        if laid.down
        else Nowhere(),
    )


def _data(blueprint: Blueprint, place: Place, start: int, skipped: Skipped | None) -> Source:
    schedule = blueprint.schedule
    return Source(
        blueprint.config,
        blueprint.info,
        schedule.actions(start),
        range(start, schedule.num_steps),
        place.device,
        blueprint.dtype,
        skipped,
    )


def _inlet(
    blueprint: Blueprint,
    index: int,
    wire: Wire,
    back: Wire | None,
    start: int,
    device: torch.device,
) -> Inlet:
    contract, schedule = blueprint.contract(index), blueprint.schedule
    messages = Receiver(wire, contract.traffic(schedule, start), device)
    if back is None:
        return Inlet(messages)
    replies = contract.feedback(schedule, start)
    return Inlet(messages, Sender(back, replies, device, schedule.most_unheeded))


def _outlet(
    blueprint: Blueprint,
    index: int,
    wire: Wire,
    back: Wire | None,
    start: int,
    device: torch.device,
) -> Outlet:
    contract, schedule = blueprint.contract(index), blueprint.schedule
    messages = Sender(wire, contract.traffic(schedule, start), device)
    if back is None:
        return Outlet(messages)
    return Outlet(messages, Receiver(back, contract.feedback(schedule, start), device))


def wires(
    place: Place, kind: Kind, whereabouts: Whereabouts | None = None, upwards: bool = False
) -> tuple[Wire | None, Wire | None]:
    """This stage's wires to its upstream and downstream neighbours (None at the ends).

    Every rank calls this with the same arguments. Each edge and direction gets a two-rank group of
    its own; all ranks make them in one order, even edges first, so that no rank is in two of a
    round. Lazy creation in different orders hangs (Megatron-LM#5240). Each wire is then used once,
    in its direction, so that its connection stands before the first step.

    Args:
        place: this rank.
        kind: how the ranks talk.
        whereabouts: of this rank; waits on the wires are noted there.
        upwards: messages will flow from each stage to its upstream neighbour.
    """
    upstream: Wire | None = None
    downstream: Wire | None = None
    at = whereabouts or Whereabouts()
    edges = range(place.world_size - 1)
    for edge in [*edges[::2], *edges[1::2]]:
        backend = device_backend(place.device) if kind == "nccl" else "gloo"
        with connecting():
            group = dist.new_group([edge, edge + 1], timeout=NO_LIMIT, backend=backend)
        if not isinstance(group, dist.ProcessGroup):
            continue  # an edge of others
        if place.rank == edge:
            downstream = WatchedWire(_wire(kind, group, edge + 1, place.device), edge + 1, at)
            _connect(downstream, place.device, sends=not upwards)
        else:
            upstream = WatchedWire(_wire(kind, group, edge, place.device), edge, at)
            _connect(upstream, place.device, sends=upwards)
    return upstream, downstream


def _connect(wire: Wire, device: torch.device, sends: bool) -> None:
    if sends:
        wire.isend(torch.zeros(1, device=device)).wait()
    else:
        wire.irecv((1,), torch.float32).wait()


def _wire(kind: Kind, group: dist.ProcessGroup, peer: int, device: torch.device) -> Wire:
    if kind == "gloo":
        return GlooWire(group, peer)
    return (NcclWire if kind == "nccl" else StagedWire)(group, peer, device)
