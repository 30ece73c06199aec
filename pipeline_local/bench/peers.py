"""The peers: other ways to train the same blocks, each as its library's users write it.

    bp          Backprop     the whole network in one process
    checkpoint  Backprop     the same, activations computed again
    ddp         Replicated   torch's DistributedDataParallel
    gpipe, 1f1b Pipelined    torch.distributed.pipelining
    deepspeed   DeepSpeed    its pipeline engine
    local       local.py     ours

Every rank builds every peer; all of a peer's ranks call its methods together.
"""

import contextlib
import importlib.util
import inspect
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

from pipeline_local.bench.peer import Idle, Part, Peer, Setting, Trained, UnavailableError
from pipeline_local.pipeline.place import Place


class Backprop(Trained):
    """Plain backpropagation of the whole network, with or without activation checkpointing."""

    def __init__(self, setting: Setting, recompute: bool) -> None:
        super().__init__(setting)
        self._recompute = recompute

    def setup(self) -> None:
        """The whole network."""
        self.make(self.setting.all_blocks, self._recompute)

    def step(self) -> None:
        """Forward, backward, update."""
        x, labels = self.setting.batch
        self.setting.loss(self.part(x), labels).backward()  # type: ignore[no-untyped-call]
        self.update()


class Replicated(Trained):
    """DistributedDataParallel: each rank has the whole network and its share of the batch."""

    def setup(self) -> None:
        """The whole network, its gradients in the buckets that are reduced."""
        place = self.setting.place
        _needs_ranks(place)
        self.make(self.setting.all_blocks)
        devices = [place.device] if place.device.type == "cuda" else None
        self._replica = DistributedDataParallel(
            self.part, devices, gradient_as_bucket_view=True, **_without_buffers()
        )
        x, labels = self.setting.batch
        self._x = x.chunk(place.world_size)[place.rank]
        self._labels = labels.chunk(place.world_size)[place.rank]

    def step(self) -> None:
        """Forward, backward with the reduction overlapping it, update."""
        self.setting.loss(self._replica(self._x), self._labels).backward()  # type: ignore[no-untyped-call]
        self.update()


class TimedStage(PipelineStage):
    """A stage that knows how long it computes."""

    busy = 0.0
    """Seconds, on a host that waits for its work."""

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (torch's)
        """One microbatch forward."""
        begin = time.perf_counter()
        result = super().forward_one_chunk(*args, **kwargs)
        self.busy += time.perf_counter() - begin
        return result

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (torch's)
        """One microbatch backward."""
        begin = time.perf_counter()
        result = super().backward_one_chunk(*args, **kwargs)
        self.busy += time.perf_counter() - begin
        return result


Schedule = type[ScheduleGPipe] | type[Schedule1F1B]


class Pipelined(Trained):
    """torch.distributed.pipelining over the stages that `local` has."""

    def __init__(self, setting: Setting, schedule: Schedule, microbatches: int) -> None:
        super().__init__(setting)
        self._kind = schedule
        self._microbatches = microbatches
        self._updating = 0.0

    def setup(self) -> None:
        """This rank's stage."""
        place = self.setting.place
        _needs_ranks(place)
        _needs_own_devices(self.setting)
        self.make(self.setting.stage_blocks(place.rank))
        self._stage = TimedStage(self.part, place.rank, place.world_size, place.device)
        self._schedule = self._kind(self._stage, self._microbatches, self.setting.loss)
        x, labels = self.setting.batch
        inputs = (x,) if self._stage.is_first else ()
        target = labels if self._stage.is_last else None
        self._run = partial(self._schedule.step, *inputs, target=target, return_outputs=False)

    def step(self) -> None:
        """All microbatches by the schedule, then update."""
        self._run()
        begin = time.perf_counter()
        self.update()
        self._updating += time.perf_counter() - begin

    def seconds(self) -> dict[str, float]:
        """Computing, where the host waits for it."""
        if self.setting.place.device.type != "cpu":
            return {}
        return {"busy": self._stage.busy + self._updating}


class DeepSpeed(Trained):
    """DeepSpeed's pipeline engine over the stages that `local` has: a layer is a whole stage."""

    def __init__(self, setting: Setting, microbatches: int) -> None:
        super().__init__(setting)
        self._microbatches = microbatches

    def setup(self) -> None:
        """Let DeepSpeed make its engine, its prints on stderr."""
        _needs_ranks(self.setting.place)
        _needs_own_devices(self.setting)
        if importlib.util.find_spec("deepspeed") is None:
            raise UnavailableError("not installed (pip install deepspeed)")
        if self.setting.blueprint.dtype == torch.float64:
            raise UnavailableError("DeepSpeed reduces no gradients in float64")
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self._initialize()
        except Exception as error:  # of whatever kind a library and its builders raise
            reason = next(iter(str(error).splitlines()), "")
            raise UnavailableError(f"{type(error).__name__}: {reason}") from error

    def _initialize(self) -> None:
        import deepspeed
        from deepspeed.pipe import LayerSpec, PipelineModule

        setting, stages = self.setting, range(self.setting.place.world_size)
        deepspeed.init_distributed()  # takes the group that is there
        layers = [LayerSpec(Part, setting, setting.stage_blocks(stage)) for stage in stages]
        model = PipelineModule(
            layers, num_stages=len(stages), loss_fn=setting.loss, partition_method="uniform"
        )
        (self.part,) = (layer for layer in model.modules() if isinstance(layer, Part))
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


def _needs_ranks(place: Place) -> None:
    if place.world_size == 1:
        raise UnavailableError("needs at least 2 ranks; pass parallel.stages=2")


def _needs_own_devices(setting: Setting) -> None:
    if setting.kind == "staged":
        raise UnavailableError("needs a GPU for each rank: it sends by nccl, or between CPUs")


Make = Callable[[Setting, int], Peer]
"""A peer for a number of microbatches."""

WHOLE: dict[str, Make] = {
    "bp": lambda setting, _: _one_process(setting, recompute=False),
    "checkpoint": lambda setting, _: _one_process(setting, recompute=True),
}
"""One process with the threads of all ranks."""

REPLICATED: dict[str, Make] = {"ddp": lambda setting, _: Replicated(setting)}

PIPELINED: dict[str, Make] = {
    "gpipe": lambda setting, count: Pipelined(setting, ScheduleGPipe, count),
    "1f1b": lambda setting, count: Pipelined(setting, Schedule1F1B, count),
    "deepspeed": DeepSpeed,
}
"""The ones that need microbatches."""


def _one_process(setting: Setting, recompute: bool) -> Peer:
    return Idle() if setting.place.rank else Backprop(setting, recompute)
