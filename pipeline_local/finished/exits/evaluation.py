"""`evaluate --exits`: what each exit of a run gives and costs, and what thresholds make of them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from pipeline_local import seeds
from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.errors import UserError, counted
from pipeline_local.finished.exits import thresholds
from pipeline_local.finished.exits.network import ExitNetwork
from pipeline_local.finished.finished import TestSet, test_set
from pipeline_local.layout import IGNORE_LABEL
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.precision import autocast
from pipeline_local.learning.tasks import Classification
from pipeline_local.placement.costs import flops
from pipeline_local.ranks.caller import undisturbed
from pipeline_local.record.wall_time import timed
from pipeline_local.side_effects.untouched import evaluating
from pipeline_local.user_input.json_text import Facts

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
"""Top probabilities from which on a sample leaves."""
REPEATS = 5
"""Timed passes of each exit, of which the fastest counts: others of this host slow some down."""


@dataclass(frozen=True)
class ExitRow:
    """One exit.

    Attributes:
        exit: number of the module, from 1, whose head it is.
        blocks: names of the module's first and last block.
        accuracy: of this head alone.
        ensemble_accuracy: of all heads up to this one together.
        calibration_error: expected calibration error of this head.
        multiply_adds: of the modules up to this one and this head, for one sample.
        seconds: that they take for one sample, in a batch as in the run.
    """

    exit: int
    blocks: str
    accuracy: float
    ensemble_accuracy: float
    calibration_error: float
    multiply_adds: int
    seconds: float


@dataclass(frozen=True)
class ThresholdRow:
    """Early exit at one threshold.

    Attributes:
        threshold: top probability from which on a sample leaves.
        accuracy: of all samples, each by the head at which it leaves.
        operations: mean multiply-adds of a sample, every head that it meets among them, over those
            of the whole network, which has no auxiliary heads.
        shares: part of the samples that leave at each exit.
    """

    threshold: float
    accuracy: float
    operations: float
    shares: list[float]


@dataclass(frozen=True)
class ExitReport:
    """The exits of a run.

    Attributes:
        step: of the checkpoint.
        samples: number of test samples.
        device: where times were measured.
        exits: a row for each.
        thresholds: a row for each of `THRESHOLDS`.
    """

    step: int
    samples: int
    device: str
    exits: list[ExitRow]
    thresholds: list[ThresholdRow]

    def facts(self) -> Facts:
        """Return all of it, for JSON."""
        return asdict(self)


@undisturbed
def evaluate_exits(
    run: Path, overrides: Sequence[str] = (), step: int | str = "newest"
) -> ExitReport:
    """Score every exit of a run on its test set, and early exit at several thresholds.

    Args:
        run: its folder.
        overrides: `key=value`, as `finished.evaluate` takes them.
        step: of the checkpoint, as `finished.load` takes it.

    Raises:
        UserError: as `finished.evaluate`; or the task is not classification.
    """
    with test_set(run, overrides, step) as test:
        task = test.blueprint.task
        if not isinstance(task, Classification):
            raise UserError(
                f"--exits: needs one class per sample, and {run} is a run of task.name="
                f"{test.blueprint.config.task.name}; leave --exits out for the score of every head"
            )
        seen = _Seen.of(test)
        seconds = _seconds(test.modules, seen.x)
    costs = _Costs.of(test.blueprint)
    return ExitReport(
        step=test.step,
        samples=len(seen.confidence),
        device=_name(seen.x.device),
        exits=_exit_rows(test.blueprint, seen, costs.exits, seconds),
        thresholds=[_threshold_row(seen, costs, threshold) for threshold in THRESHOLDS],
    )


@dataclass(frozen=True)
class _Seen:
    """What all heads say of the test set: a row for each sample, a column for each head."""

    x: Tensor
    """Inputs of the first microbatch, on the device."""
    confidence: Tensor
    right: Tensor
    right_together: Tensor

    @classmethod
    def of(cls, test: TestSet) -> "_Seen":
        first: list[Tensor] = []
        found = list(_judged(test, first))
        return cls(first[0], *(torch.cat(columns) for columns in zip(*found, strict=True)))


def _judged(test: TestSet, first: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Confidence and hits of each head, alone and together, one microbatch [b, K] at a time."""
    parts = test.blueprint.config.train.microbatches
    with ExitStack() as stack:
        stack.enter_context(seeds.generators_kept())
        for module in test.modules:
            stack.enter_context(evaluating(module))
        for batch, samples in enumerate(test.blueprint.run_plan.test_batches):
            for part in range(batch * parts, (batch + 1) * parts):
                x, labels = test.source.recv()
                first[:] = first or [x]
                here = min(len(x), samples)
                samples -= here
                if here:  # the rest is padding
                    yield _columns(test.modules, x, labels, here, part)


