"""A pass of a microbatch through a module, and what is measured and differentiated in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pipeline_local import seeds
from pipeline_local.engines import gradients
from pipeline_local.engines.engine import engine_of
from pipeline_local.engines.gradients import Gradient
from pipeline_local.engines.guard import Guard
from pipeline_local.engines.optimizer import MakeOptimizer
from pipeline_local.engines.replicas import Replicas
from pipeline_local.learning import estimators, reconcile
from pipeline_local.learning.inference import Inference
from pipeline_local.learning.information import LocalLoss, local_loss
from pipeline_local.learning.reconcile import Gradients, Objective
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.scaling import Scaling
from pipeline_local.learning.step import Step
from pipeline_local.side_effects.untouched import Buffers


@dataclass
class Pass:
    """What is kept of a microbatch between the acts."""

    step: Step
    microbatch: int
    x: Tensor
    labels: Tensor
    y: Tensor
    buffers: Buffers | None = None
    """The buffers before the pass, where the microbatch is passed through again."""
    signal: Tensor | None = None
    output_grad: Tensor | None = None
    head_grads: Sequence[Gradient] = ()
    outputs: Tensor | None = None
    """The head's outputs, where the lagged message is made of them."""


class Passes(Inference):
    """The body and the head of a module with what they learn by: an engine, and random draws that
    are a function of seed, module, step and microbatch.

    Args:
        index: k, counted from 0.
        body: maps activations [B, ...] to activations [B, ...].
        head: maps activations [B, ...] to outputs [B, ...].
        optimizer: makes the module's optimizer from its parameters.
        rules: the settings that all modules of a run share.
        replicas: the ranks that hold this module; None: this one alone.
    """

    def __init__(
        self,
        index: int,
        body: nn.Module,
        head: nn.Module,
        optimizer: MakeOptimizer,
        rules: Rules,
        replicas: Replicas | None = None,
    ) -> None:
        super().__init__(index, body, head, rules)
        self._body_params = [p for p in body.parameters() if p.requires_grad]
        self._head_params = [p for p in head.parameters() if p.requires_grad]
        self.trainable = list(dict.fromkeys(self._params))
        self._is_tied = len(self.trainable) < len(self._params)
        self.guard = Guard(self, index + 1, rules.on_nan, rules.wire_format.remedy if index else "")
        self._estimator = estimators.estimator(rules.reconcile)
        self.replicas = replicas or Replicas()
        self.engine = engine_of(
            self.trainable, optimizer, self.guard, self.replicas, rules.clip, rules.engine
        )
        self._scale = Scaling(self.engine, rules.engine.scales)
        self.metrics: dict[str, Tensor] = {}
        """The newest ones. `feedback_cosine` and `divergence` are of the newest step that applied
        such a message; absent until the first one, also after a resume."""
        self._measured: set[str] = set()
        self._pass: Pass | None = None

    @property
    def _params(self) -> list[nn.Parameter]:
        """Those of the body, then those of the head; one that is tied is twice among them."""
        return [*self._body_params, *self._head_params]

    def _run_body(self, x: Tensor) -> Tensor:
        seeds.reseed(x.device, *self._draw("body"))
        with self._autocast(x):
            return self._laid_out(self.body(self._scale.entering(x)))

    def _draw(self, use: str) -> tuple[int, str | int, int, int, int]:
        now = self._now()
        return self.rules.seed, use, self.index, now.step.number, now.microbatch

    def _loss(self, y: Tensor, labels: Tensor, x: Tensor | None) -> LocalLoss:
        seeds.reseed(y.device, *self._draw("head"))
        task, networks = self.rules.task, self._autocast(y)
        return local_loss(self.head, self.read, task, y, labels, x, networks)

    def _measure(self, **values: Tensor) -> None:
        """Add to the mean over the microbatches, without waiting for the device."""
        now = self._now()
        for name, value in values.items():
            earlier = self.metrics[name] if name in self._measured else None
            share = value if now.step.microbatches == 1 else value / now.step.microbatches
            self.metrics[name] = share if earlier is None else earlier + share
            self._measured.add(name)

    def _now(self) -> Pass:
        assert self._pass is not None, "the acts come in order: forward, signal, learn"
        return self._pass

    def _subsample(self) -> Tensor | None:
        """The samples of this microbatch that auxiliary heads see, for all modules alike; None: all
        of them."""
        now, rules = self._now(), self.rules
        draw = seeds.generator(rules.seed, "head part", now.step.number, now.microbatch)
        return reconcile.subsample(now.y, rules.fraction, draw)

    def _again(
        self,
        run: Callable[[Tensor], Tensor],
        labels: Tensor,
        recalled: Tensor | None,
        buffers: Buffers,
    ) -> Objective:
        """The loss of the activations that `run` gives, of a batch that has been passed through
        before, with the input `recalled` then."""

        def objective(x: Tensor) -> Tensor:
            with buffers.again():
                return self._scale.times(self._loss(run(x), labels, recalled).total)

        return objective

    def _discord_gradient(
        self,
        objective: Objective,
        x: Tensor,
        target: Tensor,
        params: Sequence[Tensor],
        first: Gradients | None,
    ) -> list[Gradient]:
        settings = self.rules.reconcile
        between = reconcile.distance(settings.distance, self.rules.layout)
        point = estimators.Point(objective, x, target, params, first, between)
        added = self._estimator.added(point)
        gradients.scale(added, settings.strength)
        return added
