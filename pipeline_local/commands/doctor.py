"""The command that examines where runs are to take place."""

import argparse
from collections.abc import Sequence

from pipeline_local.commands.shared import Commands


def _doctor(options: argparse.Namespace, _: Sequence[str]) -> int:
    from pipeline_local.doctor.doctor import doctor

    return doctor(options.quick, options.json)


COMMANDS: Commands = {"doctor": _doctor}
