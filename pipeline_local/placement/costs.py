"""The cost of each block, and of each head that could follow it, in one optimizer step.

In seconds where they have been measured (`pipeline-local profile`), else in FLOPs counted on the
meta device. From these follows the cost of any module, and so the best cuts.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline_local.blueprint.blueprint import Blueprint, HeadKey, head_key
from pipeline_local.blueprint.device import Device
from pipeline_local.config import Config
from pipeline_local.errors import UserError
from pipeline_local.learning import estimators, information
from pipeline_local.learning.heads import HasCopy, copies
from pipeline_local.learning.information import Information

Unit = Literal["seconds", "FLOPs"]
"""The unit of costs."""


@dataclass(frozen=True)
class Cost:
    """The cost of a block or a head, for all samples of one optimizer step.

    Attributes:
        forward: the forward pass.
        backward: the backward pass to input and parameters, including recomputation.
        second: what reconciliation adds in a step that reconciles.
        update: the update by the optimizer.
    """

    forward: float
    backward: float
    second: float
    update: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Returns the cost of both together."""
        return Cost(
            self.forward + other.forward,
            self.backward + other.backward,
            self.second + other.second,
            self.update + other.update,
        )


@dataclass(frozen=True)
class Link:
    """A network link between two processes: a message of n bytes takes latency + n / bandwidth.

    Attributes:
        latency_seconds: the latency of a message.
        bytes_per_second: the bandwidth.
        at_least: whether the bandwidth is a lower bound, as the host was too busy to measure it.
    """

    latency_seconds: float
    bytes_per_second: float
    at_least: bool = False

    def seconds(self, num_bytes: float) -> float:
        """Returns the seconds that one message takes."""
        return self.latency_seconds + num_bytes / self.bytes_per_second


@dataclass(frozen=True)
class LinkOptions:
    """What a command line says of a link, instead of what has been measured.

    Attributes:
        latency: seconds, one way; None: as measured.
        bandwidth: bits per second; None: as measured.
    """

    latency: float | None = None
    bandwidth: float | None = None

    def over(self, measured: Link) -> Link:
        """Returns the link; what is not said is as measured."""
        found = measured
        if self.latency is not None:
            found = replace(found, latency_seconds=self.latency)
        if self.bandwidth is not None:
            found = replace(found, bytes_per_second=self.bandwidth / 8, at_least=False)
        return found

    def problems(self) -> Iterator[str]:
        """Yields a line for each number that no link has."""
        if self.latency is not None and not 0 <= self.latency < math.inf:
            yield f"--latency: seconds, at least 0, got {self.latency}"
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            yield f"--bandwidth: bits per second, more than 0, got {self.bandwidth}"


AS_MEASURED = LinkOptions()
"""Where a command line says nothing of the link."""

IMPOSSIBLE = Cost(math.inf, math.inf, math.inf)
"""The cost of a head that does not fit behind its block."""


@dataclass(frozen=True)
class ModuleCost:
    """The three acts of a module in an average step, reconciliation spread over all steps.

    Attributes:
        forward: act 1.
        signal: act 2.
        learn: act 3, with the update and, on average, what reconciliation and distillation add.
        added: the part of `learn` that reconciliation adds.
        update: the part of `learn` that is the optimizer's.
        distilled: the part of `learn` that distillation adds.
    """

    forward: float
    signal: float
    learn: float
    added: float
    update: float
    distilled: float = 0.0

    @property
    def total(self) -> float:
        """The cost of a whole step."""
        return self.forward + self.signal + self.learn

    def shared(self, replicas: int) -> float:
        """Returns the cost of a whole step on each of so many replicas, which share the
        microbatches; each of them makes the update."""
        return (self.total - self.update) / replicas + self.update


@dataclass(frozen=True)
class Costs:
    """The costs of a network's parts on one device.

    Attributes:
        config: the configuration, which sets heads and reconciliation.
        unit: the unit of all costs.
        blocks: the cost of each block, in order.
        heads: the costs of auxiliary heads, by position and number of copied blocks.
        classifier: the cost of the last module's head.
        link: the network link to the upstream device (for the first device, to the downstream
            one); None where it has not been measured.
        device: the device that the costs apply to.
        origin: the origin of the costs, for display.
        information: the costs of information terms, by the blocks of a module; empty without them.
    """

    config: Config
    unit: Unit
    blocks: tuple[Cost, ...]
    heads: Mapping[HeadKey, Cost]
    classifier: Cost
    link: Link | None = None
    device: Device = field(default_factory=Device)
    origin: str = "FLOPs counted on the meta device"
    information: Mapping[range, Cost] = field(default_factory=dict)

    def module(self, index: int, count: int, blocks: range) -> ModuleCost:
        """Returns the cost of module `index` (from 0) of `count`, if it had these blocks."""
        body = sum((self.blocks[i] for i in blocks), Cost(0, 0, 0))
        head, distilled, distill = self.classifier, 0.0, self.config.distill
        if index < count - 1:
            key = head_key(self.config, blocks.stop, len(self.blocks), index, count)
            head = self.heads.get(key, IMPOSSIBLE)
            if distill.weight > 0:  # of the head's outputs: the term is not run again
                distilled = (head.forward + head.backward) / distill.every
            if self.information:
                head += self.information.get(blocks, IMPOSSIBLE)
        added = self._added(index, count, body, head)
        signal = head.forward + head.backward
        if index < count - 1:
            signal *= self.config.head.fraction
        return ModuleCost(
            forward=body.forward,
            signal=signal,
            learn=body.backward + body.update + head.update + added + distilled,
            added=added,
            update=body.update + head.update,
            distilled=distilled,
        )

    def _added(self, index: int, count: int, body: Cost, head: Cost) -> float:
        reconcile, added = self.config.reconcile, 0.0
        estimator = estimators.estimator(reconcile)
        plain = head.forward + head.backward
        if reconcile.weight > 0 and reconcile.direction != "upstream" and index > 0:
            added += estimator.on_subsample(body.second + head.second, reconcile.fraction)
        if reconcile.weight > 0 and reconcile.direction != "downstream" and index < count - 1:
            added += plain + (head.second if estimator.differentiates_twice else plain)
        return added / reconcile.every


