"""What may befall a run: a signal to a rank at a random moment, a damaged file."""

import os
import signal
import time
from dataclasses import dataclass
from random import Random

from pipeline_local import atomic
from pipeline_local.pipeline.stage import Stage
from pipeline_local.watch.store import RankStore
from tests.forked import Forked

PACE = 0.02
"""Seconds that the first rank adds to each step, so that there is a run to hit."""

KINDS = {
    "SIGKILL at any moment": (signal.SIGKILL, "moment"),
    "SIGKILL of all ranks at once": (signal.SIGKILL, "moment"),
    "SIGKILL at any moment, while all write slowly": (signal.SIGKILL, "moment"),
    "SIGKILL in a step": (signal.SIGKILL, "step"),
    "SIGKILL within the write of a file": (signal.SIGKILL, "write"),
    "SIGKILL between write and rename": (signal.SIGKILL, "write"),
    "SIGSTOP in a step": (signal.SIGSTOP, "step"),
    "SIGSTOP at the end": (signal.SIGSTOP, "end"),
    "SIGTERM in a step": (signal.SIGTERM, "step"),
    "SIGTERM at any moment": (signal.SIGTERM, "moment"),
    "SIGUSR1 in a step": (signal.SIGUSR1, "step"),
    "Ctrl-C in a step": (signal.SIGINT, "step"),
    "SIGUSR1 within the write of a file": (signal.SIGUSR1, "write"),
}
"""Signal, and what its moment is drawn from."""
DAMAGES = ("truncated file", "flipped bit", "emptied file", "missing file")


@dataclass(frozen=True)
class Fault:
    """A signal to one rank.

    Attributes:
        kind: one of `KINDS`.
        victim: the rank, if it is not all of them.
        seconds: moment after the start.
        step: number of the optimizer step.
        file: how many files the victim writes before, in this attempt.
        part: how much of the next one.
    """

    kind: str
    victim: int
    seconds: float
    step: int
    file: int
    part: float

    @classmethod
    def draw(cls, random: Random, ranks: int, start: int, steps: int) -> "Fault":
        """A fault of a run of some ranks, from step `start` to step `steps`."""
        return cls(
            kind=random.choice(list(KINDS)),
            victim=random.randrange(ranks),
            seconds=random.uniform(0.0, 0.6 + (steps - start) * PACE * 2),
            step=start + int((steps - start) * random.random()),
            file=random.randrange(4),
            part=random.random(),
        )

    def __str__(self):
        at = {
            "moment": f"after {self.seconds:.3f} s",
            "step": f"number {self.step}",
            "write": f"number {self.file}, at {self.part:.1%}",
            "end": "once its results are handed in",
        }
        return f"{self.kind}, {at[KINDS[self.kind][1]]}, rank {self.victim}"

    @property
    def moment(self) -> str:
        """What its moment is drawn from."""
        return KINDS[self.kind][1]

    def prepare(self, rank: int) -> None:
        """In each rank, before it begins."""
        if self.kind.endswith("slowly"):
            in_each_write(lambda path, parts: time.sleep(0.1))
        mine = rank == self.victim
        number, moment = KINDS[self.kind]
        if mine and moment == "write":
            in_each_write(self._strike_in_write())
        if mine and moment == "end":
            once_results_are_in(lambda: oneself(number))
        at_each_step(
            lambda step: (
                oneself(number)
                if mine and moment == "step" and step == self.step
                else time.sleep(PACE if rank == 0 else 0)
            )
        )

    def strike(self, run: Forked) -> None:
        """From outside, while the ranks run."""
        number, moment = KINDS[self.kind]
        if moment == "moment":
            run.wait(self.seconds)
            everybody = range(len(run.processes)) if "all ranks" in self.kind else [self.victim]
            for rank in everybody:
                run.signal(rank, number)

    def _strike_in_write(self):
        files = []

        def strike(path, parts):
            files.append(path)
            if len(files) == self.file + 1:
                data = b"".join(parts)
                size = len(data) if self.kind.endswith("rename") else int(len(data) * self.part)
                path.with_suffix(".partial").write_bytes(data[:size])
                oneself(KINDS[self.kind][0])

        return strike


def damage(path, random: Random) -> str:
    """Cut a file off, empty or delete it, or flip one of its bits; says which."""
    kind = random.choice(DAMAGES)
    if kind == "missing file":
        path.unlink()
        return kind
    data = bytearray(path.read_bytes())
    if not data:  # by an earlier round
        return "emptied file"
    rank_info = 0 if kind == "emptied file" else random.randrange(len(data))
    if kind == "flipped bit":
        data[rank_info] ^= 1 << random.randrange(8)
    else:
        del data[rank_info:]
    path.write_bytes(data)
    return kind


def oneself(number: int) -> None:
    """Signal this process."""
    os.kill(os.getpid(), number)


def at_each_step(do) -> None:
    """In this process, call `do(number)` at the beginning of each optimizer step."""
    train = Stage.train

    def step(stage, step):
        do(step.number)
        train(stage, step)

    Stage.train = step


def once_results_are_in(do) -> None:
    """In this process, call `do()` once everything is saved and the results are handed in."""
    pin = RankStore.set

    def pinned(rank_store, topic, facts):
        pin(rank_store, topic, facts)
        if topic == "result":
            do()

    RankStore.set = pinned


def in_each_write(do) -> None:
    """In this process, call `do(path, parts)` before each file is written that must be whole."""
    write = atomic.write

    def written(path, parts):
        parts = list(parts)
        do(path, parts)
        write(path, parts)

    atomic.write = written
