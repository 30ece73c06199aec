"""How the ranks join: the store that all of them share, and their process group."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial

import torch.distributed as dist

from pipeline_local.config import ParallelConfig
from pipeline_local.errors import (
    NeighbourLostError,
    RefusedElsewhereError,
    StoppedError,
    UserError,
    first_line,
)
from pipeline_local.ranks import environment, p2p
from pipeline_local.ranks.interfaces import check_interfaces, towards
from pipeline_local.ranks.rank import RankInfo, group_store
from pipeline_local.ranks.rendezvous import await_listener, in_time, rendezvous

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Longest wait for all ranks to do what each of them has to do, once they have started."""

START_TIMEOUT = timedelta(minutes=10)
"""Longest wait for all ranks to start."""

ANSWER_TIMEOUT = timedelta(seconds=15)
"""Longest wait for the first rank once it has started."""

ABORT_SECONDS = 1.0
"""Longest time that an error waits until its process groups are aborted."""


@contextmanager
def _group_of_one() -> Iterator[None]:
    """Makes a process group of this process alone, unless the program has its own."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group(p2p.HOST_BACKEND, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def joined(
    rank_info: RankInfo, config: ParallelConfig | None = None, grouped: bool = False
) -> Iterator[dist.Store]:
    """Joins all other ranks, for the time of the context; gives the store that all of them share.

    Args:
        rank_info: this rank.
        config: whose transport the process group of all ranks is for, too; None: CPU tensors only.
        grouped: whether a single rank gets a process group, too.

    Raises:
        UserError: the address cannot be reached, its port is taken, or a rank is late; or this rank
            cannot use that transport.
        NeighbourLostError: another rank has started to join, and is gone.
    """
    if rank_info.world_size == 1:
        with _group_of_one() if grouped else nullcontext():
            yield dist.HashStore()
        return
    # before the others are waited for, where the launcher has said which of them are here
    backend = rank_info.group_backend(config) if rank_info.located else ""
    own = dist.is_initialized()  # the program's own group, which outlives the run
    try:
        check_interfaces()
    except UserError:
        if rank_info.located and rank_info.local_rank > 0:  # the first one of this host tells
            raise RefusedElsewhereError from None
        raise
    store = group_store() if own else _rendezvous_store(rank_info)
    with nullcontext() if own else towards(rank_info.first_host), _given_back(own):
        with connecting():
            serves = rank_info.rank == 0 or not environment.in_slurm_step()
            patience = START_TIMEOUT if serves else ANSWER_TIMEOUT
            store = rendezvous(store, rank_info.rank, rank_info.world_size, patience)
            shared = dist.PrefixStore("pipeline_local", store)
            if not own:
                dist.init_process_group(
                    backend or rank_info.on_host(shared).group_backend(config),
                    store=dist.PrefixStore("group", store),
                    rank=rank_info.rank,
                    world_size=rank_info.world_size,
                    timeout=COLLECTIVE_TIMEOUT,
                )
        yield shared


@contextmanager
def _given_back(own: bool) -> Iterator[None]:
    """Ends the process groups that are made meanwhile; the default one only if it is not the
    program's `own`.

    An orderly end waits for all that is under way. After an error that may never end: every stage
    but the first has posted a receive, and the sender may be gone. Over nccl such a wait would last
    until the launcher kills this rank, with the error untold. So there all is aborted, and in time
    or not, the error goes on.
    """
    before = set(dist.distributed_c10d._world.pg_map)

    def each(end: Callable[..., None]) -> None:
        if not own and dist.is_initialized():
            end()
        for group in dist.distributed_c10d._world.pg_map.keys() - before:
            end(group)

    def abort() -> None:
        with suppress(Exception):
            each(dist.distributed_c10d._abort_process_group)

    try:
        yield
    except StoppedError:  # nothing is under way
        each(dist.destroy_process_group)
        raise
    except BaseException:
        thread = threading.Thread(target=abort, name="abort", daemon=True)
        thread.start()
        thread.join(ABORT_SECONDS)
        raise
    each(dist.destroy_process_group)


@contextmanager
def connecting() -> Iterator[None]:
    """Raises NeighbourLostError where another rank dies while the ranks connect to each other.

    Torch reports that by a RuntimeError. One that tells of this rank alone passes as it is.
    """
    try:
        yield
    except RuntimeError as error:
        if p2p.is_own(error):
            raise
        raise NeighbourLostError(None, first_line(error)) from error


def _rendezvous_store(rank_info: RankInfo) -> dist.Store:
    """Connects to the store at MASTER_ADDR:MASTER_PORT; the first rank or a launcher serves it."""
    said = environment.launcher_variables()
    address = ":".join(said.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    try:
        if environment.in_slurm_step():
            return _step_store(said["MASTER_ADDR"], int(said["MASTER_PORT"]), rank_info)
        store: dist.Store
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=START_TIMEOUT)))
    except (dist.DistError, ValueError) as error:
        taken = "EADDRINUSE" in str(error)
        reason = "the port is taken" if taken else first_line(error)[:200]
        remedy = "pass another --master-port to the launcher, or --standalone on a single host"
        if environment.in_slurm_step():
            remedy = "set MASTER_PORT to one that is free"
        raise UserError(
            f"the ranks cannot connect at MASTER_ADDR:MASTER_PORT, got {address!r} ({reason});"
            f" {remedy}"
        ) from None
    return store


def _step_store(host: str, port: int, rank_info: RankInfo) -> dist.Store:
    """That of a step of Slurm, whose first rank serves it; no other job's ranks are met there.

    Raises:
        torch.distributed.DistError: the port is taken, or something else answers there.
    """
    connect = partial(
        dist.TCPStore,
        host,
        port,
        rank_info.world_size,
        is_master=rank_info.rank == 0,
        timeout=START_TIMEOUT,
        wait_for_workers=False,
        multi_tenant=True,
    )
    if rank_info.rank == 0:
        store = connect()
    else:
        await_listener(host, port, START_TIMEOUT)
        store = in_time(connect, ANSWER_TIMEOUT)
    return dist.PrefixStore(environment.slurm_start(), store)
