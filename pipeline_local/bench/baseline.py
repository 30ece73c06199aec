"""What all baselines share: the workload, the interface, and the network parts they train."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline_local.blueprint.blueprint import Blueprint, tables
from pipeline_local.config import Config
from pipeline_local.engines import optimizer
from pipeline_local.learning.body import Body
from pipeline_local.learning.compiler import compile_part
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.precision import autocast
from pipeline_local.placement.placement import Placement
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.ranks.p2p import P2PKind
from pipeline_local.ranks.rank import RankInfo

Weights = dict[str, Tensor]


class UnavailableError(Exception):
    """A baseline cannot run on these ranks or devices; the message says why in one line."""


@dataclass(frozen=True)
class Workload:
    """What every baseline trains, and on which rank.

    Attributes:
        blueprint: the specification of network, cuts, batch size and optimizer.
        rank_info: this rank.
        kind: the transport between ranks.
    """

    blueprint: Blueprint
    rank_info: RankInfo
    kind: P2PKind

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return self.blueprint.config

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
        """Random images [B, C, H, W] and labels [B] on this rank's device, the same on each."""
        size = self.config.data.batch_size
        generator = torch.Generator().manual_seed(self.config.train.seed)
        x = self.blueprint.example_inputs(size, generator)
        labels = self.blueprint.task.example_labels(size, generator)
        return x.to(self.rank_info.device), labels.to(self.rank_info.device)

    @cached_property
    def placement(self) -> Placement:
        """The placement of the modules on the stages."""
        return Placement.of(self.blueprint, self.mesh.num_stages)

    @property
    def mesh(self) -> Mesh:
        """The stages and replicas of the ranks."""
        return Mesh.of(self.config.parallel, self.rank_info.world_size)

    @property
    def stage(self) -> int:
        """The stage of this rank."""
        return self.mesh.stage(self.rank_info.rank)

    @property
    def all_blocks(self) -> range:
        """The indices of all blocks of the network."""
        return range(len(self.blueprint.backbone.blocks))

    def stage_blocks(self, stage: int) -> range:
        """The indices of the blocks of one stage, cut as for local learning."""
        modules = self.placement.stages[stage]
        first, last = self.blueprint.modules[modules[0]], self.blueprint.modules[modules[-1]]
        return range(first.start, last.stop)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of the network's outputs, a scalar."""
        return self.blueprint.task.loss(logits, labels)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Build the configured optimizer for a module, at the highest learning rate."""
        trainable = [p for p in module.parameters() if p.requires_grad]
        return optimizer.build(self.config.optimizer, trainable, tables(module))


class Baseline(Protocol):
    """One way to train. A turn is a number of steps without interruption."""

    def setup(self) -> None:
        """Allocate memory and connect the ranks; this is never timed.

        Raises:
            UnavailableError: the baseline cannot run on these ranks or devices.
        """
        ...

    def begin(self, steps: int) -> None:
        """Prepare a turn of `steps` steps."""
        return

    def step(self) -> None:
        """Run one optimizer step on the whole batch."""
        ...

    def end(self) -> None:
        """Complete all communication, as another baseline uses the ranks next."""
        return

    def seconds(self) -> dict[str, float]:
        """Return the seconds this rank has been `busy` or has `waited` so far, where known."""
        return {}

    def weights(self) -> Weights:
        """Return this rank's weights under their names in the model's state dict."""
        return {}


class Idle(Baseline):
    """What the other ranks do while a baseline runs in one process: nothing."""

    def setup(self) -> None:
        """Do nothing."""

    def step(self) -> None:
        """Do nothing."""


class Unavailable(Baseline):
    """A row that cannot be measured.

    Args:
        reason: why, in one line.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def setup(self) -> None:
        """Raise `UnavailableError` with the reason."""
        raise UnavailableError(self._reason)

    def step(self) -> None:
        """Do nothing: `setup` has raised."""


class NetworkPart(nn.Module):
    """Consecutive blocks of the network, with the classifier behind the last one.

    Args:
        workload: the network to take the blocks from.
        numbers: the indices of the blocks.
        recompute: use activation checkpointing: keep only the input of each block.
    """

    def __init__(self, workload: Workload, numbers: range, recompute: bool = False) -> None:
        super().__init__()
        blueprint, device = workload.blueprint, workload.rank_info.device
        self._boundary = blueprint.wire_format.inside
        self._blocks = [blueprint.backbone.blocks[i] for i in numbers]
        self.body = Body([blueprint.fresh(block, device) for block in self._blocks], recompute)
        self.classifier: nn.Module = nn.Identity()
        if numbers.stop == len(workload.all_blocks):
            self._blocks.append(blueprint.backbone.classifier)
            self.classifier = blueprint.fresh(blueprint.backbone.classifier, device)
        if workload.config.compile:
            self.body.compile_blocks()
            compile_part(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Map activations [B, ...] to activations [B, ...] or to logits [B, classes]."""
        if x.requires_grad:  # torch's pipelines ignore the strides of gradients
            x.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
        with autocast(x.device.type, self._boundary):
            y: Tensor = self.classifier(self.body(x))
        return y.to(self._boundary).contiguous()

    def weights(self) -> Weights:
        """Return the weights under their names in the model's state dict."""
        modules = [*self.body.children(), self.classifier]
        return {
            block.prefix + name: parameter.detach()
            for block, module in zip(self._blocks, modules, strict=False)
            for name, parameter in module.named_parameters()
        }


class TrainedParts(Baseline):
    """A baseline that trains one or several parts of the network with one optimizer."""

    parts: list[NetworkPart]
    optimizer: torch.optim.Optimizer

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def weights(self) -> Weights:
        """Return the weights of all parts."""
        return {name: weight for part in self.parts for name, weight in part.weights().items()}

    def make(self, *cut: range, recompute: bool = False) -> list[NetworkPart]:
        """Build a part for each range of blocks, and one optimizer for all parts."""
        self.parts = [NetworkPart(self.workload, numbers, recompute) for numbers in cut]
        self.optimizer = self.workload.optimizer(nn.ModuleList(self.parts))
        return self.parts

    def update(self) -> None:
        """Apply the gradients and free them."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def network_weights(blueprint: Blueprint, modules: Sequence[LocalModule]) -> Weights:
    """Return the weights of these modules under their names in the model's state dict, without
    those of the auxiliary heads."""
    return {
        block.prefix + name: parameter.detach()
        for module in modules
        for block, part in blueprint.parts(module)
        for name, parameter in part.named_parameters()
    }


def check_ranks(workload: Workload) -> None:
    """Check that there are at least two ranks, and that no two of them share a GPU.

    Raises:
        UnavailableError: there is only one rank, or two ranks share a GPU.
    """
    if workload.rank_info.world_size == 1:
        raise UnavailableError("needs at least 2 ranks; pass parallel.stages=2")
    if workload.kind == "staged":
        raise UnavailableError(
            "needs a GPU for each rank: it communicates by nccl, or between CPUs"
        )
