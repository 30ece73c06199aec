"""The built-in launcher: starts the ranks of this host through torch's elastic agent."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, ProcessFailure
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from pipeline_local.data.loaders import STOP_SIGNALS
from pipeline_local.errors import EXIT_NEIGHBOUR_LOST, EXIT_STALLED
from pipeline_local.ranks.orphan import LAUNCHER
from pipeline_local.screen import announce_interrupt, complain


def start_ranks(count: int, arguments: Sequence[str]) -> int:
    """Runs `python -m pipeline_local ARGUMENTS` on `count` local ranks, as torchrun would.

    The ranks end with this process, also when it is killed.

    Returns:
        0, or the exit code of the rank that caused the failure (`cause`). After a signal that asked
        the ranks to stop, their exit code, too; 130 where Ctrl-C has simply ended them.
    """
    os.environ[LAUNCHER] = str(os.getpid())
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    ranks = _ranks(count, arguments)
    agent = LocalElasticAgent(ranks, DefaultLogsSpecs())
    try:
        with _passing_on(agent) as received:
            result = agent.run()
    except SignalException as error:
        return 128 + error.sigval
    finally:
        ranks.rdzv_handler.shutdown()
        del os.environ[LAUNCHER]
    if not result.is_failed():
        return 0
    if signal.SIGINT in received and _ended_by_it(result.failures):
        return 128 + signal.SIGINT
    return cause(result.failures)


def _ranks(count: int, arguments: Sequence[str]) -> WorkerSpec:
    parameters = RendezvousParameters(
        backend="c10d", endpoint="localhost:0", run_id=uuid.uuid4().hex, min_nodes=1, max_nodes=1
    )
    return WorkerSpec(
        role="default",
        local_world_size=count,
        entrypoint=sys.executable,
        args=("-m", "pipeline_local", *arguments),
        rdzv_handler=get_rendezvous_handler(parameters),
        max_restarts=0,
        monitor_interval=0.1,
    )


def cause(failures: Mapping[int, ProcessFailure]) -> int:
    """Returns the exit code that says why a run failed.

    It is the code of a rank that failed for a reason of its own; else that of a stalled run, even
    if a rank was killed for it; else that of the signal that killed a rank, unless it was the
    launcher that killed it after others had failed; else the code of the others.

    Args:
        failures: the failures of the ranks, by local rank.
    """
    codes = [failure.exitcode for failure in failures.values()]
    own = [code for code in codes if code > 0 and code not in _CONSEQUENCES]
    if own:
        return own[0]
    if EXIT_STALLED in codes:
        return EXIT_STALLED
    killed = [code for code in codes if code < 0 and code != -signal.SIGTERM]
    if EXIT_NEIGHBOUR_LOST not in codes:
        _report(failures)
    code = (killed or codes)[0]
    return code if code > 0 else 128 - code


def _report(failures: Mapping[int, ProcessFailure]) -> None:
    """Reports the first failure, as no rank was left to report it."""
    rank, failure = min(failures.items(), key=lambda item: item[1].timestamp)
    name = signal.Signals(-failure.exitcode).name
    complain(f"[stage {rank} | rank {rank}] error: killed by {name}")


_CONSEQUENCES = (EXIT_NEIGHBOUR_LOST, EXIT_STALLED)


@contextmanager
def _passing_on(agent: LocalElasticAgent) -> Iterator[list[int]]:
    """Passes a signal that asks to stop on to the ranks, and goes on waiting for them.

    The agent itself would forget their exit codes, and kill after 30 seconds those that still
    write. A second signal (or one before there are ranks) is left to the agent, which does that;
    but a second Ctrl-C kills the ranks at once.
    """
    received: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        ranks = [w.id for w in agent.get_worker_group().workers if isinstance(w.id, int)]
        over = len(received) > 1 or not ranks
        if not over and number == signal.SIGINT:
            announce_interrupt()
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(rank, _passed(number, over))
        if over:
            raise SignalException("asked to end", signal.Signals(number))

    # the agent takes these for good, and the program that calls may live on
    taken = {n: signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGQUIT)}
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"  # the others are ours
    earlier = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        del os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"]
        for number, handler in (earlier | taken).items():
            signal.signal(number, handler)


def _ended_by_it(failures: Mapping[int, ProcessFailure]) -> bool:
    """Whether Ctrl-C has ended ranks that do not train, or not yet: nothing else is to be told."""
    ends = (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT, EXIT_NEIGHBOUR_LOST)
    return all(failure.exitcode in ends for failure in failures.values())


def _passed(number: int, over: bool) -> signal.Signals:
    """What a rank gets. A terminal may have sent it SIGINT already, and two of them are one end."""
    if number != signal.SIGINT:
        return signal.Signals(number)
    return signal.SIGKILL if over else signal.SIGTERM
