"""The built-in launcher: starts the ranks of this host through torch's elastic agent."""

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.agent.server.api import WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, ProcessFailure
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

import pipeline_local
from pipeline_local.console import startup
from pipeline_local.console.footer import ALL_ROWS
from pipeline_local.console.screen import announce_interrupt, complain, draws, say
from pipeline_local.data.loaders import SOCKETS, drop_empty_caches, socket_folder
from pipeline_local.errors import EXIT_NEIGHBOUR_LOST, EXIT_STALLED, EXIT_STOPPED, counted
from pipeline_local.process import early
from pipeline_local.process.early import STOP_SIGNALS
from pipeline_local.ranks import environment
from pipeline_local.ranks.hosts import Hosts, Meeting
from pipeline_local.ranks.orphan import LAUNCHER


def start_ranks(count: int, arguments: Sequence[str], hosts: Hosts | None = None) -> int:
    """Runs `pipeline-local ARGUMENTS` on `count` local ranks, as torchrun would.

    The ranks end with this process, also when it is killed.

    Args:
        count: ranks of this host.
        arguments: of each rank.
        hosts: all hosts, where this is not the only one.

    Returns:
        0, or the exit code of the rank that caused the failure (`cause`). After a signal that asked
        the ranks to stop, their exit code, too; 130 where Ctrl-C has simply ended them.
    """
    with _quiet(logging.getLogger("torch.distributed.elastic")), socket_folder() as sockets:
        own = {LAUNCHER: str(os.getpid())} | ({SOCKETS: sockets} if sockets else {})
        ranks = _ranks(count, arguments, hosts)
        agent = _Agent(ranks, _NoLogs(own))
        try:
            with _passing_on(agent) as received:
                if hosts:
                    agent.meet(hosts)
                startup.over()
                say(f"starting {counted(count, 'rank')} on this host")
                result = agent.run()
        except SignalException as error:
            if hosts and error.sigval == signal.SIGTERM and not agent.ranks:
                return _stopped_early()
            return 128 + error.sigval
        finally:
            agent.leave()
            ranks.rdzv_handler.shutdown()
            drop_empty_caches()
            if draws():  # a rank that was killed has left its rows at the bottom
                say(ALL_ROWS, end="")
    if not result.is_failed():
        return 0
    if signal.SIGINT in received and _ended_by_it(result.failures):
        return 128 + signal.SIGINT
    codes = {failure.exitcode for failure in result.failures.values()}
    if hosts and agent.asked_to_stop and codes == {-signal.SIGTERM}:
        return _stopped_early()
    return cause(result.failures)


def _stopped_early() -> int:
    """Once they have met, ranks do not end by SIGTERM: they save."""
    say("stopped before the ranks of all hosts had met; start all hosts again")
    return EXIT_STOPPED


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Agent(LocalElasticAgent):
    """Knows its ranks as soon as they are there. They get each SIGUSR1, one of before, too."""

    def __init__(self, spec: WorkerSpec, logs: LogsSpecs) -> None:
        super().__init__(spec, logs)
        self.ranks: list[int] = []
        self.asked_to_stop = False
        self._meeting: Meeting | None = None

    def meet(self, hosts: Hosts) -> None:
        """Wait until every host is there. From now on a stop of any of them is one of all."""
        self._meeting = Meeting(hosts, self._stop_as_others_do)
        say(f"waiting for {hosts.count} hosts at {hosts.head}:{hosts.port}")
        self._meeting.wait()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        with early.held():
            started: dict[int, int] = super()._start_workers(worker_group)
            self.ranks = list(started.values())
        if early.take():
            self.signal(signal.SIGUSR1)
        return started

    def signal(self, number: int) -> None:
        """Send a signal to all ranks, which are not started again."""
        self._remaining_restarts = 0
        for rank in self.ranks:
            with suppress(ProcessLookupError):
                os.kill(rank, number)

    def stop(self, number: int) -> None:
        """Ask all ranks to stop by a signal, and all other hosts to do the same."""
        self.asked_to_stop = True
        self.signal(number)
        if self._meeting:
            self._meeting.stop_all()

    def leave(self) -> None:
        """Have nothing to do with the other hosts any more."""
        if self._meeting:
            self._meeting.leave()

    def _stop_as_others_do(self) -> None:
        if self.asked_to_stop:
            return
        self.asked_to_stop = True
        if self.ranks:
            self.signal(signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGTERM)  # the main thread waits for other hosts


