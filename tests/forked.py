"""Ranks as processes of their own that may be killed, stopped and signalled: forked, so that they
start in a tenth of a second, and running the real command line."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from pipeline_local import cli
from pipeline_local.ranks import launcher
from tests.ports import free_port

LONGEST = 60
"""Seconds until all ranks must have ended; generous, as machines are noisy."""
PATIENCE = 8
"""Seconds after which a launcher kills the ranks that have not ended with another one."""


class Forked:
    """The ranks of one run.

    Args:
        world_size: how many.
        arguments: of the command line.
        output: file that gets what all of them print.
        prepare: called with the rank in each of them before it begins; may patch anything.
        errors: file that gets what they print on stderr, if that is another one.
    """

    def __init__(
        self,
        world_size: int,
        arguments: list[str],
        output: Path,
        prepare: Callable[[int], None] = lambda rank: None,
        errors: Path | None = None,
    ) -> None:
        self.output = output
        self.errors = errors or output
        self.outlived: list[int] = []
        context = multiprocessing.get_context("fork")
        port = free_port()
        self.processes = [
            context.Process(target=self._main, args=(rank, world_size, port, arguments, prepare))
            for rank in range(world_size)
        ]
        for process in self.processes:
            process.start()

    def _main(self, rank, world_size, port, arguments, prepare):
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
        # a fork server that the parent has started is not this process's child: forget it
        multiprocessing.forkserver._forkserver.__init__()
        for number, path in ((1, self.output), (2, self.errors)):
            os.dup2(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY), number)
        # what pytest has put there belongs to its own process
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        prepare(rank)
        code = 1
        try:
            code = cli.main(arguments)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        os._exit(code)

    def signal(self, rank: int, number: int) -> None:
        """Send a signal, unless the rank has ended."""
        process = self.processes[rank]
        if process.is_alive():
            os.kill(process.pid, number)

    def wait(self, seconds: float) -> None:
        """Until then, or until all have ended."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))

    def ends(self, longest: float = LONGEST) -> list[int]:
        """Exit codes by rank. As launchers do, kills those that outlive another's end for long.

        Who is killed for that is in `outlived`.
        """
        until = time.monotonic() + longest
        while (alive := [p for p in self.processes if p.is_alive()]) and time.monotonic() < until:
            if any(process.exitcode for process in self.processes):
                until = min(until, time.monotonic() + PATIENCE)
            if len(self.processes) == 1 and _is_stopped(alive[0].pid):
                break  # nobody watches it
            connection.wait([process.sentinel for process in alive], 0.2)
        self.outlived = [r for r, p in enumerate(self.processes) if p.is_alive()]
        self.close()
        return [process.exitcode for process in self.processes]

    def close(self) -> None:
        """Nothing stays behind."""
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()


def start_ranks(count: int, arguments: Sequence[str], folder: Path) -> int:
    """As the launcher does, but forked, so that the ranks need not import torch again.

    Args:
        folder: gets what they print, until they have ended.
    """
    output, errors = folder / "stdout", folder / "stderr"
    codes = Forked(count, [*arguments], output, errors=errors).ends(longest=600)
    sys.stdout.write(output.read_text())
    sys.stderr.write(errors.read_text())
    failures = {r: ProcessFailure(r, 0, code, "") for r, code in enumerate(codes) if code}
    return launcher.cause(failures) if failures else 0


def _is_stopped(process: int) -> bool:
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] == "T"
