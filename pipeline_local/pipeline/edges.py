"""The two edges of a stage: the data or a neighbour upstream, a neighbour or nobody downstream."""

from dataclasses import dataclass

import torch

from pipeline_local.data.images.skipping import Skipped
from pipeline_local.pipeline.blueprint import Blueprint
from pipeline_local.pipeline.place import Kind, Place, wires
from pipeline_local.pipeline.source import Source
from pipeline_local.pipeline.stage import Nowhere
from pipeline_local.pipeline.transport import Inlet, Outlet, Receiver, Sender
from pipeline_local.pipeline.wires import Wire
from pipeline_local.record.whereabouts import Whereabouts


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
    place: Place,
    laid: Wires,
    start: int,
    skipped: Skipped | None = None,
) -> tuple[Source | Inlet, Nowhere | Outlet]:
    """This stage's edges over its wires.

    Args:
        blueprint: the run.
        place: this rank; its stage has the same number.
        laid: this stage's wires; no other edges use them any more.
        start: optimizer steps already done.
        skipped: gets the images that the data passes over.
    """
    modules = blueprint.stages(place.world_size)[place.rank]
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
