"""The peers: other ways to train the same blocks, each as its library's users write it.

    bp          Backprop     the whole network in one process
    checkpoint  Backprop     the same, activations computed again
    ddp         Replicated   torch's DistributedDataParallel
    gpipe, 1f1b pipelines.py torch.distributed.pipelining, a stage per rank
    interleaved pipelines.py the same, two stages per rank, 1F1B
    zerobubble  pipelines.py the same, gradients of weights in the gaps
    deepspeed   DeepSpeed    its pipeline engine
    local       local.py     ours

Every rank builds every peer; all of a peer's ranks call its methods together.
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

from pipeline_local.bench.peer import (
    Idle,
    Part,
    Peer,
    Setting,
    Trained,
    UnavailableError,
    needs_own_devices,
    needs_ranks,
)
from pipeline_local.bench.pipelines import SCHEDULES, Pipelined


class Backprop(Trained):
    """Plain backpropagation of the whole network, with or without activation checkpointing."""

    def __init__(self, setting: Setting, recompute: bool) -> None:
        super().__init__(setting)
        self._recompute = recompute

    def setup(self) -> None:
        """The whole network."""
        (self._network,) = self.make(self.setting.all_blocks, recompute=self._recompute)

    def step(self) -> None:
        """Forward, backward, update."""
        x, labels = self.setting.batch
        self.setting.loss(self._network(x), labels).backward()  # type: ignore[no-untyped-call]
        self.update()


class Replicated(Trained):
    """DistributedDataParallel: each rank has the whole network and its share of the batch."""

    def setup(self) -> None:
        """The whole network, its gradients in the buckets that are reduced."""
        rank_info = self.setting.rank_info
        needs_ranks(rank_info)
        needs_own_devices(self.setting)
        (network,) = self.make(self.setting.all_blocks)
        devices = [rank_info.device] if rank_info.device.type != "cpu" else None
        self._replica = DistributedDataParallel(
            network, devices, gradient_as_bucket_view=True, **_without_buffers()
        )
        x, labels = self.setting.batch
        self._x = x.chunk(rank_info.world_size)[rank_info.rank]
        self._labels = labels.chunk(rank_info.world_size)[rank_info.rank]

    def step(self) -> None:
        """Forward, backward with the reduction overlapping it, update."""
        self.setting.loss(self._replica(self._x), self._labels).backward()  # type: ignore[no-untyped-call]
        self.update()


class DeepSpeed(Trained):
    """DeepSpeed's pipeline engine over the stages that `local` has: a layer is a whole stage."""

    def __init__(self, setting: Setting, microbatches: int) -> None:
        super().__init__(setting)
        self._microbatches = microbatches

    def setup(self) -> None:
        """Let DeepSpeed make its engine, its prints on stderr."""
        needs_ranks(self.setting.rank_info)
        needs_own_devices(self.setting)
        if importlib.util.find_spec("deepspeed") is None:
            raise UnavailableError("not installed (pip install deepspeed)")
        if self.setting.blueprint.dtype == torch.float64:
            raise UnavailableError("DeepSpeed reduces no gradients in float64")
        if self.setting.config.channels_last:
            raise UnavailableError("DeepSpeed takes no channels_last weights: channels_last=false")
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self._initialize()
        except Exception as error:  # of whatever kind a library and its builders raise
            reason = next(iter(str(error).splitlines()), "")
            raise UnavailableError(f"{type(error).__name__}: {reason}") from error

    def _initialize(self) -> None:
        import deepspeed
        from deepspeed.pipe import LayerSpec, PipelineModule

        setting, stages = self.setting, range(self.setting.rank_info.world_size)
        deepspeed.init_distributed()  # takes the group that is there
        layers = [LayerSpec(Part, setting, setting.stage_blocks(stage)) for stage in stages]
        model = PipelineModule(
            layers, num_stages=len(stages), loss_fn=setting.loss, partition_method="uniform"
        )
        self.parts = [layer for layer in model.modules() if isinstance(layer, Part)]
        self._engine, self.optimizer, *_ = deepspeed.initialize(
            model=model, optimizer=setting.optimizer(model), config=self._engine_config()
        )
        parts = [tensor.chunk(self._microbatches) for tensor in setting.batch]
        self._batches = cycle(list(zip(*parts, strict=True)))

    def _engine_config(self) -> dict[str, Any]:
        size = self.setting.config.data.batch_size
        return {
            "train_micro_batch_size_per_gpu": size // self._microbatches,
            "gradient_accumulation_steps": self._microbatches,
            "steps_per_print": None,
        }

    def step(self) -> None:
        """DeepSpeed's own loop over the microbatches, with its update."""
        self._engine.train_batch(self._batches)


def _without_buffers() -> dict[str, Any]:
    """Batch norms keep statistics of their own: a broadcast of them would only slow a step down."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {name: False}


def _pipelined(name: str, setting: Setting, microbatches: int) -> Peer:
    return Pipelined(setting, name, microbatches)


Make = Callable[[Setting, int], Peer]
"""A peer for a number of microbatches."""

WHOLE: dict[str, Make] = {
    "bp": lambda setting, _: _one_process(setting, recompute=False),
    "checkpoint": lambda setting, _: _one_process(setting, recompute=True),
}
"""One process with the threads of all ranks."""

REPLICATED: dict[str, Make] = {"ddp": lambda setting, _: Replicated(setting)}

PIPELINED: dict[str, Make] = {
    **{name: partial(_pipelined, name) for name in SCHEDULES},
    "deepspeed": DeepSpeed,
}
"""The ones that need microbatches."""


def _one_process(setting: Setting, recompute: bool) -> Peer:
    return Idle() if setting.rank_info.rank else Backprop(setting, recompute)
