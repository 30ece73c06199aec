"""What a head learns from an earlier step, once the lagged message of that step has come."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from pipeline_local import seeds
from pipeline_local.engines import gradients
from pipeline_local.engines.gradients import Gradient
from pipeline_local.learning import distillation, reconcile
from pipeline_local.learning.comparison import compare
from pipeline_local.learning.lagged import LaggedMessages
from pipeline_local.learning.lagged_queue import Kept
from pipeline_local.learning.passes import Pass, Passes
from pipeline_local.learning.step import Step
from pipeline_local.side_effects.untouched import Buffers


class HeadTraining(Passes):
    """A module whose head learns from lagged messages, with batches of earlier steps.

    Attributes:
        lagged: the messages.
    """

    lagged: LaggedMessages

    def apply_lagged(self, step: Step, microbatch: int, *tensors: Tensor) -> None:
        """Apply the oldest lagged message from downstream, after a microbatch of this step.

        Args:
            tensors: the message; none for the last module, which has no downstream neighbour.
        """
        self.lagged.apply(self, step, microbatch, tensors)

    def apply_feedback(self, step: Step, kept: Kept, feedback: Tensor) -> None:
        """Train the head so that its signal comes closer to the downstream neighbour's input
        gradient.

        The distance of the two is differentiated through the head alone, with the batch and the
        dropout masks of an earlier step.

        Args:
            step: the current step.
            kept: activations and labels of the earlier microbatch, and its input if recalled.
            feedback: g_{k+1} of that microbatch, shaped like the activations.
        """
        y, labels, recalled = self._recall(step, kept)
        params = self._head_params
        # its buffers have seen this batch before
        objective = self._again(self._scale.entering, labels, recalled, Buffers(self.head))
        first = reconcile.plain(objective, y, params)
        self._measure(feedback_cosine=compare(first.input, feedback).cosine)
        target = self._scale.target(feedback, first.input)
        self._add_to_head(self._discord_gradient(objective, y, target, params, first))

    def part(self) -> Tensor:
        """Return what the head's outputs for this microbatch add to the sum of all heads."""
        outputs = self._now().outputs
        assert outputs is not None, "they are kept where the message is made of them"
        return self.rules.task.part(outputs)

    def imitate(self, step: Step, kept: Kept, later: Tensor, heads: int) -> Tensor:
        """Train the head so that its outputs come closer to those of a teacher.

        Their divergence is differentiated through the head alone, with the batch and the dropout
        masks of an earlier step.

        Args:
            step, kept: as for `apply_feedback`.
            later: the sum of the parts of later heads for that microbatch.
            heads: number of heads that the teacher consists of, this one among them; 1: it is what
                has come.

        Returns:
            The sum with this head's part, if it is among the teacher's; else `later`.
        """
        y, _, _ = self._recall(step, kept)
        # its buffers have seen this batch before
        with Buffers(self.head).again(), self._autocast(y):
            seeds.reseed(y.device, *self._draw("head"))
            outputs = self.head(y)
        lesson = distillation.lesson(self.rules.distill, self.rules.task, outputs, later, heads)
        self._measure(divergence=lesson.divergence.detach())
        self._add_to_head(gradients.of(self._scale.times(lesson.loss), self._head_params))
        return lesson.summed

    def _recall(self, step: Step, kept: Kept) -> tuple[Tensor, Tensor, Tensor | None]:
        """Go back to a microbatch of an earlier step: its activations, its labels, and the module's
        input if it is recalled."""
        number, microbatch, (y, labels, *inputs) = kept
        y, *inputs = map(self.rules.wire_format.laid_out, (y, *inputs))  # files keep no strides
        self._pass = Pass(replace(step, number=number), microbatch, y, labels, y)
        return y, labels, inputs[0] if inputs else None

    def _add_to_head(self, added: Sequence[Gradient]) -> None:
        """Add to the head's gradients of this step; those of the body stay as they are."""
        own = [*[None] * len(self._body_params), *added]
        own = gradients.summed(self._params, own) if self._is_tied else own
        self.engine.add(own, self._now().step.microbatches)
        self._pass = None
