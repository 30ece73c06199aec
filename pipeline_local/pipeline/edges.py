"""The two edges of a stage: the data or a neighbour upstream, a neighbour or nobody downstream."""

import torch

from pipeline_local.data.skipping import Skipped
from pipeline_local.pipeline.blueprint import Blueprint
from pipeline_local.pipeline.place import Kind, Place, wires
from pipeline_local.pipeline.source import Source
from pipeline_local.pipeline.stage import Nowhere
from pipeline_local.pipeline.transport import Inlet, Outlet, Receiver, Sender
from pipeline_local.pipeline.wires import Wire
from pipeline_local.record.whereabouts import Whereabouts


def connect(
    blueprint: Blueprint,
    place: Place,
    kind: Kind,
    start: int,
    whereabouts: Whereabouts,
    skipped: Skipped | None = None,
) -> tuple[Source | Inlet, Nowhere | Outlet]:
    """Connect this rank's stage with its neighbours; all ranks call it together.

    Args:
        blueprint: the run.
        place: this rank; its stage has the same number.
        kind: how the ranks talk.
        start: optimizer steps already done.
        whereabouts: of this rank; waits on the edges are noted there.
        skipped: gets the images that the data passes over.
    """
    up, down = wires(place, kind, whereabouts)
    back_up, back_down = None, None
    if blueprint.schedule.has_feedback:
        back_up, back_down = wires(place, kind, whereabouts, upwards=True)
    modules = blueprint.stages(place.world_size)[place.rank]
    return (
        _inlet(blueprint, modules[0] - 1, up, back_up, start, place.device)
        if up
        else _data(blueprint, place, start, skipped),
        _outlet(blueprint, modules[-1], down, back_down, start, place.device)
        if down
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
    messages = Receiver(wire, contract.traffic(schedule, start))
    if back is None:
        return Inlet(messages)
    replies = contract.feedback(schedule, start)
    return Inlet(messages, Sender(back, replies, schedule.most_unheeded, device))


def _outlet(
    blueprint: Blueprint,
    index: int,
    wire: Wire,
    back: Wire | None,
    start: int,
    device: torch.device,
) -> Outlet:
    contract, schedule = blueprint.contract(index), blueprint.schedule
    messages = Sender(wire, contract.traffic(schedule, start), device=device)
    if back is None:
        return Outlet(messages)
    return Outlet(messages, Receiver(back, contract.feedback(schedule, start)))
