"""A gradient-isolated module: a body, a local head, an optimizer, and a step in three acts.

    x_k = f_k(x_{k-1})               forward   activations, sent at once
    l_k = loss(h_k(x_k), labels)
    s_k = d l_k / d x_k              signal    output gradient, sent at once
    g_k = d l_k / d x_{k-1}          learn     input gradient, compared with s_{k-1}
    theta_k <- l_k + lambda * D_k    update

A module knows nothing of processes: it takes tensors and returns detached tensors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline_local import seeds
from pipeline_local.engines import gradients
from pipeline_local.engines.gradients import Gradient
from pipeline_local.engines.optimizer import MakeOptimizer
from pipeline_local.engines.replicas import Replicas
from pipeline_local.learning import reconcile
from pipeline_local.learning.comparison import Comparison, compare
from pipeline_local.learning.contents import copied_parameters
from pipeline_local.learning.head_training import HeadTraining
from pipeline_local.learning.information import term_of
from pipeline_local.learning.lagged import LaggedMessages
from pipeline_local.learning.passes import Pass
from pipeline_local.learning.reconcile import Gradients
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import Step
from pipeline_local.side_effects.untouched import Buffers


class LocalModule(HeadTraining):
    """Module k of K, which learns from its own local loss, reconciled with its neighbours.

    Args:
        index: k, counted from 0.
        body: maps activations [B, ...] to activations [B, ...].
        head: maps activations [B, ...] to outputs [B, ...]; for the last module the classifier.
        optimizer: makes the module's optimizer from its parameters.
        rules: the settings that all modules of a run share.
        auxiliary: whether the head is an auxiliary one, and not the network's classifier.
        replicas: the ranks that hold this module; None: this one alone.

    Example:
        >>> body, head = nn.Sequential(nn.Linear(64, 32), nn.ReLU()), nn.Linear(32, 10)
        >>> module, step = LocalModule(0, body, head, torch.optim.Adam, Rules()), Step(0, lr=0.01)
        >>> images, digits = torch.rand(8, 64), torch.randint(10, (8,))
        >>> activations = module(images, digits, step)  # detached, for the next module
        >>> module.signal().shape  # the head's gradient at the activations
        torch.Size([8, 32])
        >>> lagged = module.learn()  # the body's gradients
        >>> module.update(step)
    """

    def __init__(
        self,
        index: int,
        body: nn.Module,
        head: nn.Module,
        optimizer: MakeOptimizer,
        rules: Rules,
        auxiliary: bool = True,
        replicas: Replicas | None = None,
    ) -> None:
        super().__init__(index, body, head, optimizer, rules, replicas)
        self.auxiliary = auxiliary
        self.lagged = LaggedMessages(rules.lag, index)
        self._recalls_input = term_of(head) is not None

    # ---- the three acts -------------------------------------------------------------------

    def forward(self, x: Tensor, labels: Tensor, step: Step, microbatch: int = 0) -> Tensor:
        """Act 1: run the body. Input and labels [B, ...] -> activations [B, ...], detached."""
        compares = (step.compare and self.index > 0) or self.lagged.differentiate(step, microbatch)
        if microbatch == self.replicas.own(step.microbatches)[0]:
            self._measured = set()
            self.engine.begin()
        x = x.detach().requires_grad_(compares)
        buffers = Buffers(self) if step.reconcile and self.index > 0 else None
        self._pass = Pass(step, microbatch, x, labels, x, buffers)
        self._pass.y = self._run_body(x)
        return self._pass.y.detach()

    def signal(self) -> Tensor:
        """Act 2: run the head and return the output gradient, shaped like the activations.

        It costs a forward and backward pass of the head alone, on a part of the batch if so
        configured; for the other samples the gradient is zero.
        """
        now, laid_out = self._now(), self.rules.wire_format.laid_out
        part = self._subsample() if self.auxiliary else None
        y, labels, x = now.y.detach(), now.labels, now.x
        if part is not None:
            y, labels = laid_out(y[part]), labels[part]
            x = x[part] if self._recalls_input else x
        y.requires_grad_()
        local = self._loss(y, labels, x)
        params = [] if self._shifts else self._head_params
        output_grad, *now.head_grads = gradients.of(self._scale.times(local.total), [y, *params])
        output_grad = torch.zeros_like(y) if output_grad is None else output_grad
        if part is not None:
            output_grad = torch.zeros_like(now.y).index_copy_(0, part, output_grad)
        now.output_grad = laid_out(output_grad)  # as the body's output
        self._measure(loss=local.total.detach())
        recalled = [now.x.detach()] if self._recalls_input else []
        if self.lagged.begins(now.step, now.microbatch):
            now.outputs = local.outputs.detach()
        self.lagged.keep(now.step, now.microbatch, now.y.detach(), now.labels, *recalled)
        if now.step.log:
            task = self.rules.task
            self._measure(**{task.metric: task.score(local.outputs.detach(), labels)})
            if local.information is not None:
                self._measure(information=local.information)
        return self._scale.over(now.output_grad)

    def receive(self, signal: Tensor | None = None) -> None:
        """Take the upstream signal s_{k-1}, shaped like the input; the first module has none.

        If the caller keeps neither the signal nor the input, act 3 reuses their memory.
        """
        self._now().signal = signal

    def learn(self) -> tuple[Tensor, ...]:
        """Act 3: run backward through the body; compare and reconcile with the received signal.

        Returns:
            The lagged message for the upstream neighbour; () where nothing is sent.
        """
        now = self._now()
        first = self._body_backward()
        total, g = first.params, first.input
        if now.step.reconcile and self.lagged.differentiate(now.step, now.microbatch):
            g = g.clone()  # the estimator overwrites it
        lagged = self.lagged.send(self, now.step, now.microbatch, g)
        if now.signal is not None:
            if now.step.log:
                self._measure(**vars(self._comparison(first.input, now.signal)))
            if now.step.reconcile:
                total = self._reconciled(first)
        self.engine.add(total, now.step.microbatches)
        self._pass = None
        return lagged

    def reduce(self, step: Step) -> None:
        """Begin to add up what the replicas of the stage have found, after the last microbatch.

        Running statistics become the mean of theirs, and copies of parameters of later modules,
        which come with the last microbatch of a batch, those of the replica that has got them.
        """
        measured = {name: self.metrics[name].clone() for name in sorted(self._measured)}
        self.metrics |= measured  # copies, as it may be a view, and sums replace it
        statistics = [buffer for buffer in self.buffers() if buffer.is_floating_point()]
        self.engine.reduce([*measured.values()], statistics)
        if self.lagged.brings_copies(step):
            last = self.replicas.of(step.microbatches - 1)
            self.replicas.take(copied_parameters(self.body, self.head), last)

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
        """The gradients that the next update applies, one per parameter; empty after an update."""
        return self.engine.gradients

    # ---- inside ---------------------------------------------------------------------------

    def _comparison(self, g: Tensor, signal: Tensor) -> Comparison:
        """Compare for the samples that have a signal."""
        part = self._subsample()
        if part is None:
            return compare(g, signal)
        own = g[part] if self.auxiliary else reconcile.on_subsample(g, part)
        return compare(own, signal[part])

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
        own = [*grads[len(inputs) :], *now.head_grads]
        return Gradients(g, gradients.summed(self._params, own) if self._is_tied else own)

    def _reconciled(self, first: Gradients) -> list[Gradient]:
        """The plain gradients plus lambda times those of the discord."""
        now, settings = self._now(), self.rules.reconcile
        assert now.signal is not None, "who compares has received"
        x, labels = now.x.detach(), now.labels
        signal = self._scale.target(now.signal, first.input)
        # free what is not needed any more before the second pass
        now.x = now.y = now.signal = now.output_grad = first.input
        assert now.buffers is not None, "who reconciles has kept them"
        part = reconcile.subsample(x, settings.fraction, seeds.generator(*self._draw("part")))
        if self._shifts:
            recalled = x if self._recalls_input else None
            moved = reconcile.shift(settings, x, first.input, signal, part, self.rules.layout)
            del x, signal
            loss = self._again(self._run_body, labels, recalled, now.buffers)(moved)
            return gradients.of(loss, self.trainable)
        if part is not None:
            signal, x, labels = reconcile.on_subsample(signal, part), x[part], labels[part]
        objective = self._again(self._run_body, labels, x, now.buffers)
        at_x = first if part is None else None
        added = self._discord_gradient(objective, x, signal, self.trainable, at_x)
        return gradients.plus(first.params, added)

    @property
    def _shifts(self) -> bool:
        """Whether this step takes the parameters' gradients at a moved input, and none at x."""
        return self._now().step.reconcile and self.index > 0 and self._estimator.moves
