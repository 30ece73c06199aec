"""What a logger is, and what it knows of the run."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline_local.loggers.rows import LogRow


@dataclass(frozen=True)
class LoggedRun:
    """A run, as a logger sees it.

    Attributes:
        folder: the run folder; its name is that of the run.
        step: the steps done before, if the run was resumed.
        config: every key of the configuration with its value.
    """

    folder: Path
    step: int
    config: dict[str, Any]

    def known(self, logger: str) -> str | None:
        """Return the number that a logger has given the run before it was resumed."""
        return self._ids().get(logger)

    def keep(self, logger: str, number: str) -> None:
        """Keep that number in the run folder."""
        text = json.dumps({**self._ids(), logger: number})
        (self.folder / "log.json").write_text(text + "\n", encoding="utf-8")

    def _ids(self) -> dict[str, str]:
        ids: dict[str, str] = {}
        with suppress(OSError, ValueError):  # none yet, or damaged: a new run of the logger
            ids = dict(json.loads((self.folder / "log.json").read_text(encoding="utf-8")))
        return ids


class Logger(Protocol):
    """A library that shows curves. Whatever it raises ends this logger, and not the run."""

    def __init__(self, run: LoggedRun, where: Any) -> None:  # noqa: ANN401 (the value of its key)
        """Begin a run of the logger, or go on with it."""

    @property
    def address(self) -> str | None:
        """Where the curves can be seen, if a browser can."""

    def write(self, rows: Sequence[LogRow]) -> None:
        """Hand over rows."""

    def close(self, code: int) -> None:
        """End the logger's run.

        Args:
            code: 0 complete, 75 stopped by a signal, else failed.
        """
