"""The command that examines where runs are to take place."""

from pipeline_local.commandline.shared import Commands, add_command, path


def add_all(commands: Commands) -> None:
    """Add `doctor`."""
    doctor = add_command(
        commands,
        "doctor",
        "check software, devices, limits and links; exit code 1 if a check fails",
        "--json doctor.json",
        "--quick",
    )
    doctor.add_argument("--json", type=path, help="also write everything to this file")
    doctor.add_argument(
        "--quick", action="store_true", help="start no ranks and meet none, as in a healthcheck"
    )
    doctor.set_defaults(run="doctor")
