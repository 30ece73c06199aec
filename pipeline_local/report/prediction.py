"""What the plan predicts for a run: memory and work of each stage, and backpropagation's memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline_local.blueprint.device import Device
from pipeline_local.data.info import DataInfo
from pipeline_local.errors import UserError, first_line
from pipeline_local.placement.costs import Unit
from pipeline_local.placement.describe import describe
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import Placement
from pipeline_local.planning.alternatives import others, stage_peaks
from pipeline_local.record.summary import ModuleRow
from pipeline_local.report.run import RecordedRun


@dataclass(frozen=True)
class PlannedRun:
    """What the plan predicts.

    Attributes:
        steps: the optimizer steps of the whole run.
        modules: what each module is.
        costs: the work of each stage in an average step, in `unit`.
        unit: seconds with a profile, else FLOPs.
        peaks: bytes that each stage needs.
        others: bytes that the other methods need on their fullest device, by name.
    """

    steps: int
    modules: Sequence[ModuleRow]
    costs: Sequence[float]
    unit: Unit
    peaks: Sequence[int]
    others: Mapping[str, int]


def predict(run: RecordedRun) -> PlannedRun | str:
    """Returns what the plan predicts for a run's stages, on the type of device that it had.

    Nothing of the run's data is read. The reason is returned where nothing can be predicted: the
    model or the profile is not here, as it belongs to a program or to another machine.
    """
    try:
        return _predict(run)
    except (UserError, ValueError) as error:
        return first_line(error)


def _predict(run: RecordedRun) -> PlannedRun:
    known = run.starts[-1].get("device") if run.starts else None
    device = Device.named(known) if known in ("cpu", "cuda") else None
    info = DataInfo.from_json(run.folder.load_info())
    placement = Placement.of(draw(run.folder.load_config(), info, device), run.num_stages)
    return PlannedRun(
        steps=placement.blueprint.run_plan.num_steps,
        modules=describe(placement),
        costs=placement.stage_costs,
        unit=placement.costs[0].unit,
        peaks=stage_peaks(placement, placement.blueprint),
        others={other.name: other.peak for other in others(placement)},
    )
