"""What launchers say in the environment: RANK and its relatives, or what Slurm calls them."""

import os
import re
from collections.abc import Mapping

from pipeline_local.errors import UserError


def launcher_variables() -> Mapping[str, str]:
    """Return RANK, WORLD_SIZE, MASTER_ADDR and so on; empty where no launcher has started this.

    A step of several tasks that `srun` has started has them by Slurm's own names.

    Raises:
        UserError: one of Slurm's names is missing.
    """
    if not in_slurm_step():
        return os.environ if launched() else {}
    try:
        found = _of_step(os.environ)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"srun has started several tasks, but its environment is incomplete, got {error}; start"
            f" each task by srun itself, or torchrun by one task per node"
        ) from None
    return found | {name: os.environ[name] for name in _ADDRESS if name in os.environ}


def launched() -> bool:
    """Return whether a launcher has started this process."""
    return "RANK" in os.environ or "WORLD_SIZE" in os.environ or in_slurm_step()


def in_slurm_step() -> bool:
    """Return whether `srun` alone has started this rank, and others beside it."""
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return False
    return os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def is_first() -> bool:
    """Return whether this is the first rank, or no launcher has started it."""
    return os.environ.get("SLURM_PROCID" if in_slurm_step() else "RANK", "0") == "0"


def slurm_start() -> str:
    """Return the name of this start of a step: no other job, step or start has it."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return "-".join(os.environ.get(name, "0") for name in names)


def cores() -> int:
    """Return the cores of this host that its ranks share.

    Slurm may bind each task to cores of its own, or to none: the step's number counts.
    """
    if in_slurm_step() and os.environ.get("SLURM_CPUS_ON_NODE", "").isdecimal():
        return int(os.environ["SLURM_CPUS_ON_NODE"])
    return len(os.sched_getaffinity(0))


def on_this_host(text: str) -> int:
    """Read a number, or Slurm's list of tasks per node such as 2(x3),1.

    Raises:
        ValueError: it is neither.
    """
    node = int(os.environ.get("SLURM_NODEID", 0))
    counts = [n for part in text.split(",") for n in _repeated(part.strip())]
    if min(counts, default=0) < 1 or (len(counts) > 1 and node >= len(counts)):
        raise ValueError(f"LOCAL_WORLD_SIZE={text!r}")
    return counts[node if len(counts) > 1 else 0]


def first_host(nodes: str) -> str:
    """Return the first of Slurm's list of nodes, such as n07 of n[07-09,12],m1."""
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", nodes).split(",")[0]


def _of_step(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": environment["SLURM_STEP_TASKS_PER_NODE"],
        "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(_port(*map(int, slurm_start().split("-")))),
    }


def _port(job: int, step: int, start: int) -> int:
    """One below the ports that systems give away themselves, and another one for each start."""
    return 15000 + (job * 16 + step * 4 + start) % 16384


def _repeated(part: str) -> list[int]:
    found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
    if found is None:
        raise ValueError(f"LOCAL_WORLD_SIZE={part!r}")
    return [int(found[1])] * int(found[2] or 1)


_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
