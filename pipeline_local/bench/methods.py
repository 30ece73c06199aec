"""The baselines: other methods that train the same network, written as their libraries advise.

    bp          Backprop     the whole network in one process
    checkpoint  Backprop     the same, with activation checkpointing
    ddp         Replicated   torch's DistributedDataParallel
    gpipe, 1f1b pipelines.py torch.distributed.pipelining, one stage per rank
    interleaved pipelines.py 1F1B with two stages per rank
    zerobubble  pipelines.py the same; weight gradients fill the bubbles
    deepspeed   DeepSpeed    DeepSpeed's pipeline engine
    local       local.py     local learning, this package's own method

Every rank builds every baseline; all ranks of a baseline call its methods together.
"""

import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from pipeline_local.bench.baseline import (
    Baseline,
    Idle,
    Part,
    TrainedParts,
    UnavailableError,
    Workload,
    check_ranks,
)
from pipeline_local.bench.pipelines import SCHEDULES, Pipelined


class Backprop(TrainedParts):
    """Plain backpropagation of the whole network, with or without activation checkpointing."""

    def __init__(self, workload: Workload, recompute: bool) -> None:
        super().__init__(workload)
        self._recompute = recompute

    def setup(self) -> None:
        """Build the whole network."""
        (self._network,) = self.make(self.workload.all_blocks, recompute=self._recompute)

    def step(self) -> None:
        """Run forward, backward and update on the whole batch."""
        x, labels = self.workload.batch
        self.workload.loss(self._network(x), labels).backward()  # type: ignore[no-untyped-call]
        self.update()


class Replicated(TrainedParts):
    """DistributedDataParallel: each rank has the whole network and its share of the batch."""

    def setup(self) -> None:
        """Build the whole network, with gradients that are views of DDP's buckets."""
        rank_info = self.workload.rank_info
        check_ranks(self.workload)
        (network,) = self.make(self.workload.all_blocks)
        devices = [rank_info.device] if rank_info.device.type != "cpu" else None
        self._replica = DistributedDataParallel(
            network, devices, gradient_as_bucket_view=True, **_without_buffers()
        )
        x, labels = self.workload.batch
        self._x = x.chunk(rank_info.world_size)[rank_info.rank]
        self._labels = labels.chunk(rank_info.world_size)[rank_info.rank]

    def step(self) -> None:
        """Run forward, backward (DDP overlaps its all-reduce with it) and update."""
        self.workload.loss(self._replica(self._x), self._labels).backward()  # type: ignore[no-untyped-call]
        self.update()


class DeepSpeed(TrainedParts):
    """DeepSpeed's pipeline engine over the stages of local learning: one layer is one stage."""

    def __init__(self, workload: Workload, microbatches: int) -> None:
        super().__init__(workload)
        self._microbatches = microbatches

    def setup(self) -> None:
        """Create DeepSpeed's engine; what it prints goes to stderr."""
        check_ranks(self.workload)
        if importlib.util.find_spec("deepspeed") is None:
            raise UnavailableError("not installed (pip install deepspeed)")
        if self.workload.blueprint.dtype == torch.float64:
            raise UnavailableError("DeepSpeed reduces no gradients in float64")
        if self.workload.config.channels_last:
            raise UnavailableError("DeepSpeed takes no channels_last weights: channels_last=false")
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self._initialize()
        except Exception as error:  # DeepSpeed raises many types
            reason = next(iter(str(error).splitlines()), "")
            raise UnavailableError(f"{type(error).__name__}: {reason}") from error

    def _initialize(self) -> None:
        import deepspeed
        from deepspeed.pipe import LayerSpec, PipelineModule

        workload, stages = self.workload, range(self.workload.rank_info.world_size)
        deepspeed.init_distributed()  # uses the existing process group
        layers = [LayerSpec(Part, workload, workload.stage_blocks(stage)) for stage in stages]
        model = PipelineModule(
            layers, num_stages=len(stages), loss_fn=workload.loss, partition_method="uniform"
        )
        self.parts = [layer for layer in model.modules() if isinstance(layer, Part)]
        self._engine, self.optimizer, *_ = deepspeed.initialize(
            model=model, optimizer=workload.optimizer(model), config=self._engine_config()
        )
        parts = [tensor.chunk(self._microbatches) for tensor in workload.batch]
        self._batches = cycle(list(zip(*parts, strict=True)))

    def _engine_config(self) -> dict[str, Any]:
        size = self.workload.config.data.batch_size
        return {
            "train_micro_batch_size_per_gpu": size // self._microbatches,
            "gradient_accumulation_steps": self._microbatches,
            "gradient_clipping": 0.0,  # else at 1, by a norm over all ranks that no other pays for
            "steps_per_print": None,
        }

    def step(self) -> None:
        """Run DeepSpeed's own loop over the microbatches, update included."""
        self._engine.train_batch(self._batches)


def _without_buffers() -> dict[str, Any]:
    """DDP options that leave out the broadcast of batch norm statistics, which costs time only."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {name: False}


Make = Callable[[Workload, int], Baseline]
"""Makes a baseline from the workload and the number of microbatches."""

WHOLE: dict[str, Make] = {
    "bp": lambda workload, _: _one_process(workload, recompute=False),
    "checkpoint": lambda workload, _: _one_process(workload, recompute=True),
}
"""Baselines in one process, with the threads of all ranks."""

REPLICATED: dict[str, Make] = {"ddp": lambda workload, _: Replicated(workload)}
"""Baselines in which each rank has the whole network."""

PIPELINED: dict[str, Make] = {
    **{name: partial(Pipelined, name=name) for name in SCHEDULES},
    "deepspeed": DeepSpeed,
}
"""Baselines that cut the batch into microbatches."""


def _one_process(workload: Workload, recompute: bool) -> Baseline:
    return Idle() if workload.rank_info.rank else Backprop(workload, recompute)
