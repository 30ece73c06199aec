"""A gradient-isolated module: a body, a local head, an optimizer, and a step in three acts.

    x_k = f_k(x_{k-1})               forward   activations, sent at once
    l_k = loss(h_k(x_k), labels)
    s_k = d l_k / d x_k              signal    output gradient, sent at once
    g_k = d l_k / d x_{k-1}          learn     input gradient, compared with s_{k-1}
    theta_k <- l_k + lambda * D_k    update

A module knows nothing of processes: it takes tensors and returns detached tensors.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline_local import seeds
from pipeline_local.engines import gradients
from pipeline_local.engines.gradients import Gradient
from pipeline_local.engines.guard import Guard
from pipeline_local.engines.torch import MakeOptimizer, TorchEngine
from pipeline_local.learning import estimators, reconcile
from pipeline_local.learning.body import eagerly
from pipeline_local.learning.comparison import compare
from pipeline_local.learning.information import LocalLoss, local_loss, term_of
from pipeline_local.learning.lagged import Kept, LaggedMessages
from pipeline_local.learning.precision import autocast
from pipeline_local.learning.reconcile import Gradients, Objective
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import Step
from pipeline_local.learning.tasks import Score
from pipeline_local.learning.untouched import Buffers, evaluating


@dataclass
class _Pass:
    """What is kept of a microbatch between the acts."""

    step: Step
    microbatch: int
    x: Tensor
    labels: Tensor
    y: Tensor
    buffers: Buffers | None = None
    """Those before it, where it is passed through again."""
    signal: Tensor | None = None
    output_grad: Tensor | None = None
    head_grads: Sequence[Gradient] = ()


Message = tuple[Tensor, ...]


class LocalModule(nn.Module):
    """Module k of K, which learns from its own local loss, reconciled with its neighbours.

    Args:
        index: k, counted from 0.
        body: maps activations [B, ...] to activations [B, ...].
        head: maps activations [B, ...] to outputs [B, ...]; for the last module the classifier.
        optimizer: makes the module's optimizer from its parameters.
        rules: the settings that all modules of a run share.
    """

    def __init__(
        self,
        index: int,
        body: nn.Module,
        head: nn.Module,
        optimizer: MakeOptimizer,
        rules: Rules,
    ) -> None:
        super().__init__()
        self.index = index
        self.body = body
        self.head = head
        self.rules = rules
        self._body_params = [p for p in body.parameters() if p.requires_grad]
        self._head_params = [p for p in head.parameters() if p.requires_grad]
        self.trainable = [*self._body_params, *self._head_params]
        self.guard = Guard(self, index + 1, rules.on_nan, rules.wire_format.remedy if index else "")
        self._estimator = estimators.estimator(rules.reconcile)
        self._recalls_input = term_of(head) is not None
        self.engine = TorchEngine(self.trainable, optimizer, self.guard, rules.clip)
        self.metrics: dict[str, Tensor] = {}
        self._pass: _Pass | None = None
        self.lagged = LaggedMessages(rules.lag, index)

    # ---- the three acts -------------------------------------------------------------------

    def forward(self, x: Tensor, labels: Tensor, step: Step, microbatch: int = 0) -> Tensor:
        """Act 1: run the body. Input and labels [B, ...] -> activations [B, ...], detached."""
        compares = (step.compare and self.index > 0) or self.lagged.differentiate(step, microbatch)
        if microbatch == 0:
            self.guard.begin()
        x = x.detach().requires_grad_(compares)
        buffers = Buffers(self) if step.reconcile and self.index > 0 else None
        self._pass = _Pass(step, microbatch, x, labels, x, buffers)
        self._pass.y = self._run_body(x)
        return self._pass.y.detach()

    def signal(self) -> Tensor:
        """Act 2: run the head and return the output gradient, shaped like the activations.

        It costs a forward and backward pass of the head alone.
        """
        now = self._now()
        y = now.y.detach().requires_grad_()
        local = self._loss(y, now.labels, now.x)
        params = [] if self._shifts else self._head_params
        output_grad, *now.head_grads = gradients.of(local.total, [y, *params])
        output_grad = torch.zeros_like(y) if output_grad is None else output_grad
        now.output_grad = self.rules.wire_format.laid_out(output_grad)  # as the body's output
        self._measure(loss=local.total.detach())
        recalled = [now.x.detach()] if self._recalls_input else []
        self.lagged.keep(now.step, now.microbatch, now.y.detach(), now.labels, *recalled)
        if now.step.log:
            task = self.rules.task
            self._measure(**{task.metric: task.score(local.outputs.detach(), now.labels)})
            if local.information is not None:
                self._measure(information=local.information)
        return now.output_grad

    def receive(self, signal: Tensor | None = None) -> None:
        """Take the upstream signal s_{k-1}, shaped like the input; the first module has none.

        If the caller keeps neither the signal nor the input, act 3 reuses their memory.
        """
        self._now().signal = signal

    def learn(self) -> Message:
        """Act 3: run backward through the body; compare and reconcile with the received signal.

        Returns:
            The lagged message for the upstream neighbour; () where nothing is sent.
        """
        now = self._now()
        first = self._body_backward()
        total = first.params
        g = first.input
        if now.step.reconcile and self.lagged.differentiate(now.step, now.microbatch):
            g = g.clone()  # the estimator overwrites it
        lagged = self.lagged.send(self, now.step, now.microbatch, g)
        if now.signal is not None:
            if now.step.log:
                self._measure(**vars(compare(first.input, now.signal)))
            if now.step.reconcile:
                total = self._reconciled(first)
        self.engine.add(total, now.step.microbatches)
        self._pass = None
        return lagged

    def apply_lagged(self, step: Step, microbatch: int, *tensors: Tensor) -> None:
        """Apply the oldest lagged message from downstream, after a microbatch of this step.

        Args:
            tensors: the message; none for the last module, which has no downstream neighbour.
        """
        self.lagged.apply(self, step, microbatch, tensors)

    def heed(self, step: Step, kept: Kept, feedback: Tensor) -> None:
        """Train the head so that its signal comes closer to the downstream neighbour's input
        gradient.

        The distance of the two is differentiated through the head alone, with the batch and the
        dropout masks of an earlier step.

        Args:
            step: the current step.
            kept: activations and labels of the earlier microbatch, and its input if recalled.
            feedback: g_{k+1} of that microbatch, shaped like the activations.
        """
        number, microbatch, (y, labels, *inputs) = kept
        # checkpoints do not keep strides
        y, *inputs = map(self.rules.wire_format.laid_out, (y, *inputs))
        self._pass = _Pass(replace(step, number=number), microbatch, y, labels, y)
        params = self._head_params
        # its buffers have seen this batch before
        buffers = Buffers(self.head)
        objective = self._again(lambda y: y, labels, inputs[0] if inputs else None, buffers)
        first = reconcile.plain(objective, y, params)
        self._measure(feedback_cosine=compare(first.input, feedback).cosine)
        added = self._discord_gradient(objective, y, feedback, params, first)
        unmoved = [None] * len(self._body_params)
        self.engine.add([*unmoved, *added], step.microbatches)
        self._pass = None

    def update(self, step: Step) -> None:
        """Run one optimizer step with the gradients of all microbatches, if they are finite."""
        self.metrics |= self.engine.step(step.lr, self.metrics["loss"], step.number)
        self.lagged.forget(step.number)
        if self.rules.on_nan == "skip":
            self.metrics["skipped_updates"] = self.guard.skipped

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The module's own optimizer."""
        return self.engine.optimizer

    @property
    def gradients(self) -> Sequence[Gradient]:
        """The gradients that the next update applies, one per parameter; empty after an update.

        None where the loss does not depend on the parameter: then the update leaves it alone.
        """
        return self.engine.gradients

    @torch.no_grad()
    def evaluate(
        self,
        x: Tensor,
        summed: Tensor | None = None,
        samples: int | None = None,
        number: int = 0,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run body and head on test samples; the module is in evaluation mode.

        The network sees no padding, as its outputs may depend on all samples.

        Args:
            x: input [B, ...].
            summed: sum of the parts of all upstream heads (`Task.part`); None: there are none.
            samples: number of samples that are not padding, from the first; None: all.
            number: of these samples among all of an evaluation, for what is drawn in it.
            labels: labels [B, ...], where the task judges outputs by them.

        Returns:
            Activations [B, ...], the head's outputs (`Task.judge`), and the sum with this head's
            part; zeros where there is padding.
        """
        size, count = len(x), len(x) if samples is None else samples
        seeds.reseed(x.device, self.rules.seed, "evaluate", self.index, number)
        # one odd batch is not worth another graph
        with eagerly(self) if count < size else nullcontext():
            upstream = None if summed is None else summed[:count]
            known = None if labels is None else labels[:count]
            results = self._predict(x[:count], upstream, known)
        activations, outputs, summed = (_padded(result, size) for result in results)
        return activations, outputs, summed

    @torch.no_grad()
    def score(self, outputs: Tensor, summed: Tensor, labels: Tensor, samples: int) -> Score:
        """Score the head on a test batch, alone and together with all upstream heads, from what
        `evaluate` has returned; `samples` of it, from the first, are not padding."""
        return self.rules.task.evaluate(outputs, summed, labels, self.index + 1, samples)

    @torch.no_grad()
    def predict(
        self, x: Tensor, summed: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return activations and the sum with this head's part, as `evaluate` does."""
        with evaluating(self):
            y, _, summed = self._predict(x, summed, labels)
        return y, summed

    @torch.no_grad()
    def activations(self, x: Tensor) -> Tensor:
        """Return the activations alone, as `predict` does, for a head that is not asked."""
        with evaluating(self.body), self._autocast(x):
            return self._laid_out(self.body(x))

    # ---- inside ---------------------------------------------------------------------------

    def _predict(
        self, x: Tensor, summed: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        with self._autocast(x):
            y = self._laid_out(self.body(x))
            outputs = self.rules.task.judge(self.head, y, labels)
        part = self.rules.task.part(outputs)
        return y, outputs, part if summed is None else summed + part

    def _body_backward(self) -> Gradients:
        """The plain gradients; at the input only where it is compared.

        A frozen body's output needs no gradient, nor does that of one that is skipped in this step.
        """
        now = self._now()
        inputs = [now.x] if now.x.requires_grad else []
        params = [] if self._shifts else self._body_params
        grads = gradients.of(now.y, [*inputs, *params], now.output_grad)
        g = grads[0] if inputs else now.x
        g = torch.zeros_like(now.x) if g is None else g
        return Gradients(g, [*grads[len(inputs) :], *now.head_grads])

    def _reconciled(self, first: Gradients) -> list[Gradient]:
        """The plain gradients plus lambda times those of the discord."""
        now, settings = self._now(), self.rules.reconcile
        x, signal, labels = now.x.detach(), now.signal, now.labels
        assert signal is not None, "who compares has received"
        # free what is not needed any more before the second pass
        now.x = now.y = now.signal = now.output_grad = first.input
        assert now.buffers is not None, "who reconciles has kept them"
        part = reconcile.part(x, settings.fraction, seeds.generator(*self._draw("part")))
        if self._shifts:
            recalled = x if self._recalls_input else None
            moved = reconcile.shift(settings, x, first.input, signal, part, self.rules.layout)
            del x, signal
            loss = self._again(self._run_body, labels, recalled, now.buffers)(moved)
            return gradients.of(loss, self.trainable)
        if part is not None:
            signal, x, labels = reconcile.of_part(signal, part), x[part], labels[part]
        objective = self._again(self._run_body, labels, x, now.buffers)
        at_x = first if part is None else None
        added = self._discord_gradient(objective, x, signal, self.trainable, at_x)
        return gradients.plus(first.params, added)

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
                return self._loss(run(x), labels, recalled).total

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

    @property
    def _shifts(self) -> bool:
        """Whether this step takes the parameters' gradients at a moved input, and none at x."""
        return self._now().step.reconcile and self.index > 0 and self._estimator.moves

    def _run_body(self, x: Tensor) -> Tensor:
        seeds.reseed(x.device, *self._draw("body"))
        with self._autocast(x):
            return self._laid_out(self.body(x))

    def _laid_out(self, y: Tensor) -> Tensor:
        """The body's output in the dtype and strides that it has on every placement."""
        wire_format = self.rules.wire_format
        return wire_format.laid_out(y.to(wire_format.inside))

    def _draw(self, use: str) -> tuple[int, str | int, int, int, int]:
        now = self._now()
        return self.rules.seed, use, self.index, now.step.number, now.microbatch

    def _loss(self, y: Tensor, labels: Tensor, x: Tensor | None) -> LocalLoss:
        seeds.reseed(y.device, *self._draw("head"))
        return local_loss(self.head, self.rules.task, y, labels, x, self._autocast(y))

    def _measure(self, **values: Tensor) -> None:
        """Add to the mean over the microbatches, without waiting for the device."""
        now = self._now()
        for name, value in values.items():
            earlier = self.metrics.get(name) if now.microbatch else None
            share = value if now.step.microbatches == 1 else value / now.step.microbatches
            self.metrics[name] = share if earlier is None else earlier + share

    def _now(self) -> _Pass:
        assert self._pass is not None, "the acts come in order: forward, signal, learn"
        return self._pass

    def _autocast(self, x: Tensor) -> AbstractContextManager[None]:
        return autocast(x.device.type, self.rules.wire_format.inside)


def _padded(tensor: Tensor, size: int) -> Tensor:
    """A tensor of fewer samples, filled up with zeros to this size."""
    if len(tensor) == size:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(size - len(tensor), *tensor.shape[1:])])