def _columns(
    modules: Sequence[LocalModule], x: Tensor, labels: Tensor, here: int, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The first `here` samples that have a label, as the run's own evaluation sees them."""
    known = labels[:here] != IGNORE_LABEL
    truth = labels[:here][known]
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    summed: Tensor | None = None
    for module in modules:
        task, wire_format = module.rules.task, module.rules.wire_format
        if module.index > 0:
            x = wire_format.widen(wire_format.round_activations(x))
        x, outputs, summed = module.evaluate(x, summed, here, number, labels)
        alone = task.together(task.part(outputs[:here][known]), 1)
        together = summed[:here][known]
        hits = [guess.argmax(1) == truth for guess in (outputs[:here][known], together)]
        columns.append((thresholds.top(alone), hits[0], hits[1]))
    confidence, right, right_together = zip(*columns, strict=True)
    return (
        torch.stack(confidence, dim=1).cpu(),
        torch.stack(right, dim=1).cpu(),
        torch.stack(right_together, dim=1).cpu(),
    )


@torch.no_grad()
def _seconds(modules: Sequence[LocalModule], x: Tensor) -> list[float]:
    """Seconds per sample of the network up to each exit, which take turns."""
    networks = [ExitNetwork(modules[: k + 1]) for k in range(len(modules))]
    with autocast(x.device.type, modules[0].rules.wire_format.networks):
        rounds = [
            [timed(x.device, partial(network, x)) for network in networks]
            for _ in range(REPEATS + 1)
        ]
    return [min(took) / len(x) for took in zip(*rounds[1:], strict=True)]  # the first warms up


@dataclass(frozen=True)
class _Costs:
    """Multiply-adds of one sample, as a matrix product or a convolution has them."""

    bodies: list[int]
    heads: list[int]

    @classmethod
    def of(cls, blueprint: Blueprint) -> "_Costs":
        bodies, heads = [], []
        for index, blocks in enumerate(blueprint.modules):
            meta = zip(blueprint.meta_body(index), blocks, strict=True)
            bodies.append(sum(flops(part, blueprint.meta_input(i)) for part, i in meta) // 4)
            y = torch.empty(2, *blueprint.output_shapes[blocks.stop - 1], device="meta")
            heads.append(flops(blueprint.meta_head(index), y) // 4)  # of two samples
        return cls(bodies, heads)

    @property
    def exits(self) -> list[int]:
        """All bodies up to each head, and this head."""
        return [body + head for body, head in zip(accumulate(self.bodies), self.heads, strict=True)]

    @property
    def tried(self) -> list[int]:
        """All bodies and heads up to each one, as a sample meets them that leaves there."""
        both = zip(self.bodies, self.heads, strict=True)
        return list(accumulate(body + head for body, head in both))


def _exit_rows(
    blueprint: Blueprint, seen: _Seen, costs: Sequence[int], seconds: Sequence[float]
) -> list[ExitRow]:
    rows = []
    for index, (cost, took) in enumerate(zip(costs, seconds, strict=True)):
        names = [block.name for block in blueprint.blocks(index)]
        rows.append(
            ExitRow(
                exit=index + 1,
                blocks=" .. ".join(dict.fromkeys((names[0], names[-1]))),
                accuracy=_part(seen.right[:, index]),
                ensemble_accuracy=_part(seen.right_together[:, index]),
                calibration_error=thresholds.calibration_error(
                    seen.confidence[:, index], seen.right[:, index]
                ),
                multiply_adds=cost,
                seconds=took,
            )
        )
    return rows


def _threshold_row(seen: _Seen, costs: _Costs, threshold: float) -> ThresholdRow:
    left = thresholds.leave_at(seen.confidence, threshold)
    count = seen.confidence.shape[1]
    shares = left.bincount(minlength=count).double() / max(1, len(left))
    spent = sum(share * cost for share, cost in zip(shares.tolist(), costs.tried, strict=True))
    return ThresholdRow(
        threshold=threshold,
        accuracy=_part(seen.right.gather(1, left[:, None])),
        operations=spent / max(1, costs.exits[-1]),
        shares=shares.tolist(),
    )


def _part(hits: Tensor) -> float:
    return float(hits.double().mean())


def _name(device: torch.device) -> str:
    """Of the device that times are of."""
    if device.type == "cpu":
        return f"cpu, {counted(torch.get_num_threads(), 'thread')}"
    return str(torch.get_device_module(device).get_device_name(device))
