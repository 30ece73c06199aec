"""What all peers have in common: their setting, their interface, and the blocks they train."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.config import Config
from pipeline_local.learning import optimizer
from pipeline_local.learning.body import Body, compile_part
from pipeline_local.placement.placement import Placement
from pipeline_local.ranks.p2p import P2PKind
from pipeline_local.ranks.rank import RankInfo

Weights = dict[str, Tensor]


class UnavailableError(Exception):
    """This peer cannot run here; the message says why, in one line."""


@dataclass(frozen=True)
class Setting:
    """What all peers have in common.

    Attributes:
        blueprint: network, cuts, batch size, optimizer.
        rank_info: this rank.
        kind: how the ranks talk.
    """

    blueprint: Blueprint
    rank_info: RankInfo
    kind: P2PKind

    @property
    def config(self) -> Config:
        """Of the blueprint."""
        return self.blueprint.config

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
        """Random images [B, C, H, W] and labels [B] on this rank's device, the same on each."""
        info, size = self.blueprint.info, self.config.data.batch_size
        generator = torch.Generator().manual_seed(self.config.train.seed)
        x = torch.randn(size, *info.image_shape, generator=generator)
        labels = self.blueprint.task.example_labels(size, generator)
        return x.to(self.rank_info.device, self.blueprint.dtype), labels.to(self.rank_info.device)

    @cached_property
    def placement(self) -> Placement:
        """Of the modules on the ranks."""
        return Placement.of(self.blueprint, self.rank_info.world_size)

    @property
    def all_blocks(self) -> range:
        """Of the network."""
        return range(len(self.blueprint.backbone.blocks))

    def stage_blocks(self, stage: int) -> range:
        """Of one stage, cut as `local` is."""
        modules = self.placement.stages[stage]
        first, last = self.blueprint.modules[modules[0]], self.blueprint.modules[modules[-1]]
        return range(first.start, last.stop)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The network's own loss."""
        return self.blueprint.task.loss(logits, labels)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """As each local module has one, at the highest learning rate."""
        trainable = [p for p in module.parameters() if p.requires_grad]
        return optimizer.build(self.config.optimizer, trainable)


class Peer(Protocol):
    """One way to train; a turn is a number of steps without a pause."""

    def setup(self) -> None:
        """Allocate and connect; never timed.

        Raises:
            UnavailableError: it cannot run here.
        """
        ...

    def begin(self, steps: int) -> None:
        """A turn of so many steps is coming."""
        return

    def step(self) -> None:
        """One optimizer step on the whole batch."""
        ...

    def end(self) -> None:
        """Finish what is still under way; other peers come next."""
        return

    def seconds(self) -> dict[str, float]:
        """Where this rank's time has gone so far, as far as the peer knows: busy, waited."""
        return {}

    def weights(self) -> Weights:
        """This rank's part of the network, under the model's usual names."""
        return {}


class Idle(Peer):
    """A rank that a peer has no use for."""

    def setup(self) -> None:
        """Nothing."""

    def step(self) -> None:
        """Nothing."""


class Absent(Peer):
    """A peer that there is nothing to measure of."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def setup(self) -> None:
        """Say why."""
        raise UnavailableError(self._reason)

    def step(self) -> None:
        """Never comes."""


class Part(nn.Module):
    """Consecutive blocks of the network; behind the last of them, its classifier.

    Args:
        setting: of the comparison.
        numbers: of the blocks.
        recompute: keep each block's input only.
    """

    def __init__(self, setting: Setting, numbers: range, recompute: bool = False) -> None:
        super().__init__()
        blueprint, device = setting.blueprint, setting.rank_info.device
        self._boundary = blueprint.wire_format.inside
        self._blocks = [blueprint.backbone.blocks[i] for i in numbers]
        self.body = Body([blueprint.fresh(block, device) for block in self._blocks], recompute)
        self.classifier: nn.Module = nn.Identity()
        if numbers.stop == len(setting.all_blocks):
            self._blocks.append(blueprint.backbone.classifier)
            self.classifier = blueprint.fresh(blueprint.backbone.classifier, device)
        if setting.config.compile:
            self.body.compile_blocks()
            compile_part(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Activations [B, ...] -> activations [B, ...] or logits [B, classes]."""
        if x.requires_grad:  # torch's pipelines send gradients as they lie in memory
            x.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
        low = self._boundary == torch.bfloat16
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            y: Tensor = self.classifier(self.body(x))
        return y.to(self._boundary).contiguous()

    def weights(self) -> Weights:
        """Under the model's usual names."""
        modules = [*self.body.children(), self.classifier]
        return {
            block.prefix + name: parameter.detach()
            for block, module in zip(self._blocks, modules, strict=False)
            for name, parameter in module.named_parameters()
        }


class Trained(Peer):
    """Parts of the network, one as a rule, with an optimizer of their own."""

    parts: list[Part]
    optimizer: torch.optim.Optimizer

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def weights(self) -> Weights:
        """Of all parts."""
        return {name: weight for part in self.parts for name, weight in part.weights().items()}

    def make(self, *cut: range, recompute: bool = False) -> list[Part]:
        """Allocate the parts that have these blocks, and one optimizer for all of them."""
        self.parts = [Part(self.setting, numbers, recompute) for numbers in cut]
        self.optimizer = self.setting.optimizer(nn.ModuleList(self.parts))
        return self.parts

    def update(self) -> None:
        """Apply the gradients, and let go of them."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def needs_ranks(rank_info: RankInfo) -> None:
    """Refuse to run in one process.

    Raises:
        UnavailableError: there is only one.
    """
    if rank_info.world_size == 1:
        raise UnavailableError("needs at least 2 ranks; pass parallel.stages=2")


def needs_own_devices(setting: Setting) -> None:
    """Refuse ranks that share a GPU.

    Raises:
        UnavailableError: they do.
    """
    if setting.kind == "staged":
        raise UnavailableError("needs a GPU for each rank: it sends by nccl, or between CPUs")
