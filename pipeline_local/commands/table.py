"""What each command does. `commandline/` says what they take."""

from pipeline_local.commands import bench, doctor, finished, planning, training, writing
from pipeline_local.commands.shared import Run

RUN: Run = {
    **training.RUN,
    **writing.RUN,
    **planning.RUN,
    **finished.RUN,
    **bench.RUN,
    **doctor.RUN,
}
"""What each command does, by the name that its parser gives as `run`."""
