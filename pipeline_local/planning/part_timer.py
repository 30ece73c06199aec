"""What blocks, heads and terms take, each as the only part of a module that trains."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn

from pipeline_local.blueprint.run_plan import microbatch_size
from pipeline_local.config import Config, DistillConfig, HeadConfig, InformationConfig
from pipeline_local.data.info import DataInfo
from pipeline_local.learning import information
from pipeline_local.learning.body import Body
from pipeline_local.learning.compiler import compile_head
from pipeline_local.learning.information import Information, InformedHead
from pipeline_local.learning.lagged import LaggedMessages
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.step import Step
from pipeline_local.placement.costs import Cost
from pipeline_local.placement.draw import draw
from pipeline_local.record.wall_time import timed

TINY = 1e-8
"""Learning rate of all steps, so small that all repetitions are alike."""


@dataclass(frozen=True)
class _Subject:
    """A module to measure, and what it receives."""

    module: LocalModule
    x: Tensor
    labels: Tensor
    signal: Tensor


class ActTimes:
    """Collects the seconds of each act of one module over many steps."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def note(self, acts: Mapping[str, float], reconciled: bool) -> None:
        """Add the seconds of one step."""
        for act, value in acts.items():
            separate = reconciled and act in ("signal", "learn")
            self._seconds[f"{act}, reconciled" if separate else act].append(value)

    def medians(self, reconciles: bool) -> dict[str, float]:
        """Return the median of each act; `added` is what reconciliation adds to acts 2 and 3."""
        found = {act: median(values) for act, values in self._seconds.items()}
        both = found.pop("signal, reconciled") + found.pop("learn, reconciled")
        more = both - found["signal"] - found["learn"]
        found["added"] = max(0.0, more) if reconciles else 0.0
        return found


class _Constant(nn.Module):
    """A body that gives the same activations for any input, and costs nothing."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y = y

    def forward(self, x: Tensor) -> Tensor:
        return self.y + x.mean()  # reconciliation differentiates by x


class _Silent(nn.Module):
    """A head whose outputs are all zero."""

    def __init__(self, output_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.output_shape = output_shape

    def forward(self, y: Tensor) -> Tensor:
        return y.new_zeros(len(y), *self.output_shape)


class PartTimer:
    """Times parts of one network.

    Attributes:
        blueprint: the network as a single module.

    Args:
        config: the run's configuration.
        info: facts of the data.
        runs: timed repetitions of each part.
        device: where to run.
    """

    def __init__(self, config: Config, info: DataInfo, runs: int, device: torch.device) -> None:
        modules = replace(config.modules, cuts="uniform", count=1, profile=None)
        reconcile = replace(config.reconcile, weight=config.reconcile.weight or 1.0)
        reconcile = replace(reconcile, fraction=1.0)
        parallel = replace(config.parallel, cuts="uniform")
        head = replace(config.head, fraction=1.0)
        alone = replace(
            config,
            modules=modules,
            head=head,
            information=InformationConfig(),  # it needs several modules
            reconcile=reconcile,
            distill=DistillConfig(),  # likewise
            parallel=parallel,
        )
        drawn = draw(alone, info)
        # terms are measured by themselves
        alone = replace(drawn.config, information=config.information)
        self.blueprint = replace(drawn, config=alone)
        self._runs = runs
        self._device = device
        self._generator = torch.Generator().manual_seed(0)
        self._size = microbatch_size(config)

    def blocks(self) -> list[Cost]:
        """Measure all blocks, interleaved as in training, so that caches are cold."""
        subjects = [self._block(index) for index in range(len(self.blueprint.backbone.blocks))]
        return [
            Cost(acts["forward"], acts["learn"], acts["added"], acts["update"])
            for acts in self._repeat(subjects)
        ]

    def _block(self, index: int) -> _Subject:
        """One block. The small head behind it is not counted."""
        blueprint = self.blueprint
        linear = replace(blueprint, config=replace(blueprint.config, head=HeadConfig("linear")))
        head = blueprint.fresh_head(linear.auxiliary_head(index + 1, 0), 0, self._device)
        body = blueprint.fresh(blueprint.backbone.blocks[index], self._device)
        return self._subject(body, head, min(index, 1), blueprint.input_shapes[index])

    def head(self, head: nn.Module, end: int) -> Cost:
        """Measure a head behind the first `end` blocks."""
        return self._only_head(self.blueprint.fresh_head(head, 0, self._device), end)

    def classifier(self) -> Cost:
        """Measure the network's own classifier."""
        blueprint = self.blueprint
        own = blueprint.fresh(blueprint.backbone.classifier, self._device)
        return self._only_head(own, len(blueprint.output_shapes))

    def _only_head(self, head: nn.Module, end: int) -> Cost:
        return self._alone(nn.Identity(), head, self.blueprint.output_shapes[end - 1])

    def term(self, term: Information, part: range) -> Cost:
        """Measure the information term of a module of these blocks."""
        blueprint = self.blueprint
        silent = _Silent(blueprint.task.output_shape)
        head = blueprint.fresh_head(InformedHead(silent, term, 1.0, 1.0), 0, self._device)
        y = self._random(self._size, *blueprint.output_shapes[part[-1]])
        body = _Constant(y.to(self._device, blueprint.wire_format.inside))
        return self._alone(body, head, blueprint.input_shapes[part.start])

    def _alone(self, body: nn.Module, head: nn.Module, shape: tuple[int, ...]) -> Cost:
        """Measure a head behind a body that costs nothing."""
        (acts,) = self._repeat([self._subject(body, head, 1, shape)])
        return Cost(acts["signal"], 0.0, acts["added"], acts["update"])

    def _subject(
        self, body: nn.Module, head: nn.Module, index: int, shape: tuple[int, ...]
    ) -> _Subject:
        config = self.blueprint.config
        whole = Body([body], config.modules.recompute and any(True for _ in body.parameters()))
        if config.compile:
            whole.compile_blocks()
            for part in information.parts(head):
                compile_head(part)
        module = self.blueprint.assembled(index, whole, head)
        module.lagged = LaggedMessages()  # it has no neighbours
        size = self._size
        wire_format = self.blueprint.wire_format
        if index:
            x = self._random(size, *shape).to(wire_format.inside)
        else:
            x = self.blueprint.example_inputs(size, self._generator)
        x = wire_format.laid_out(x.to(self._device))
        labels = self.blueprint.task.example_labels(size, self._generator)
        return _Subject(module, x, labels.to(self._device), x.clone())

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    def _repeat(self, subjects: Sequence[_Subject]) -> list[dict[str, float]]:
        """The median seconds of each act, and what reconciliation adds to them."""
        seconds = [ActTimes() for _ in subjects]
        for turn in range(self._runs + 1):
            for subject, times in zip(subjects, seconds, strict=True):
                for reconcile in (False, True):
                    step = Step(turn, TINY, compare=True, reconcile=reconcile)
                    acts = self._step(subject, step)
                    if turn:  # the first one warms up
                        times.note(acts, reconcile)
        return [
            times.medians(reconciles=subject.module.index > 0)
            for subject, times in zip(subjects, seconds, strict=True)
        ]

    def _step(self, subject: _Subject, step: Step) -> dict[str, float]:
        module, x, labels = subject.module, subject.x, subject.labels
        arrived = [subject.signal] if step.reconcile and module.index else []
        acts: dict[str, Callable[[], object]] = {
            "forward": lambda: module(x, labels, step),
            "signal": module.signal,
            "receive": lambda: module.receive(*arrived),
            "learn": module.learn,
            "update": lambda: module.update(step),
        }
        return {act: timed(self._device, work) for act, work in acts.items()}
