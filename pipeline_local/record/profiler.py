"""torch's profiler in some steps of a run, with the stage's acts by name."""

from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from pipeline_local.record.trace import What


class Profiler:
    """Profiles one stage, once.

    Args:
        device: of the stage.
    """

    def __init__(self, device: torch.device) -> None:
        self._activities = {ProfilerActivity.CPU}
        if device.type != "cpu":
            self._activities |= torch.profiler.supported_activities()  # type: ignore[no-untyped-call]
        self._profile = torch.profiler.profile(activities=self._activities)

    def start(self) -> None:
        """Begins to profile this thread and, on a GPU, its kernels."""
        self._profile.start()

    def pause(self) -> None:
        """Profiles no longer.

        It must not stop yet: a message under way would write its end into memory that is freed
        (findings/torch-profiler-pending-recv.sh).
        """
        self._profile.toggle_collection_dynamic(False, self._activities)

    def during(self, what: What) -> AbstractContextManager[object]:
        """Names the enclosed act in the profile."""
        return torch.profiler.record_function(f"{what.act}, module {what.module + 1}")

    def write(self, path: Path) -> None:
        """Stops, once no message is under way, and writes the profile in Chrome's format.

        Raises:
            OSError: no space, no permission.
        """
        self._profile.stop()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(path))
