"""`pipeline-local doctor`: examines the machine, the software and the links before a run does.

A check is a function in `CHECKS`. Under a launcher the ranks also make some together.
"""

from collections.abc import Iterator
from pathlib import Path

from pipeline_local.console.screen import say
from pipeline_local.doctor import accelerators, machine, neighbours, network, report, software
from pipeline_local.doctor.finding import Check, Finding, examine
from pipeline_local.doctor.training import training
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.user_input import new_file

CHECKS: tuple[Check, ...] = (
    software.python,
    software.libraries,
    software.backends,
    machine.processors,
    machine.threads,
    accelerators.gpus,
    machine.memory,
    machine.shared_memory,
    machine.limits,
    machine.disk,
    network.interfaces,
)
"""What each process can see alone, without starting or meeting others."""

EXIT_FAILED = 1


def doctor(quick: bool, output: Path | None) -> int:
    """Print a line for each finding, and a block to paste into an issue.

    Args:
        quick: start no ranks and meet none, also under a launcher.
        output: a new file, which gets everything as JSON; None: no file.

    Returns:
        0, or 1 if a check has failed. Under a launcher the first rank speaks for all.

    Raises:
        UserError: the file exists or cannot be written, or the launcher's environment is wrong.
    """
    rank_info = RankInfo() if quick else RankInfo.from_environment()
    speaks = rank_info.rank == 0
    if speaks and output is not None:
        new_file.check("--json", output)
    found = []
    for finding in findings(rank_info, quick):
        if speaks:
            say(str(finding))
        elif finding.name == neighbours.NAME:
            say(f"[rank {rank_info.rank}] {finding}")
        else:
            continue  # the first rank of each host has its own in the report
        found.append(finding)
    if speaks:
        say(f"\nTo paste into an issue:\n\n{report.block(found)}")
        if output is not None:
            new_file.write_json("--json", output, report.facts(found))
    return EXIT_FAILED if any(finding.status == "FAIL" for finding in found) else 0


def findings(rank_info: RankInfo, quick: bool) -> Iterator[Finding]:
    """Carry out all checks of this rank, one after the other.

    Args:
        rank_info: this rank.
        quick: only those that each process can make alone.
    """
    own = []
    for check in CHECKS:
        for finding in examine(check):
            own.append(finding)
            yield finding
    if quick:
        return

    def ranks() -> Iterator[Finding]:
        return neighbours.together(rank_info, own)

    yield from examine(training if rank_info.world_size == 1 else ranks)
