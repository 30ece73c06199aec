"""Baselines from DeepSpeed: its pipeline engine, with 1F1B and with DualPipeV."""

import contextlib
import importlib.util
import sys
from itertools import cycle
from typing import Any

import torch

from pipeline_local.bench.baseline import (
    NetworkPart,
    TrainedParts,
    UnavailableError,
    Workload,
    check_ranks,
)
from pipeline_local.bench.pipelines import check_dualpipev, cut, owners
from pipeline_local.errors import type_and_line


class DeepSpeed(TrainedParts):
    """DeepSpeed's pipeline engine over the stages of local learning: one layer is one stage."""

    name = "deepspeed"

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
                self._check()
                self._initialize()
        except UnavailableError:
            raise
        except Exception as error:  # DeepSpeed raises many types
            raise UnavailableError(type_and_line(error)) from error

    def _initialize(self) -> None:
        import deepspeed
        from deepspeed.pipe import LayerSpec

        workload, ranks = self.workload, self.workload.rank_info.world_size
        if workload.mesh.is_replicated:
            raise UnavailableError("is measured with one replica of each stage")
        deepspeed.init_distributed()  # uses the existing process group
        stages = cut(workload, owners(self.name, ranks))
        model = self._kind()(
            [LayerSpec(NetworkPart, workload, blocks) for blocks in stages],
            num_stages=ranks,
            loss_fn=workload.loss,
            partition_method="uniform",
        )
        self.parts = [layer for layer in model.modules() if isinstance(layer, NetworkPart)]
        self._engine, self.optimizer, *_ = deepspeed.initialize(
            model=model, optimizer=workload.optimizer(model), config=self._engine_config()
        )
        parts = [tensor.chunk(self._microbatches) for tensor in workload.batch]
        self._batches = cycle(list(zip(*parts, strict=True)))

    def _check(self) -> None:
        """Check what this schedule needs."""

    def _kind(self) -> Any:  # noqa: ANN401 (DeepSpeed is imported in functions alone)
        """The class of the model, by which DeepSpeed chooses its schedule."""
        from deepspeed.pipe import PipelineModule

        return PipelineModule

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


class DualPipeV(DeepSpeed):
    """DeepSpeed's DualPipeV: two stages on each rank, the first and the last on the first rank."""

    name = "deepspeed-dualpipev"

    def _check(self) -> None:
        import deepspeed.pipe

        if not hasattr(deepspeed.pipe, "DualPipeVModule"):
            raise UnavailableError(
                f"DeepSpeed {deepspeed.__version__} has no DualPipeV; pip install -U deepspeed"
            )
        check_dualpipev(self.workload, self._microbatches)

    def _kind(self) -> Any:  # noqa: ANN401 (as in the base class)
        from deepspeed.pipe import DualPipeVModule

        return DualPipeVModule
