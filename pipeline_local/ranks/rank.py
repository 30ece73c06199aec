"""The rank of this process, and its device."""

import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from pipeline_local.config import ParallelConfig
from pipeline_local.errors import UserError, counted
from pipeline_local.gpus import choice
from pipeline_local.ranks import environment, p2p
from pipeline_local.ranks.interfaces import check_interfaces
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.ranks.p2p import P2PKind
from pipeline_local.ranks.processes import busy


@dataclass(frozen=True)
class RankInfo:
    """One rank among all, as the launcher (torchrun, deepspeed, srun, ours) has started it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    launched: bool = False
    """Whether a launcher started this process."""
    restarted: bool = False
    """Whether torchrun has restarted the ranks after a failure."""
    chosen: choice.Choice | None = None
    """Which GPU each rank of this host takes; None: that of its local rank."""
    located: bool = True
    """Whether it is known which ranks share this host; else `on_host` finds it out."""

    @classmethod
    def from_environment(cls) -> "RankInfo":
        """Reads RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, or Slurm's names for them.

        Where the program has joined a process group of several ranks itself, that one counts.

        Raises:
            UserError: one of them is not a number, only some are set, or the rank is not below the
                world size.
        """
        if dist.is_initialized() and dist.get_world_size() > 1:
            again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
            group = cls(dist.get_rank(), dist.get_world_size(), launched=True, restarted=again)
            return replace(group, located=False).on_host(group_store())
        said = environment.launcher_variables()
        if not said:
            return cls()
        try:
            rank, world_size = int(said["RANK"]), int(said["WORLD_SIZE"])
            local_rank = int(said.get("LOCAL_RANK", rank))
            # deepspeed sets LOCAL_SIZE
            size = said.get("LOCAL_WORLD_SIZE") or said.get("LOCAL_SIZE")
            local_size = environment.on_this_host(size) if size else world_size
            restarts = int(said.get("TORCHELASTIC_RESTART_COUNT", 0))
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
            located=bool(size) and "LOCAL_RANK" in said,
        )

    @classmethod
    def of_host(cls, count: int) -> "RankInfo":
        """Returns the first of so many ranks that are all on this host, before they are started."""
        return cls(world_size=count, local_world_size=count)

    def on_host(self, store: dist.Store) -> "RankInfo":
        """Returns this rank with its place among the ranks of its host, told apart by their names.

        Kubernetes, and ranks that are started by hand, do not say it.

        Args:
            store: shared by all ranks, which call this together.
        """
        if self.located:
            return self
        hosts_store = dist.PrefixStore("pipeline_local hosts", store)
        hosts_store.set(str(self.rank), socket.gethostname())
        hosts = [hosts_store.get(str(rank)) for rank in range(self.world_size)]
        own = hosts[self.rank]
        return replace(
            self,
            local_rank=hosts[: self.rank].count(own),
            local_world_size=hosts.count(own),
            located=True,
        )

    @property
    def first_host(self) -> str:
        """The address of the first of several hosts; empty where all ranks are on this one."""
        several = not self.located or self.local_world_size < self.world_size
        return environment.launcher_variables().get("MASTER_ADDR", "") if several else ""

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
            other = f" or pass parallel.stages={self.world_size}"
            if mesh.is_replicated:
                asked = f"parallel.replicas={config.replicas} of {mesh.num_stages} stages"
                other = ", or change parallel.stages or parallel.replicas"
            raise UserError(
                f"{asked} needs {counted(mesh.num_ranks, 'rank')}, but {has} {self.world_size};"
                f" start {mesh.num_ranks}{other}"
            )
        return mesh

    def threads(self, config: ParallelConfig) -> int:
        """Returns `parallel.threads`, or an equal share of this host's cores."""
        return config.threads or max(1, environment.cores() // self.local_world_size)

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

    def group_backend(self, config: ParallelConfig | None) -> str:
        """Returns the backend of a group for CPU tensors and, where possible, GPU tensors."""
        if config is None or not p2p.by_device(self.p2p_kind(config)):
            return p2p.HOST_BACKEND
        return f"cpu:{p2p.HOST_BACKEND},{self.device.type}:{p2p.device_backend(self.device)}"

    @property
    def device_name(self) -> str:
        """The name of the device that this rank computes on, for display."""
        if self.device.type == "cpu":
            return f"cpu ({platform.machine()})"
        return str(torch.get_device_module(self.device).get_device_name(self.device))

    def explain(self, config: ParallelConfig) -> str:
        """Returns one line for display: what this run uses, and why."""
        cores = environment.cores()
        threads = self.threads(config)
        shared = f"{counted(cores, 'core')} / ranks of this host"
        reason = "parallel.threads" if config.threads else shared
        stages = self.mesh(config).describe()
        over = f" over {self.p2p_kind(config)}" if self.world_size > 1 else ""
        waits = threads > 1 and not config.threads and self.device.type == "cpu"
        load = busy() if waits else ""
        return (
            f"{stages} on {self.device.type}{over}; {counted(threads, 'CPU thread')} each"
            f" ({reason}){load}{f'; {self.chosen}' if self.chosen else ''}"
        )


def group_store() -> dist.Store:
    """Returns the store of the process group that the program has joined itself."""
    store: dist.Store = dist.distributed_c10d._get_default_store()
    return store
