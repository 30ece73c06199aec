"""torch's profiler in some steps of a run, with the stage's acts by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, record_function

from pipeline_local.record.trace import What


class Profiler:
    """Profiles one stage, once.

    Args:
        device: of the stage.
    """

    def __init__(self, device: torch.device) -> None:
        activities = {ProfilerActivity.CPU}
        if device.type != "cpu":
            activities |= torch.profiler.supported_activities()  # type: ignore[no-untyped-call]
        # torch 2.11 warns that it keeps one cycle only, unless told to keep all; there is one
        self._profile = torch.profiler.profile(activities=activities, acc_events=True)

    def start(self) -> None:
        """Begins to profile this thread and, on a GPU, its kernels."""
        self._profile.start()

    def stop(self) -> None:
        """Profiles no longer."""
        self._profile.stop()

    @contextmanager
    def during(self, what: What) -> Iterator[None]:
        """Names the enclosed act in the profile.

        Nothing inside of a send or a receive is recorded: a receive that is posted there and comes
        after the end would write into freed memory (torch 2.14.1).
        """
        with record_function(f"{what.act}, module {what.module + 1}"):
            posts = what.act in ("send", "recv")
            torch.autograd._enable_record_function(not posts)
            try:
                yield
            finally:
                torch.autograd._enable_record_function(True)

    def write(self, path: Path) -> None:
        """Writes the profile in Chrome's format.

        Raises:
            OSError: no space, no permission.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(path))
