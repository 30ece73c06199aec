"""The rank of this process, its device, and how it joins the other ranks."""

import os
import platform
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipeline_local.config import ParallelConfig
from pipeline_local.errors import NeighbourLostError, RefusedElsewhereError, UserError, counted
from pipeline_local.gpus import choice
from pipeline_local.gpus.choice import Choice
from pipeline_local.ranks import p2p
from pipeline_local.ranks.interfaces import check_interfaces
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.ranks.p2p import P2PKind
from pipeline_local.ranks.rendezvous import rendezvous

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Longest wait for all ranks to do what each of them has to do, once they have started."""

NO_LIMIT = timedelta(days=1)
"""The timeout of a transfer: in effect none, as the watchdog limits how long a rank may wait."""

START_TIMEOUT = timedelta(minutes=10)
"""Longest wait for all ranks to start."""


@dataclass(frozen=True)
class RankInfo:
    """One rank among all, as the launcher (torchrun, deepspeed, ours) has started it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launched: bool = False
    """Whether a launcher started this process."""
    restarted: bool = False
    """Whether torchrun has restarted the ranks after a failure."""
    chosen: Choice | None = None
    """Which GPU each rank of this host takes; None: that of its local rank."""

    @classmethod
    def from_environment(cls) -> "RankInfo":
        """Reads RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE.

        Where the program has joined a process group of several ranks itself, that one counts.

        Raises:
            UserError: one of them is not a number, only some are set, or the rank is not below the
                world size.
        """
        if dist.is_initialized() and dist.get_world_size() > 1:
            return cls(dist.get_rank(), dist.get_world_size(), *_places_here(), launched=True)
        if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
            _refuse_bare_srun()
            return cls()
        try:
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            local_rank = int(os.environ.get("LOCAL_RANK", rank))
            # deepspeed sets LOCAL_SIZE
            said = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")
            local_size = _on_this_host(said) if said else world_size
            restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"the launcher's environment is incomplete: RANK and WORLD_SIZE must be numbers,"
                f" got {error}; start with torchrun, deepspeed or plain pipeline-local"
            ) from None
        if not 0 <= rank < world_size or local_rank < 0:
            raise UserError(
                f"the launcher's environment is wrong: RANK must be from 0 to WORLD_SIZE - 1, got"
                f" {rank} of {world_size} (LOCAL_RANK {local_rank}); start with torchrun, deepspeed"
                f" or plain pipeline-local"
            )
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=local_size,
            launched=True,
            restarted=restarts > 0,
        )

    def placed(self, config: ParallelConfig) -> "RankInfo":
        """Returns this rank with a GPU that `parallel.devices` or the links of the host give it."""
        here = self.local_world_size
        with suppress(UserError):  # where the run is checked, it is refused
            first = self.rank - self.local_rank  # the ranks of a host have consecutive numbers
            pairs = [(a - first, b - first) for a, b in self.mesh(config).neighbours()]
            pairs = [pair for pair in pairs if min(pair) >= 0 and max(pair) < here]
            return replace(self, chosen=choice.choose(here, config.devices, pairs))
        return self

    @property
    def device(self) -> torch.device:
        """The GPU of this rank, shared round robin if there are too few; without one the CPU.

        It may be any accelerator that torch supports: CUDA's, ROCm's, Intel's, or another.
        """
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None:
            return torch.device("cpu")
        number = self.local_rank % torch.accelerator.device_count()
        if self.chosen is not None:
            number = self.chosen.devices[self.local_rank]
        return torch.device(accelerator.type, number)

    def mesh(self, config: ParallelConfig) -> Mesh:
        """Returns the stages and replicas of a run; a launcher's ranks make as many stages as they
        can where the configuration does not say it.

        Raises:
            UserError: the launcher started another number of ranks than the configuration needs.
        """
        if not self.launched and config.replicas == "auto":
            raise UserError(
                "parallel.replicas=auto shares out the ranks that a launcher has started, got none;"
                " start with torchrun --nproc-per-node N, or give numbers"
            )
        if not self.launched:
            return Mesh.of(config)
        mesh = Mesh.of(config, self.world_size)
        if mesh.num_ranks != self.world_size:
            has = "the program's group has" if dist.is_initialized() else "the launcher started"
            asked = f"parallel.stages={config.stages}"
            if mesh.is_replicated:
                asked = f"parallel.replicas={config.replicas} of {mesh.num_stages} stages"
            other = "" if mesh.is_replicated else f" or pass parallel.stages={self.world_size}"
            raise UserError(
                f"{asked} needs {counted(mesh.num_ranks, 'rank')}, but {has} {self.world_size};"
                f" start {mesh.num_ranks}{other}"
            )
        return mesh

    def threads(self, config: ParallelConfig) -> int:
        """Returns `parallel.threads`, or an equal share of this host's cores."""
        return config.threads or max(1, len(os.sched_getaffinity(0)) // self.local_world_size)

    def prepare(self, config: ParallelConfig) -> None:
        """Sets torch up for this rank: its threads, its device, and float32 without TF32."""
        torch.set_num_threads(self.threads(config))
        torch.set_float32_matmul_precision("highest")  # a program may have lowered it, for CPUs too
        if self.device.type != "cpu":
            torch.accelerator.set_device_index(self.device)
            # the rounding of TF32 is larger than the differences that reconciliation works with
            torch.backends.cudnn.allow_tf32 = False

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """A context in which CPUs add up numbers in one order, whatever the number of threads.

        In the backward pass of `table[index]` their threads would add to one row as they come. On
        GPUs this would cost time, and refuse operations.
        """
        found = torch.are_deterministic_algorithms_enabled()
        if found or self.device.type != "cpu":
            yield
            return
        memory: Any = torch.utils.deterministic
        filled = memory.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = False  # for debugging, and slow
        try:
            yield
        finally:
            memory.fill_uninitialized_memory = filled
            torch.use_deterministic_algorithms(False)

    def p2p_kind(self, config: ParallelConfig) -> P2PKind:
        """Returns the fastest point-to-point transport that this rank can use.

        Raises:
            UserError: nccl was asked for without a GPU for every rank, `parallel.devices` names
                other GPUs than those of this host, or the environment an interface that is not
                here.
        """
        choice.check(self.local_world_size, config.devices)
        gpus = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
        kind = p2p.choose(config.backend, gpus, self.local_world_size)
        if self.world_size > 1:
            check_interfaces(nccl=kind == "nccl")
        return kind

    def group_backend(self, config: ParallelConfig) -> str:
        """Returns the backend of a group for CPU tensors and, where possible, GPU tensors."""
        if self.world_size == 1 or not p2p.by_device(self.p2p_kind(config)):
            return p2p.HOST_BACKEND
        return f"cpu:{p2p.HOST_BACKEND},{self.device.type}:{device_backend(self.device)}"

    @property
    def device_name(self) -> str:
        """The name of the device that this rank computes on, for display."""
        if self.device.type == "cpu":
            return f"cpu ({platform.machine()})"
        return str(torch.get_device_module(self.device).get_device_name(self.device))

    def explain(self, config: ParallelConfig) -> str:
        """Returns one line for display: what this run uses, and why."""
        cores = len(os.sched_getaffinity(0))
        threads = self.threads(config)
        shared = f"{counted(cores, 'core')} / ranks of this host"
        reason = "parallel.threads" if config.threads else shared
        stages = self.mesh(config).describe()
        over = f" over {self.p2p_kind(config)}" if self.world_size > 1 else ""
        waits = threads > 1 and not config.threads and self.device.type == "cpu"
        busy = _busy() if waits else ""
        return (
            f"{stages} on {self.device.type}{over}; {counted(threads, 'CPU thread')} each"
            f" ({reason}){busy}{f'; {self.chosen}' if self.chosen else ''}"
        )


def _busy() -> str:
    """Says that this host has other work, which threads that wait for each other suffer from.

    It is no reason for another default: weights are bit-identical at equal numbers of threads only.
    """
    with suppress(OSError):
        (load, *_), cores = os.getloadavg(), os.cpu_count() or 1
        if load >= cores / 2:
            return (
                f"; this host was busy in the last minute (load {load:.1f} on {cores} cores): if it"
                f" stays so, parallel.threads=1 is up to 5 times faster for small models"
            )
    return ""


def _on_this_host(text: str) -> int:
    """Reads a number, or Slurm's list of tasks per node such as 2(x3),1.

    Raises:
        ValueError: it is neither.
    """
    node = int(os.environ.get("SLURM_NODEID", 0))
    counts = [n for part in text.split(",") for n in _repeated(part.strip())]
    if min(counts, default=0) < 1 or (len(counts) > 1 and node >= len(counts)):
        raise ValueError(f"LOCAL_WORLD_SIZE={text!r}")
    return counts[node if len(counts) > 1 else 0]


def _repeated(part: str) -> list[int]:
    found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
    if found is None:
        raise ValueError(f"LOCAL_WORLD_SIZE={part!r}")
    return [int(found[1])] * int(found[2] or 1)


def _places_here() -> tuple[int, int]:
    """Local rank and local size in the program's own process group, by the hosts of its ranks."""
    store = dist.PrefixStore("pipeline_local hosts", _group_store())
    own, count = dist.get_rank(), dist.get_world_size()
    store.set(str(own), socket.gethostname())
    hosts = [store.get(str(rank)) for rank in range(count)]
    return hosts[:own].count(hosts[own]), hosts.count(hosts[own])


def _group_store() -> dist.Store:
    store: dist.Store = dist.distributed_c10d._get_default_store()
    return store


def host_of(store: dist.Store) -> str:
    """The host that serves a store; this one where it is a file."""
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return str(getattr(store, "host", "localhost"))


def _refuse_bare_srun() -> None:
    """Refuses an srun step of several tasks without a launcher: each would train alone."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1":
        raise UserError(
            f"srun started {tasks} tasks without a launcher; run torchrun under srun, one task per"
            f" node (launch/slurm/train.sbatch)"
        )


@contextmanager
def _group_of_one(backend: str) -> Iterator[None]:
    """Makes a process group of this process alone, unless the program has its own."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def joined(
    rank_info: RankInfo, backend: str = p2p.HOST_BACKEND, grouped: bool = False
) -> Iterator[dist.Store]:
    """Joins all other ranks, for the time of the context; gives the store that all of them share.

    Args:
        rank_info: this rank.
        backend: the backend of the process group of all ranks.
        grouped: whether a single rank gets a process group, too.

    Raises:
        UserError: the address cannot be reached, its port is taken, or a rank is late.
        NeighbourLostError: another rank has started to join, and is gone.
    """
    if rank_info.world_size == 1:
        with _group_of_one(backend) if grouped else nullcontext():
            yield dist.HashStore()
        return
    own = dist.is_initialized()  # the program's own group, which outlives the run
    try:
        check_interfaces()
    except UserError:
        if rank_info.local_rank > 0:  # the first one of this host tells
            raise RefusedElsewhereError from None
        raise
    store = _group_store() if own else _rendezvous_store()
    with connecting():
        store = rendezvous(store, rank_info.rank, rank_info.world_size, START_TIMEOUT)
        before = set(dist.distributed_c10d._world.pg_map)
        if not own:
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("group", store),
                rank=rank_info.rank,
                world_size=rank_info.world_size,
                timeout=COLLECTIVE_TIMEOUT,
            )
    try:
        yield dist.PrefixStore("pipeline_local", store)
    finally:
        if not own:
            dist.destroy_process_group()
        for group in dist.distributed_c10d._world.pg_map.keys() - before:
            dist.destroy_process_group(group)


@contextmanager
def connecting() -> Iterator[None]:
    """Raises NeighbourLostError where another rank dies while the ranks connect to each other.

    Torch reports that by a RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        raise NeighbourLostError(None, str(error).splitlines()[0]) from error


def _rendezvous_store() -> dist.Store:
    """Connects to the store at MASTER_ADDR:MASTER_PORT; the first rank or a launcher serves it."""
    address = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    try:
        store: dist.Store
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=START_TIMEOUT)))
    except (dist.DistError, ValueError) as error:
        taken = "EADDRINUSE" in str(error)
        reason = "the port is taken" if taken else str(error).splitlines()[0]
        raise UserError(
            f"the ranks cannot connect at MASTER_ADDR:MASTER_PORT, got {address!r} ({reason}); pass"
            f" another --master-port to the launcher, or --standalone on a single host"
        ) from None
    return store


def device_backend(device: torch.device) -> str:
    """Returns torch's backend between devices of this type: nccl for those of NVIDIA and AMD."""
    return dist.get_default_backend_for_device(device)
