"""What a rank records of its run: its spans and, for the steps of `trace.steps`, much more.

In these steps the device is measured beside the host, and torch's profiler may run. At the end the
first rank puts the traces of all stages together and names the largest waits.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from socket import gethostname

from pipeline_local.config import TraceConfig
from pipeline_local.console.screen import say, warn
from pipeline_local.errors import UserError
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record import run_trace, waits
from pipeline_local.record.clocks import ClockOffsets
from pipeline_local.record.device_times import DeviceTimes
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.profiler import Profiler
from pipeline_local.record.stage_trace import StageTrace
from pipeline_local.record.trace import CAPACITY, Trace
from pipeline_local.watch.status import EVERYONE, RankStatus
from pipeline_local.watch.store import RankStore

MOST = 1_000_000
"""The spans that are kept of `trace.steps`: some 500 MB in a file."""


class Recorder:
    """Records one rank of a run; all ranks make theirs together.

    Args:
        config: which steps to record.
        folder: the run's.
        rank_info: this rank.
        rank_store: of all ranks.
        status: of this rank, which follows the spans.
        mesh: of all ranks.

    Attributes:
        trace: holds the spans.
    """

    def __init__(
        self,
        config: TraceConfig,
        folder: RunFolder,
        rank_info: RankInfo,
        rank_store: RankStore,
        status: RankStatus,
        mesh: Mesh,
    ) -> None:
        self._mesh = mesh
        self._steps = config.steps
        self._folder = folder
        self._rank_info = rank_info
        self._status = status
        self.trace = Trace(CAPACITY if config.steps is None else MOST, status)
        self.trace.records = config.steps is None
        own = rank_info.device.type != "cpu" and config.steps is not None
        self._device = DeviceTimes(rank_info.device) if own else None
        self._profiler = Profiler(rank_info.device) if config.profiler else None
        now = {"time": datetime.now(timezone.utc).isoformat(timespec="microseconds")}
        self._start: str = rank_store.compare_set("start of the trace", now)["time"]
        self._clocks = ClockOffsets(rank_store)
        self._clocks.measure()

    def reach(self, step: int) -> None:
        """Records from now on, or no longer, as `trace.steps` says.

        Args:
            step: the number of the step that begins, or of the last one before an evaluation or a
                checkpoint.
        """
        if self._steps is None:
            return
        inside = self._steps[0] <= step <= self._steps[1]
        if inside and not self.trace.records:
            self._begin()
        elif self.trace.records and not inside:
            self._end()

    def _begin(self) -> None:
        for probe in (self._device, self._profiler):
            if probe is not None:
                probe.start()
                self.trace.probes += (probe.during,)
        self.trace.records = True

    def _end(self) -> None:
        self.trace.records, self.trace.probes = False, ()
        if self._profiler is not None:
            self._profiler.stop()

    def align(self) -> None:
        """Compares the clocks again; all ranks call it together, after the last step."""
        self._status.enter("comparing the clocks", peer=EVERYONE)
        self._clocks.measure()

    def write(self, failed: bool = False) -> None:
        """Writes what was recorded.

        Args:
            failed: whether the run has: then there is no profile where the profiler still runs on a
                GPU with neighbours. To end it, torch waits for all that the GPU has to do, and a
                posted receive may be of a rank that sends no more.
        """
        if not self.trace.spans:
            return  # a resumed run may be beyond `trace.steps`; what it has left stays
        with _warning(self._folder):
            if self.trace.records:
                alone = self._rank_info.world_size == 1 or self._rank_info.device.type == "cpu"
                if failed and not alone:
                    self._profiler = None
                self._end()
            place = _place(self._mesh, self._rank_info.rank)
            self._stage_trace().write(self._folder.trace(*place))
            if self._profiler is not None:
                self._profiler.write(self._folder.profile(*place))

    def _stage_trace(self) -> StageTrace:
        device = []
        with suppress(RuntimeError):  # after an error a device may answer nothing more
            device = self._device.spans() if self._device else []
        return StageTrace(
            rank=self._rank_info.rank,
            num_ranks=self._rank_info.world_size,
            host=gethostname(),
            start=self._start,
            spans=self.trace.spans,
            device=device,
            clock=self._clocks.samples,
            place=self._mesh.place(self._rank_info.rank),
        )

    def conclude(self) -> None:
        """Puts the traces of all stages into one file, and prints the largest waits.

        The first rank calls it, once all others have written theirs.
        """
        if self._steps is None or not self.trace.spans:
            return
        try:
            say("\n".join(put_together(self._folder, mesh=self._mesh)))
        except UserError as error:
            warn(str(error))


@contextmanager
def _warning(folder: RunFolder) -> Iterator[None]:
    """Warns where a trace cannot be written; the run goes on, or ends with its own error.

    Torch's profiler raises a RuntimeError where it cannot write.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        warn(f"the trace in {folder.path} cannot be written ({error})")


def _place(mesh: Mesh, rank: int) -> tuple[int, int]:
    """Returns the stage of a rank, and its number among the replicas."""
    return mesh.stage(rank), mesh.replica(rank)


def _named(steps: tuple[int, int]) -> str:
    return f"trace.steps=[{steps[0]},{steps[1]}]"


def put_together(
    folder: RunFolder, shown: int = waits.SHOWN, mesh: Mesh | None = None
) -> list[str]:
    """Writes `trace.json` of what the ranks have left; returns what it shows, in words.

    Args:
        folder: the run's.
        shown: the number of waits to name.
        mesh: of the ranks; None: those that have left something.

    Raises:
        UserError: there is no trace, or the file cannot be written.
    """
    # by name: over NFS a listing of the folder may be older than the files
    if mesh is None:
        paths = folder.traces()
    else:
        paths = [folder.trace(*_place(mesh, rank)) for rank in range(mesh.num_ranks)]
    found = run_trace.gather(paths)
    if found is None:
        steps = folder.load_config().trace.steps
        reached = "it has not ended" if steps is None else f"it has not reached {_named(steps)}"
        raise UserError(
            f"{folder.path} holds no trace, as {reached}, or was killed; let it end, or train"
            f" again with run.dir=NEW trace.steps=[FIRST,LAST]"
        )
    try:
        found.write(folder.timeline)
    except OSError as error:
        raise UserError(
            f"{folder.timeline} cannot be written ({error.strerror or error}); free disk space or"
            f" fix the permissions, then run pipeline-local trace {folder.path}"
        ) from None
    named = f"timeline: {folder.timeline}; open it in https://ui.perfetto.dev"
    return [*waits.report(found, shown), named]
