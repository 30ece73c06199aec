"""What each block, and each head that could stand behind it, costs in one optimizer step.

In seconds where they have been measured (`pipeline-local profile`), else in FLOPs counted on the
meta device. From these follow the cost of any module, and so the best cuts.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline_local.blueprint.blueprint import Blueprint, HeadKey, head_key
from pipeline_local.blueprint.device import Device
from pipeline_local.config import Config
from pipeline_local.errors import UserError
from pipeline_local.learning import reconcile as reconciliation
from pipeline_local.learning.heads import copies

Unit = Literal["seconds", "FLOPs"]


@dataclass(frozen=True)
class Cost:
    """Of a block or a head, for all samples of one optimizer step.

    Attributes:
        forward: the forward pass.
        backward: the gradients of the input and the parameters; with what is recomputed for them.
        second: what reconciliation adds in a step that reconciles.
        update: of the optimizer.
    """

    forward: float
    backward: float
    second: float
    update: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Both together."""
        return Cost(
            self.forward + other.forward,
            self.backward + other.backward,
            self.second + other.second,
            self.update + other.update,
        )


@dataclass(frozen=True)
class Link:
    """Between two processes: a message of n bytes takes latency + n / bandwidth."""

    latency_seconds: float
    bytes_per_second: float

    def seconds(self, num_bytes: float) -> float:
        """Of one message."""
        return self.latency_seconds + num_bytes / self.bytes_per_second


IMPOSSIBLE = Cost(math.inf, math.inf, math.inf)
"""Of a head that does not fit where it would have to stand."""


@dataclass(frozen=True)
class ModuleCost:
    """The three acts of a module in an average step, reconciliation spread over all steps.

    Attributes:
        forward: act 1.
        signal: act 2.
        learn: act 3, with the update and, on average, what reconciliation adds.
        added: the part of `learn` that reconciliation adds.
        update: the part of `learn` that is the optimizer's.
    """

    forward: float
    signal: float
    learn: float
    added: float
    update: float

    @property
    def total(self) -> float:
        """A whole step."""
        return self.forward + self.signal + self.learn


@dataclass(frozen=True)
class Costs:
    """The costs of a network's parts.

    Attributes:
        config: says heads and reconciliation.
        unit: of all costs.
        blocks: in order.
        heads: auxiliary heads, by where they stand and how many blocks they copy.
        classifier: the last module's head.
        link: how long a message takes between this device and the one above it (the first one and
            the one below), where that has been measured.
        device: where they hold.
        origin: where the costs come from, for people.
    """

    config: Config
    unit: Unit
    blocks: tuple[Cost, ...]
    heads: Mapping[HeadKey, Cost]
    classifier: Cost
    link: Link | None = None
    device: Device = field(default_factory=Device)
    origin: str = "FLOPs counted on paper"

    def module(self, index: int, count: int, blocks: range) -> ModuleCost:
        """Module `index` (from 0) of `count`, were it made of these blocks."""
        body = sum((self.blocks[i] for i in blocks), Cost(0, 0, 0))
        head = self.classifier
        if index < count - 1:
            key = head_key(self.config, blocks.stop, len(self.blocks), index, count)
            head = self.heads.get(key, IMPOSSIBLE)
        added = self._added(index, count, body, head)
        return ModuleCost(
            forward=body.forward,
            signal=head.forward + head.backward,
            learn=body.backward + body.update + head.update + added,
            added=added,
            update=body.update + head.update,
        )

    def _added(self, index: int, count: int, body: Cost, head: Cost) -> float:
        reconcile, added = self.config.reconcile, 0.0
        estimator = reconciliation.estimator(reconcile)
        plain = head.forward + head.backward
        if reconcile.weight > 0 and reconcile.direction != "upstream" and index > 0:
            added += estimator.of_part(body.second + head.second, reconcile.fraction)
        if reconcile.weight > 0 and reconcile.direction != "downstream" and index < count - 1:
            added += plain + (head.second if estimator.differentiates_twice else plain)
        return added / reconcile.every


def head_keys(config: Config, num_blocks: int) -> list[HeadKey]:
    """All heads that any cut could ask for."""
    return [
        (end, depth)
        for end in range(1, num_blocks)
        for depth in sorted(
            {
                copies(config.head, index, index + 1 + later, num_blocks - end)
                for index in range(end)
                for later in range(1, num_blocks - end + 1)
            }
        )
    ]


def possible_heads(blueprint: Blueprint) -> Iterator[tuple[HeadKey, nn.Module]]:
    """All heads that any cut could ask for, where they fit."""
    for key in head_keys(blueprint.config, len(blueprint.backbone.blocks)):
        try:
            yield key, blueprint.auxiliary_head(*key)
        except UserError:
            continue


def by_flops(blueprint: Blueprint) -> Costs:
    """Count floating-point operations on the meta device; what moves memory only is not seen."""
    config, blocks = blueprint.config, blueprint.backbone.blocks
    outputs = blueprint.output_shapes
    pairs = zip(blocks, blueprint.input_shapes, strict=True)
    return Costs(
        config=config,
        unit="FLOPs",
        blocks=tuple(_counted(config, [b.module], shape, is_body=True) for b, shape in pairs),
        heads={
            key: _counted(config, [head], outputs[key[0] - 1])
            for key, head in possible_heads(blueprint)
        },
        classifier=_counted(config, [blueprint.backbone.classifier.module], outputs[-1]),
        device=blueprint.device,
    )


def _counted(
    config: Config, parts: Sequence[nn.Module], shape: tuple[int, ...], is_body: bool = False
) -> Cost:
    x = torch.empty(1, *shape, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for part in parts:
            x = copy.deepcopy(part).eval()(x)
    forward = float(counter.get_total_flops() * config.data.batch_size)
    again = forward if is_body and config.modules.recompute else 0.0
    backward = 2 * forward + again
    estimator = reconciliation.estimator(config.reconcile)
    return Cost(forward, backward, estimator.cost(forward, backward, again))