class _NoLogs(LogsSpecs):
    """The ranks print where this process does; torch's own specification makes a folder in TMPDIR
    for each run, and leaves it there.

    Args:
        environment: of each rank, beside torch's.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__()
        self._environment = environment

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Nothing is redirected; each rank gets its environment."""
        for variables in envs.values():
            variables.update(self._environment)
        console = dict.fromkeys(envs, "")
        return LogsDest(console, console, error_files=dict.fromkeys(envs, os.devnull))

    @property
    def root_log_dir(self) -> str:
        """No folder."""
        return os.devnull


def _ranks(count: int, arguments: Sequence[str], hosts: Hosts | None) -> WorkerSpec:
    alone = RendezvousParameters(
        backend="c10d", endpoint="localhost:0", run_id=uuid.uuid4().hex, min_nodes=1, max_nodes=1
    )
    parameters = hosts.parameters() if hosts else alone
    return WorkerSpec(
        role="default",
        local_world_size=count,
        entrypoint=sys.executable,
        # not by -m, which looks for every module in the current folder first
        args=(str(Path(pipeline_local.__file__).with_name("__main__.py")), *arguments),
        rdzv_handler=get_rendezvous_handler(parameters),
        max_restarts=hosts.restarts if hosts else 0,
        monitor_interval=0.1,
        master_addr=hosts.head if hosts else None,
        master_port=hosts.port if hosts else None,
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
    complain(f"[rank {rank}] error: killed by {name}")


_CONSEQUENCES = (EXIT_NEIGHBOUR_LOST, EXIT_STALLED)


@contextmanager
def _passing_on(agent: _Agent) -> Iterator[list[int]]:
    """Passes a signal that asks to stop on to the ranks, and goes on waiting for them.

    The agent itself would forget their exit codes, and kill after 30 seconds those that still
    write. A second signal (or one before there are ranks) is left to the agent, which does that;
    but a second Ctrl-C kills the ranks at once. SIGUSR1 may come early, and again and again.
    """
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1 and not agent.ranks:
            early.note(number, frame)
            return
        if number == signal.SIGUSR1:
            agent.signal(number)
            return
        received.append(number)
        over = len(received) > 1 or not agent.ranks
        if not over and number == signal.SIGINT:
            announce_interrupt()
        agent.stop(_passed(number, over))
        if over:
            raise SignalException("asked to end", signal.Signals(number))

    if threading.current_thread() is not threading.main_thread():
        yield []  # signals come to the main thread, which has its own way with them
        return
    # the agent takes these for good, and the program that calls may live on
    taken = {n: signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGQUIT)}
    theirs = os.environ.get(_TAKEN_BY_AGENT)
    os.environ[_TAKEN_BY_AGENT] = "SIGHUP,SIGQUIT"  # the others are ours
    earlier = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        del os.environ[_TAKEN_BY_AGENT]
        os.environ.update({} if theirs is None else {_TAKEN_BY_AGENT: theirs})
        for number, handler in (earlier | taken).items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _ended_by_it(failures: Mapping[int, ProcessFailure]) -> bool:
    """Whether Ctrl-C has ended ranks that do not train, or not yet: nothing else is to be told."""
    ends = (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT, EXIT_NEIGHBOUR_LOST)
    return all(failure.exitcode in ends for failure in failures.values())


def _passed(number: int, over: bool) -> signal.Signals:
    """What a rank gets. A terminal may have sent it SIGINT already, and two of them are one end."""
    if number != signal.SIGINT:
        return signal.Signals(number)
    return signal.SIGKILL if over else signal.SIGTERM


_TAKEN_BY_AGENT = "TORCHELASTIC_SIGNALS_TO_HANDLE"


@contextmanager
def reporting_failure() -> Iterator[None]:
    """Ignores SIGTERM once the work of this rank has failed, so that it can report why.

    Its launcher ends all ranks as soon as one has failed, perhaps before this one has reported.
    """
    try:
        yield
    except Exception:
        if environment.launched() and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
