"""The built-in launcher: starts the ranks of this host through torch's elastic agent."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline_local.errors import EXIT_NEIGHBOUR_LOST, EXIT_STALLED
from pipeline_local.orphan import LAUNCHER


def start_ranks(count: int, arguments: Sequence[str]) -> int:
    """Run `python -m pipeline_local ARGUMENTS` on `count` local ranks, as torchrun would.

    The ranks end with this process, also when it is killed.

    Returns:
        0, or the exit code of the rank that is the cause (`cause`).
    """
    os.environ[LAUNCHER] = str(os.getpid())
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(settings, sys.executable)("-m", "pipeline_local", *arguments)
    except ChildFailedError as error:
        return cause(error.failures)
    except SignalException as error:
        return 128 + error.sigval
    finally:
        del os.environ[LAUNCHER]
    return 0


def cause(failures: Mapping[int, ProcessFailure]) -> int:
    """The exit code that says why a run failed.

    That of a rank that gave a reason of its own; else that the run stalled, whoever was killed for
    it; else the signal that killed a rank, for which the launcher itself did not kill it because
    others had failed; else that of the others.

    Args:
        failures: of the ranks that failed, by local rank.
    """
    codes = [failure.exitcode for failure in failures.values()]
    own = [code for code in codes if code > 0 and code not in _CONSEQUENCES]
    if own:
        return own[0]
    if EXIT_STALLED in codes:
        return EXIT_STALLED
    killed = [code for code in codes if code < 0 and code != -signal.SIGTERM]
    if EXIT_NEIGHBOUR_LOST not in codes:
        _tell(failures)
    code = (killed or codes)[0]
    return code if code > 0 else 128 - code


def _tell(failures: Mapping[int, ProcessFailure]) -> None:
    """No rank was left to tell it."""
    rank, failure = min(failures.items(), key=lambda item: item[1].timestamp)
    name = signal.Signals(-failure.exitcode).name
    print(f"[stage {rank} | rank {rank}] error: killed by {name}", file=sys.stderr)


_CONSEQUENCES = (EXIT_NEIGHBOUR_LOST, EXIT_STALLED)
