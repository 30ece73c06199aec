"""What each command does. `commandline/` says what they take."""

from pipeline_local.commands import bench, doctor, finished, planning, training, writing
from pipeline_local.commands.shared import Commands

COMMANDS: Commands = {
    **training.COMMANDS,
    **writing.COMMANDS,
    **planning.COMMANDS,
    **finished.COMMANDS,
    **bench.COMMANDS,
    **doctor.COMMANDS,
}
"""What each command does, by the name that its parser gives as `run`."""
