"""The file of a stage's measurements: a line of JSON per logged step and per evaluation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline_local import moved
from pipeline_local.console.screen import complain
from pipeline_local.errors import UserError
from pipeline_local.gpus.telemetry import Telemetry
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record import lines
from pipeline_local.user_input.json_text import Facts, as_json

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:  # noqa: ANN401 (whatever has been defined here)
        return moved.from_parts(__name__, name, ("measurements", "peak_memory", "wall_time"))


class Metrics:
    """Writes one stage's metrics file; every line is flushed at once.

    Args:
        path: of the file, which may exist.
        place: the number of the stage, and that of the replica where it has several.
        steps_per_epoch: of the run.
        rank_info: this rank, whose GPU is watched.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(
        self, path: Path, place: dict[str, int], steps_per_epoch: int, rank_info: RankInfo
    ) -> None:
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = path.open("a", buffering=1)
            if lines.is_torn(path):
                self._file.write("\n")
        self._place = place
        self._steps_per_epoch = steps_per_epoch
        # the first rank of each host says what is missing there
        notice = _unsaid if rank_info.local_rank else complain
        self.telemetry = Telemetry(rank_info.device, notice)

    def placed(self, facts: Facts) -> Facts:
        """Returns the facts of a step with the stage, the epochs done, and the time (of Unix)."""
        epoch = round(facts["step"] / self._steps_per_epoch, 4)
        return {**self._place, "epoch": epoch, "time": round(time.time(), 3), **facts}

    def write(self, facts: Facts) -> None:
        """Appends one line.

        Raises:
            UserError: it cannot be written.
        """
        with writing(self._path):
            self._file.write(as_json(facts) + "\n")

    def close(self) -> None:
        """Ends the watch of the GPU, and closes the file.

        Raises:
            UserError: a line cannot be written.
        """
        self.telemetry.close()
        with writing(self._path):
            self._file.close()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context that writes results of a run.

    Raises:
        UserError: they cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); checkpoints are complete: free"
            f" disk space or fix the permissions, then resume the run"
        ) from None


def _unsaid(_: str) -> None:
    """Another rank says it."""
