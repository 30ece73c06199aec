"""The first rank's side of the loggers: it starts a process that follows the metrics files.

That one hands complete rows of all stages to TensorBoard, Weights & Biases and MLflow. The ranks
only write their files, as ever, and wait for nothing: what these libraries do (networks, threads,
random numbers, signals) stays in that process.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline_local.config import Config, LogConfig
from pipeline_local.configfile import configfile
from pipeline_local.console.screen import warn
from pipeline_local.errors import EXIT_STOPPED, StoppedError, UserError
from pipeline_local.loggers.follow import CLOSE_SECONDS
from pipeline_local.record.folder import RunFolder

_LIBRARIES = ("tensorboard", "wandb", "mlflow")
"""Modules, named as the key of `log` and as what pip installs."""
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:]; from pipeline_local.loggers.follow import main; main()"
)


def check(log: LogConfig) -> None:
    """Refuses a logger whose library is missing.

    Raises:
        UserError: with the command that installs it.
    """
    for name in _LIBRARIES:
        found = find_spec(name) if getattr(log, name) else None
        # a folder of that name, such as W&B's own, is found as a package without a file
        if getattr(log, name) and (found is None or found.origin is None):
            raise UserError(f"log.{name} needs {name}, which is missing; pip install {name}")


class LoggerProcess:
    """The loggers of a run; a context around all of it.

    On exit the process is told how the run has ended, and is waited for while it hands over the
    last rows, for which it has `CLOSE_SECONDS`. One that has not ended after twice as long is
    killed. When this process is killed, it ends by itself.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, config: Config, stages: int, step: int) -> None:
        """Start to follow a run, if its configuration names a logger. Nobody has logged yet.

        Args:
            config: of the run.
            stages: how many there are.
            step: the steps done before, whose rows the loggers have.
        """
        wanted = {key: value for key, value in vars(config.log).items() if value}
        if not wanted:
            return
        folder = RunFolder(config.run.dir.absolute())
        files = {str(path): _size(path) for path in map(folder.metrics, range(stages))}
        facts = {
            "folder": str(folder.path),
            "files": files,
            "step": step,
            "log": wanted,
            "config": dict(_leaves(configfile.tree(config))),
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *sys.path],
                stdin=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the ranks
            )
        except OSError as error:
            warn(f"the loggers cannot be started ({error.strerror}); metrics/ has all")
        self._send(json.dumps(facts, default=str))

    def __enter__(self) -> "LoggerProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._process is None or self._process.stdin is None:
            return
        code = 0 if error is None else EXIT_STOPPED if isinstance(error, StoppedError) else 1
        self._send(str(code))
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(2 * CLOSE_SECONDS)  # it ends itself sooner
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode:
            warn("the loggers did not get all rows; log.txt says why, metrics/ has them")

    def _send(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with suppress(OSError):  # it is gone, and has said why
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _leaves(tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key, dotted, with its value, for a table of hyperparameters."""
    for name, part in tree.items():
        if isinstance(part, dict):
            yield from ((f"{name}.{key}", value) for key, value in part.items())
        else:
            yield name, part
