"""Batches by loader processes: they only share out the steps, whatever computes a batch."""

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pipeline_local.data.loaders import obey_rank_only, start_server
from pipeline_local.errors import UserError, first_line
from pipeline_local.process.by_value import main_not_imported, pack_for_child, unpack

Batch = tuple[Tensor, Tensor]

_SLOW = {"torchvision.transforms.v2"}
"""Modules that take seconds to import: where this process has them, its loaders will need them."""


class BatchSource(Protocol):
    """Computes batch number `step`, whichever were computed before."""

    @property
    def skipped(self) -> list[str]:
        """Gets the names of samples that are passed over in a batch."""

    def batch(self, step: int) -> Batch: ...


def load(source: BatchSource, steps: range, workers: int) -> Iterator[tuple[Batch, list[str]]]:
    """The batches of some steps, each with what was skipped in it.

    The loader processes end with the iterator, also when it is dropped or closed early.

    Args:
        source: pickled for each loader process.
        steps: numbers of the batches, in order.
        workers: loader processes; 0: batches are computed here.

    Raises:
        UserError: what the source raises, without a loader's traceback; or a loader process cannot
            get the source.
        RuntimeError: a loader process was killed.
    """
    workers = min(workers, len(steps))
    if workers:
        _start_server()
    loader = DataLoader(
        _Steps(source),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=obey_rank_only,
        pin_memory=torch.accelerator.is_available(),
        generator=torch.Generator(),  # or the loader draws from the caller's
    )
    try:
        for item in _started(loader):
            if isinstance(item, UserError):
                raise item
            batch, skipped = item
            yield tuple(batch), skipped
    except (ConnectionError, EOFError) as error:
        # torch says so itself, except where the kernel has not reaped the process yet.
        raise RuntimeError(f"a DataLoader worker has ended while a batch came: {error}") from error


def _start_server() -> None:
    try:
        start_server(["pipeline_local.data.images.batches", *_SLOW & sys.modules.keys()])
    except OSError as error:
        raise UserError(
            f"loader processes cannot be started ({error}); name a folder in TMPDIR that can be"
            f" written, or use none (data.workers=0)"
        ) from error


def _started(loader: "DataLoader[Any]") -> Iterator[Any]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # it is told below
            with main_not_imported():
                return iter(loader)
    except Exception as error:  # pickling a user's object may raise anything
        if loader.num_workers == 0:
            raise
        reason = first_line(error)
        raise UserError(
            f"the data cannot be handed to loader processes: got {reason}; let the data set open"
            f" such things when it reads, or use no loader processes (data.workers=0)"
        ) from error


@dataclass(frozen=True)
class _Steps(Dataset[tuple[Batch, list[str]] | UserError]):
    """A source as a torch data set whose items are whole batches, with what was skipped in each.

    A loader process would wrap an exception into its traceback, so a user's mistake is a value.
    """

    source: BatchSource

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (pack_for_child(self.source),)

    def __getitem__(self, step: int) -> tuple[Batch, list[str]] | UserError:
        self.source.skipped.clear()
        try:
            return _shared(self.source.batch(step)), list(self.source.skipped)
        except UserError as error:
            return error


def _shared(batch: Batch) -> Batch:
    """The batch in shared memory, if a loader process has made it.

    Torch would move it there itself, later, and without room for it lose the batch: the rank would
    wait for it until the watchdog ends the run.
    """
    if get_worker_info() is None:
        return batch
    try:
        for tensor in batch:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # the folder is full, or there is none
        size = sum(tensor.nbytes for tensor in batch) / 2**20
        raise UserError(
            f"loader processes have no shared memory for a batch of {size:.1f} MiB ({error}); give"
            f" /dev/shm more (containers: --shm-size=2g or --ipc=host), or use no loader processes"
            f" (data.workers=0)"
        ) from None
    return batch


def _unpacked(packed: bytes) -> _Steps:
    return _Steps(unpack(packed))
