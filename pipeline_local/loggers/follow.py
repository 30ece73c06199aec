"""The process that follows a run's metrics files, and hands complete rows to the loggers.

It hears from the first rank by its stdin: first a line about the run, last how it has ended; or
nothing more, where the first rank was killed. It does not import torch.
"""

import io
import json
import os
import select
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline_local.errors import first_line
from pipeline_local.loggers.logger import LoggedRun, Logger
from pipeline_local.loggers.mlflow import MLflow
from pipeline_local.loggers.rows import LogRow, Tail
from pipeline_local.loggers.tensorboard import TensorBoard
from pipeline_local.loggers.wandb import WandB
from pipeline_local.process.early import STOP_SIGNALS

LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
"""Each logger by its key of the section `log`."""
LOOK_SECONDS = 1.0
"""From one look at the files to the next."""
CLOSE_SECONDS = 60
"""What loggers may take for the last rows, once the run has ended."""
_POLITE = 10
"""Of `nice`: the ranks compute on the same cores."""
_ASKED_TO_STOP = (*STOP_SIGNALS, signal.SIGHUP)


def main() -> None:
    """Follow the run that stdin describes."""
    for number in _ASKED_TO_STOP:  # the ranks get them, too, and this process ends after them
        signal.signal(number, signal.SIG_IGN)
    os.nice(_POLITE)
    commands = io.FileIO(os.dup(0))  # without a buffer, of which `select` knows nothing
    facts = json.loads(commands.readline())
    say = _apart(Path(facts["folder"]) / "log.txt")
    run = LoggedRun(Path(facts["folder"]), facts["step"], facts["config"])
    Loggers(run, facts["log"], say).follow(Tail(facts["files"]), commands)
    os._exit(0)  # no thread of a library holds it up


def _apart(file: Path) -> Callable[[str], None]:
    """Send what libraries print to a file, and nothing to the terminal of the run but our lines."""
    screen = os.dup(2)
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, instead in ((0, nothing), (1, log), (2, log)):  # no library asks for a key
        os.dup2(instead, number)

    def say(line: str) -> None:
        for place in (screen, log):
            os.write(place, f"{line}\n".encode())

    return say


class Loggers:
    """All loggers of a run. One that raises is left out from then on.

    Args:
        run: the run.
        wanted: the keys of `log` that name a logger, with their values.
        say: prints a line for people.
    """

    def __init__(self, run: LoggedRun, wanted: dict[str, Any], say: Callable[[str], None]) -> None:
        self._say = say
        self._loggers: dict[str, Logger] = {}
        for key, value in wanted.items():
            self._try(key, partial(self._begin, key, run, value))

    def _begin(self, key: str, run: LoggedRun, value: Any) -> None:  # noqa: ANN401
        logger = self._loggers[key] = LOGGERS[key](run, value)
        if logger.address:
            self._say(f"log.{key}: {logger.address}")

    def follow(self, tail: Tail, commands: io.FileIO) -> None:
        """Hand over rows until the run has ended."""
        code = None
        while code is None:
            code = _ended(commands)
            if code is not None:
                signal.alarm(CLOSE_SECONDS)
            if rows := list(tail.rows()):
                self.write(rows)
        for key, logger in list(self._loggers.items()):
            self._try(key, partial(logger.close, code))

    def write(self, rows: list[LogRow]) -> None:
        """Hand rows to every logger that still works."""
        for key, logger in list(self._loggers.items()):
            self._try(key, partial(logger.write, rows))

    def _try(self, key: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._loggers.pop(key, None)
            reason = first_line(error)
            self._say(f"warning: log.{key}: {reason[:200]}; the run goes on, metrics/ has all")


def _ended(commands: io.FileIO) -> int | None:
    """Wait a while; the exit code of the run once it has ended, 1 where nobody says so any more."""
    ready, _, _ = select.select([commands], [], [], LOOK_SECONDS)
    if not ready:
        return None
    return int(commands.readline() or 1)
