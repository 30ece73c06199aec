"""The measurements of a stage: a line of JSON per logged step and per evaluation."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from pipeline_local.console.screen import complain
from pipeline_local.engines.replicas import Replicas
from pipeline_local.errors import UserError, counted
from pipeline_local.gpus.telemetry import Telemetry
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.tasks import Score
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record import lines, resident
from pipeline_local.user_input.json_text import Facts, as_json


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


class WallTime:
    """Measures how one rank spends its wall time.

    Args:
        waited: return the seconds spent so far waiting for the upstream and for the downstream
            neighbour, in training or not.
    """

    def __init__(self, *waited: Callable[[], float]) -> None:
        self._waited_so_far = waited
        self._accounted = [0.0 for _ in waited]
        self._training = 0.0
        self._waited = [0.0 for _ in waited]
        self._stall = 0.0
        self._steps = 0
        self._at_last_pace = 0.0
        self._waited_at_last_pace = [0.0 for _ in waited]

    @contextmanager
    def training(self, steps: int = 1) -> Iterator[None]:
        """Times optimizer steps, and waits within them."""
        begin = time.perf_counter()
        yield
        self._training += time.perf_counter() - begin
        self._waited = [a + b for a, b in zip(self._waited, self._newly_waited(), strict=True)]
        self._steps += steps

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Excludes the waits of the enclosed evaluation from those of training. The device must be
        settled before and after it, as waits on a device are reported late."""
        yield
        self._newly_waited()

    def _newly_waited(self) -> list[float]:
        before, self._accounted = self._accounted, [waited() for waited in self._waited_so_far]
        return [now - then for now, then in zip(self._accounted, before, strict=True)]

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Times what a checkpoint takes from the training thread: copies, and waits for a write."""
        begin = time.perf_counter()
        yield
        self._stall += time.perf_counter() - begin

    def pace(self, batch_size: int) -> tuple[float, list[float]]:
        """Returns the samples per second of training since the last call, and the part of its time
        that was spent waiting for each neighbour."""
        seconds = max(self._training - self._at_last_pace, 1e-9)
        rate = self._steps * batch_size / seconds
        waits = zip(self._waited, self._waited_at_last_pace, strict=True)
        shares = [round(min(1.0, (now - then) / seconds), 4) for now, then in waits]
        self._at_last_pace, self._steps = self._training, 0
        self._waited_at_last_pace = self._waited
        return round(rate, 2), shares

    def facts(self, device_stall: float = 0.0) -> Facts:
        """Returns the seconds of training, of waiting within it, and of checkpoints.

        Args:
            device_stall: seconds by which checkpoints held up a device, unseen by this clock.
        """
        return {
            "seconds": self._training,
            "waited": sum(self._waited),
            "checkpoint_stall_seconds": self._stall + device_stall,
        }


def settle(device: torch.device) -> None:
    """Waits until the device has done what is queued, so that a clock may be read.

    It does not wait for a receive that is posted ahead on its own stream: that message may depend
    on what this rank has yet to do.
    """
    if device.type != "cpu":
        torch.accelerator.current_stream(device).synchronize()


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Returns the seconds that some work takes, with the kernels that it launches."""
    settle(device)
    begin = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - begin


def refuse_divergence(
    modules: list[LocalModule], scores: dict[str, dict[str, float]], step: int
) -> None:
    """Stops a run that has diverged.

    Raises:
        UserError: a loss on the test set is not finite; names the module and the step.
    """
    for module, (number, row) in zip(modules, scores.items(), strict=True):
        if not math.isfinite(row["loss"]):
            raise UserError(
                f"module {number}: the loss on the test set is {row['loss']} after step {step};"
                f" {module.guard.remedy}lower optimizer.lr, raise optimizer.warmup or set"
                f" optimizer.clip"
            )


def of_step(modules: list[LocalModule]) -> dict[str, dict[str, float]]:
    """Returns each module's latest metrics, by its number (from 1); waits for the device.

    Those of several replicas are the same, and only the first of them gives them.
    """
    if modules[0].replicas.index:
        return {}
    return {
        str(module.index + 1): {name: value.item() for name, value in module.metrics.items()}
        for module in modules
    }


def warnings(modules: list[LocalModule]) -> list[str]:
    """Returns a line for each module that has skipped updates; waits for the device."""
    counts = {module.index + 1: int(module.guard.skipped) for module in modules}
    return [
        f"module {number}: {counted(count, 'update was', 'updates were')} skipped, as a loss or"
        f" gradient was not finite"
        for number, count in counts.items()
        if count
    ]


def of_scores(modules: list[LocalModule], scores: list[list[Score]]) -> dict[str, dict[str, float]]:
    """Returns each head's loss and score on the whole test set, alone and together with all
    upstream heads (`ensemble_...`), by number (from 1). All replicas call it together."""
    return {
        str(module.index + 1): module.rules.task.measures(_means(row, module.replicas))
        for module, row in zip(modules, scores, strict=True)
    }


def _means(scores: list[Score], replicas: Replicas) -> dict[str, float]:
    def total(values: list[Tensor]) -> float:
        # one wait for the device, however many batches
        return float(sum(torch.stack(values).tolist()))

    sums = {
        name: total([getattr(score, name) for score in scores])
        for name in ("count", "loss", "score", "ensemble")
    }
    sums |= {name: total([score.others[name] for score in scores]) for name in scores[0].others}
    device = scores[0].loss.device
    whole = [torch.tensor(value, dtype=torch.float64, device=device) for value in sums.values()]
    summed = replicas.sum(whole)()
    sums = dict(zip(sums, torch.stack(summed).tolist(), strict=True))
    # without a readable image, the first stage ends the run
    count = max(1, sums.pop("count"))
    return {name: value / count for name, value in sums.items()}


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the peak of the device's allocator, or on a CPU the process's peak resident set."""
    if device.type != "cpu":
        return int(torch.accelerator.max_memory_allocated(device))
    return resident.peak()


def peak_memory(device: torch.device) -> Facts:
    """Returns `peak_memory_bytes`, and what they are of: "tensors", which is what a plan predicts,
    or the whole "process" with Python and torch."""
    of = "process" if device.type == "cpu" else "tensors"
    return {"peak_memory_bytes": peak_memory_bytes(device), "memory_of": of}
