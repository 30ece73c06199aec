"""The baselines: other methods that train the same network, written as their libraries advise.

    bp          Backprop      the whole network in one process
    checkpoint  Backprop      the same, with activation checkpointing
    accumulate  Backprop      the same, one microbatch after the other
    loop        Loop          local learning as a plain loop over the modules
    ddp         Replicated    torch's DistributedDataParallel
    gpipe, 1f1b pipelines.py  torch.distributed.pipelining, one stage per rank
    interleaved pipelines.py  1F1B with two stages per rank
    zerobubble  pipelines.py  the same; weight gradients fill the bubbles
    zbv         pipelines.py  ZB-V: zero bubble, two stages per rank in the shape of a V
    dualpipev   pipelines.py  DualPipeV: two V's at once
    deepspeed   deepspeeds.py DeepSpeed's pipeline engine
    deepspeed-dualpipev deepspeeds.py DeepSpeed's DualPipeV
    local       local.py      local learning, this package's own method

Every rank builds every baseline; all ranks of a baseline call its methods together.
"""

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline_local.bench.baseline import (
    Baseline,
    Idle,
    TrainedParts,
    Unavailable,
    UnavailableError,
    Weights,
    Workload,
    check_ranks,
    network_weights,
)
from pipeline_local.bench.deepspeeds import DeepSpeed, DualPipeV
from pipeline_local.bench.pipelines import SCHEDULES, Pipelined, without_buffers
from pipeline_local.learning.precision import autocast


class Backprop(TrainedParts):
    """Plain backpropagation of the whole network.

    Args:
        workload: the network and batch.
        microbatches: equal parts of the batch, whose gradients are added up.
        recompute: use activation checkpointing.
    """

    def __init__(self, workload: Workload, microbatches: int = 1, recompute: bool = False) -> None:
        super().__init__(workload)
        self._microbatches = microbatches
        self._recompute = recompute

    def setup(self) -> None:
        """Build the whole network."""
        (self._network,) = self.make(self.workload.all_blocks, recompute=self._recompute)

    def step(self) -> None:
        """Run forward and backward on each microbatch, then update."""
        count = self._microbatches
        x, labels = (tensor.chunk(count) for tensor in self.workload.batch)
        for part, target in zip(x, labels, strict=True):
            loss = self.workload.loss(self._network(part), target) / count
            loss.backward()  # type: ignore[no-untyped-call]
        self.update()


class Loop(TrainedParts):
    """Local learning of all modules in one process, as one would write it by hand.

    Nothing is recorded, checked, seeded or sent: what local learning costs the host at least.
    """

    def setup(self) -> None:
        """Build all modules, and one optimizer for all."""
        blueprint, config = self.workload.blueprint, self.workload.config
        if blueprint.run_plan.lag.contents or config.head.fraction < 1 or config.information.name:
            raise UnavailableError(
                "its heads learn from their own loss alone, on the whole batch; set"
                " head.fraction=1 and leave out what is sent upstream and information.name"
            )
        device, count = self.workload.rank_info.device, len(blueprint.modules)
        self.modules = [blueprint.module(index, device) for index in range(count)]
        self.optimizer = self.workload.optimizer(nn.ModuleList(self.modules))
        self._inside = blueprint.wire_format.inside

    def step(self) -> None:
        """Run forward and backward of each module in turn, then update all."""
        x, labels = self.workload.batch
        for module in self.modules:
            with autocast(x.device.type, self._inside):
                y = module.body(x)
                loss = self.workload.loss(module.head(y), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            x = y.detach()
        self.update()

    def weights(self) -> Weights:
        """Return the weights without those of the auxiliary heads."""
        return network_weights(self.workload.blueprint, self.modules)


class Replicated(TrainedParts):
    """DistributedDataParallel: each rank has the whole network and its share of the batch."""

    def setup(self) -> None:
        """Build the whole network, with gradients that are views of DDP's buckets."""
        rank_info = self.workload.rank_info
        check_ranks(self.workload)
        (network,) = self.make(self.workload.all_blocks)
        devices = [rank_info.device] if rank_info.device.type != "cpu" else None
        self._replica = DistributedDataParallel(
            network, devices, gradient_as_bucket_view=True, **without_buffers()
        )
        x, labels = self.workload.batch
        self._x = x.chunk(rank_info.world_size)[rank_info.rank]
        self._labels = labels.chunk(rank_info.world_size)[rank_info.rank]

    def step(self) -> None:
        """Run forward, backward (DDP overlaps its all-reduce with it) and update."""
        self.workload.loss(self._replica(self._x), self._labels).backward()  # type: ignore[no-untyped-call]
        self.update()


Make = Callable[[Workload, int], Baseline]
"""Makes a baseline from the workload and the number of microbatches."""

WHOLE: dict[str, Make] = {
    "bp": lambda workload, _: _one_process(workload, Backprop(workload)),
    "checkpoint": lambda workload, _: _one_process(workload, Backprop(workload, recompute=True)),
    "accumulate": lambda workload, count: _one_process(workload, _accumulating(workload, count)),
    "loop": lambda workload, _: _one_process(workload, Loop(workload)),
}
"""Baselines in one process, with the threads of all ranks."""

ACCUMULATING = ("accumulate",)
"""Those of them that cut the batch into microbatches."""

REPLICATED: dict[str, Make] = {"ddp": lambda workload, _: Replicated(workload)}
"""Baselines in which each rank has the whole network."""

PIPELINED: dict[str, Make] = {
    **{name: partial(Pipelined, name=name) for name in SCHEDULES},
    "deepspeed": DeepSpeed,
    "deepspeed-dualpipev": DualPipeV,
}
"""Pipelines, which cut the batch into microbatches."""


def _one_process(workload: Workload, baseline: Baseline) -> Baseline:
    return Idle() if workload.rank_info.rank else baseline


def _accumulating(workload: Workload, microbatches: int) -> Baseline:
    if microbatches == 1:
        return Unavailable("with one microbatch it is bp; pass --microbatches 2 or more")
    return Backprop(workload, microbatches)
