"""The built-in launcher: starts the ranks of this host through torch's elastic agent."""

import logging
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline_local.errors import EXIT_NEIGHBOUR_LOST


def start_ranks(count: int, arguments: Sequence[str]) -> int:
    """Run `python -m pipeline_local ARGUMENTS` on `count` local ranks, as torchrun would.

    Returns:
        0, or the exit code of the rank that failed: of the one that gave a reason of its own
        rather than of those that only lost their neighbour, else of the first.
    """
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
        _, first = error.get_first_failure()
        own = [f for f in error.failures.values() if f.exitcode not in (EXIT_NEIGHBOUR_LOST, -15)]
        code = (own or [first])[0].exitcode
        return code if code > 0 else 128 - code
    except SignalException as error:
        return 128 + error.sigval
    return 0
