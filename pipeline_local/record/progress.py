"""The progress display: one line per logged step, from what every stage has pinned to the board."""

import sys

from pipeline_local.record.metrics import Facts


class Progress:
    """Shows how far the run is. On a terminal the line is redrawn, in a file lines follow.

    Args:
        num_steps: of the whole run.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._live = sys.stdout.isatty()

    def announce(self, lines: list[str]) -> None:
        """Say what is about to run."""
        print("\n".join(lines), flush=True)

    def show(self, stages: list[Facts], tests: list[Facts]) -> None:
        """Show the latest facts of all stages: of a training step, and of an evaluation."""
        if not stages:
            return
        line = self.line(stages, tests)
        print(f"\r\x1b[K{line}" if self._live else line, end="" if self._live else "\n", flush=True)

    def close(self) -> None:
        """Leave the last line standing."""
        if self._live:
            print(flush=True)

    def line(self, stages: list[Facts], tests: list[Facts]) -> str:
        """The text: step of the first stage, pace, and per module loss, cosine, test accuracy."""
        columns = [
            f"step {stages[0]['step']}/{self._num_steps}",
            f"{stages[0]['samples_per_second']:.0f} samples/s",
            _per_module(stages, "loss", "{:.3f}"),
            _per_module(stages, "cosine", "{:+.2f}"),
            _per_module(tests, "accuracy", "{:.1%}"),
        ]
        return "  ".join(column for column in columns if column)


class Silent:
    """The display of all ranks but the first."""

    def announce(self, lines: list[str]) -> None:
        """Say nothing."""

    def show(self, stages: list[Facts], tests: list[Facts]) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing to leave."""


def _per_module(stages: list[Facts], name: str, form: str) -> str:
    modules = {int(k): row for facts in stages for k, row in facts["modules"].items()}
    values = [form.format(modules[k][name]) for k in sorted(modules) if name in modules[k]]
    return f"{name} {' '.join(values)}" if values else ""