def head_keys(config: Config, num_blocks: int) -> list[HeadKey]:
    """Returns the keys of all heads that any cut could need."""
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
    """Yields all heads that any cut could need and that fit, on the meta device."""
    for key in head_keys(blueprint.config, len(blueprint.backbone.blocks)):
        try:
            yield key, blueprint.auxiliary_head(*key)
        except UserError:
            continue


def possible_terms(blueprint: Blueprint) -> Iterator[tuple[range, Information]]:
    """Yields the information terms of all modules that any cut could make and that fit, on the meta
    device: each with the blocks of one such module, out of those that have the same ends."""
    if blueprint.config.information.name is None:
        return
    for part in {blueprint.ends(part): part for part in _possible_parts(blueprint)}.values():
        try:
            term = blueprint.information(part)
        except UserError:
            continue
        assert term is not None, "they are configured"
        yield part, term


def of_all_parts(blueprint: Blueprint, known: Mapping[range, Cost]) -> dict[range, Cost]:
    """Returns the cost of the term of every module that a cut could make.

    Args:
        blueprint: the run.
        known: the costs by the blocks that `possible_terms` yields.
    """
    by_ends = {blueprint.ends(part): cost for part, cost in known.items()}
    parts = _possible_parts(blueprint) if known else []
    return {part: by_ends.get(blueprint.ends(part), IMPOSSIBLE) for part in parts}


def _possible_parts(blueprint: Blueprint) -> list[range]:
    """The blocks of all modules that any cut could make; the last module has no term."""
    stops = range(1, len(blueprint.backbone.blocks))
    return [range(start, stop) for stop in stops for start in range(stop)]


def by_flops(blueprint: Blueprint) -> Costs:
    """Counts floating-point operations on the meta device; memory traffic has no cost there."""
    config, blocks = blueprint.config, blueprint.backbone.blocks
    outputs = blueprint.output_shapes
    return Costs(
        config=config,
        unit="FLOPs",
        blocks=tuple(
            _block(config, block.module, blueprint.meta_input(i)) for i, block in enumerate(blocks)
        ),
        heads={
            key: _head(config, head, outputs[key[0] - 1]) for key, head in possible_heads(blueprint)
        },
        classifier=_head(config, blueprint.backbone.classifier.module, outputs[-1]),
        information=of_all_parts(
            blueprint,
            {
                part: _head(config, term, outputs[part[-1]])
                for part, term in possible_terms(blueprint)
            },
        ),
        device=blueprint.device,
    )


def training_flops(blueprint: Blueprint, modules: range) -> float:
    """Counts the operations of training some modules on one sample, with their heads and
    information terms: forward and backward passes, without recomputation, reconciliation and
    distillation."""
    config = blueprint.config
    plain = replace(config, modules=replace(config.modules, recompute=False))
    total = 0.0
    for index in modules:
        blocks = zip(blueprint.modules[index], blueprint.meta_body(index), strict=True)
        parts = [_block(plain, body, blueprint.meta_input(i)) for i, body in blocks]
        end = blueprint.output_shapes[blueprint.modules[index].stop - 1]
        networks = information.parts(blueprint.meta_head(index))
        heads = [_head(plain, network, end) for network in networks]
        seen = 1.0 if blueprint.is_last(index) else config.head.fraction
        total += sum(part.forward + part.backward for part in parts)
        total += seen * sum(head.forward + head.backward for head in heads)
    return total / config.data.batch_size


def _block(config: Config, block: nn.Module, x: Tensor) -> Cost:
    forward = _forward(config, block, x)
    again = forward if config.modules.recompute else 0.0
    return _cost(config, forward, 2 * forward + again, again)


def _head(config: Config, head: nn.Module, shape: tuple[int, ...]) -> Cost:
    """Where parameters are a copy, only the gradient at the input is computed."""
    x = torch.empty(2, *shape, device="meta")
    forward = _forward(config, head, x)
    own = head.copy if isinstance(head, HasCopy) else None
    copied = _forward(config, own, x) if own is not None else 0.0
    return _cost(config, forward, 2 * forward - copied, 0.0)


def _cost(config: Config, forward: float, backward: float, again: float) -> Cost:
    second = estimators.second_cost(config.reconcile, forward, backward, again)
    return Cost(forward, backward, second)


def _forward(config: Config, part: nn.Module, x: Tensor) -> float:
    """FLOPs of a forward pass of the whole batch, by those of two samples, which norms need."""
    return flops(part, x) * config.data.batch_size / 2


def flops(part: nn.Module, x: Tensor) -> int:
    """Counts the floating-point operations of a forward pass in evaluation mode.

    Args:
        part: a block or a head on the meta device; it stays as it is.
        x: its input there.
    """
    from torch.utils.flop_counter import FlopCounterMode  # it loads triton, too

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(part).eval()(x)
    return int(counter.get_total_flops())
