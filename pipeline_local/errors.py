"""What can go wrong and how it is reported: one line each, and an exit code of its own."""

import difflib
from collections.abc import Sequence

EXIT_USER_ERROR = 2
EXIT_NEIGHBOUR_LOST = 3
EXIT_STALLED = 4
EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: the run is not complete, nothing is wrong, try again."""


class UserError(Exception):
    """A mistake that the user can fix: what is wrong, what was got, what to do.

    The command line prints it without a traceback; exit code 2.

    Example:
        >>> try:
        ...     load_config("configs/digits.yaml", ["train.epoch=3"])
        ... except UserError as error:
        ...     print(error)  # unknown key 'train.epoch'; did you mean 'train.epochs'?
    """


class ConfigError(UserError):
    """Every problem of a configuration at once, one line each.

    Args:
        problems: complete sentences, each with what is wrong, what was got and what to do.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class FitsNowhereError(ValueError):
    """A head or term that does not fit this run, however its network is cut.

    Args:
        why: what does not fit.
        advice: what to do.
    """

    def __init__(self, why: str, advice: str) -> None:
        self.advice = advice
        super().__init__(why)


class NeighbourLostError(Exception):
    """The process at the other end of an edge is gone; its own message says why. Exit code 3.

    Args:
        peer: its rank; None where that is not known yet, before the ranks have joined.
        reason: why the edge is thought to be broken.
    """

    def __init__(self, peer: int | None, reason: str) -> None:
        self.peer = peer
        whom = "another rank" if peer is None else f"rank {peer}"
        super().__init__(f"the connection to {whom} broke: {reason}")


class StalledError(Exception):
    """This process made no progress within `parallel.timeout`, and reports it. Exit code 4."""


class RefusedElsewhereError(Exception):
    """Another rank has refused the run and reports why; this one prints nothing. Exit code 2."""


class StoppedError(Exception):
    """A signal has asked the run to stop: all ranks have saved the same step. Exit code 75.

    Args:
        step: the optimizer steps done, after which there is a complete checkpoint.
        how: what continues the run: a command, or a call.

    Example:
        >>> try:
        ...     summary = fit(model, (x, y), (x, y), epochs=1, run_dir="runs/stopped")
        ... except StoppedError as stopped:  # SIGTERM, for instance of Slurm
        ...     print(f"saved after step {stopped.step}")
    """

    def __init__(self, step: int, how: str) -> None:
        self.step = step
        self.how = how
        super().__init__(
            f"stopped by a signal after step {step}, of which there is a complete checkpoint;"
            f" continue with: {how}"
        )


def did_you_mean(word: str, candidates: Sequence[str]) -> str:
    """Returns `; did you mean 'x'?` for a near miss, else an empty string."""
    near = difflib.get_close_matches(word, candidates, n=len(candidates) or 1, cutoff=0.6)

    def nearness(candidate: str) -> tuple[float, bool]:
        ratio = difflib.SequenceMatcher(None, candidate, word).ratio()
        return ratio, candidate.startswith(word[:-1])  # resnet21 is rather resnet20 than resnet32

    return f"; did you mean {max(near, key=nearness)!r}?" if near else ""


def few(names: Sequence[str], most: int = 5) -> str:
    """Returns the first names of many, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def counted(number: int, one: str, many: str | None = None) -> str:
    """Returns a number and its noun: `1 step`, `2 steps`; `many` where it takes more than an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def note_place(error: BaseException, place: str) -> None:
    """Notes where an error was raised, for display; what is noted first counts."""
    vars(error).setdefault(_PLACE, place)


def place_of(error: BaseException) -> str:
    """Returns where an error was raised; an empty string where nobody has noted it."""
    return str(vars(error).get(_PLACE, ""))


_PLACE = "pipeline_local_place"
"""The attribute that holds it; errors of other libraries may have one of a shorter name."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message; its type where it has none."""
    lines = map(str.strip, str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def type_and_line(error: BaseException) -> str:
    """Returns the type of an error, and the first line of its message where it has one."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
