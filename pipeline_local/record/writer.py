"""The checkpoint writer: its own thread, so that training goes on while a checkpoint is written.

A save copies the stage's modules and passes the copies to the thread. At most one write is under
way: a save that comes meanwhile waits for it. A failed write is reported at the next save or step.
"""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline_local.engines.sharded import kind
from pipeline_local.errors import UserError
from pipeline_local.learning.module import LocalModule
from pipeline_local.record.checkpoint import Checkpoints, tensors
from pipeline_local.record.snapshot import HostCopies, Snapshot
from pipeline_local.record.trace import Trace


class Writer:
    """Writes the checkpoints of one stage.

    Args:
        checkpoints: the checkpoints of the run.
        keep: how many of the newest valid checkpoints stay. The stage of the last module, which is
            usually the last to finish a step, deletes older ones once it has verified newer ones.
        trace: records the writes.
    """

    def __init__(self, checkpoints: Checkpoints, keep: int, trace: Trace | None = None) -> None:
        self._checkpoints = checkpoints
        self._keep = keep
        self._trace = trace or Trace()
        self._thread = ThreadPoolExecutor(1, "checkpoint-writer")
        self._snapshots: dict[int, Snapshot] = defaultdict(Snapshot)
        self._writing: Future[None] | None = None
        self.device_seconds = 0.0
        """The seconds by which copies have held up a GPU, unseen by the host."""

    def save(self, modules: Sequence[LocalModule], step: int) -> None:
        """Copies the modules after `step` optimizer steps, and begins to write them.

        Raises:
            UserError: an earlier write has failed.
        """
        self.wait()
        states = {m.index: tensors(m) for m in modules}
        if modules[0].replicas.index:
            return  # the first replica writes them
        copies = {index: self._snapshots[index].take(state) for index, state in states.items()}
        kinds = {module.index: kind(module.engine.optimizer) for module in modules}
        self._writing = self._thread.submit(self._write, copies, step, kinds)

    def check(self) -> None:
        """Checks, without waiting, whether the write under way has failed.

        Raises:
            UserError: it has.
        """
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Waits until no write is under way.

        Raises:
            UserError: the write has failed.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Ends the thread, after a write that may be under way. It reports no failure."""
        self._thread.shutdown()

    def _write(self, copies: dict[int, HostCopies], step: int, kinds: dict[int, str]) -> None:
        self.device_seconds += sum(copy.arrive() for copy in copies.values())
        try:
            for index, copy in copies.items():
                with self._trace.beside("write", step - 1, index):
                    self._checkpoints.write(index, copy.tensors, step, kinds[index])
        except OSError as error:
            raise UserError(
                f"checkpoint {self._checkpoints.at(step)} cannot be written"
                f" ({error.strerror or error}); earlier ones are complete: free disk space or fix"
                f" the permissions, then resume the run"
            ) from None
        if max(copies) == self._checkpoints.num_modules - 1:
            self._checkpoints.prune(self._keep)
