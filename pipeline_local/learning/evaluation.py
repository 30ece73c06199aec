"""The evaluation of one module: its head's scores on the test set, a microbatch at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.tasks import Score


class Evaluation:
    """Runs a module on microbatches, so that an evaluation takes no more memory than training.

    Every batch is scored as a whole: the outputs of its microbatches are kept until all are there.
    So the scores, sums of float32, are those of whole batches bit for bit. Where scores add up
    exactly and outputs are maps (`Task.adds_up`), each microbatch is scored at once.

    Args:
        module: the module, in evaluation mode.
        microbatches: of each batch.

    Attributes:
        scores: the scores so far, which together are those of the test set.
    """

    def __init__(self, module: LocalModule, microbatches: int = 1) -> None:
        self.scores: list[Score] = []
        self._module = module
        self._microbatches = microbatches
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._seen = self._size = 0

    def see(
        self, x: Tensor, labels: Tensor, summed: Tensor | None, samples: int, number: int
    ) -> tuple[Tensor, Tensor]:
        """Runs the module on one microbatch.

        Args:
            x: input [b, ...].
            labels: labels [b, ...].
            summed: the sum of the parts of all upstream heads (`Task.part`); None: there are none.
            samples: the samples of the whole batch that are not padding, from the first.
            number: of this microbatch among all of the evaluation.

        Returns:
            Activations [b, ...], and the sum with this head's part.
        """
        self._size = self._size or len(x)  # the last part of a batch may be smaller
        before = number % self._microbatches * self._size
        here = min(len(x), max(0, samples - before))
        # where all is padding, nothing is scored, and any outputs do
        activations, outputs, summed = self._module.evaluate(
            x, summed, here or None, number, labels
        )
        self._kept.append((outputs, summed, labels))
        if self._module.rules.task.adds_up:
            self._score(here)
        self._seen += here
        return activations, summed

    def end_batch(self) -> None:
        """Scores what is kept of the batch."""
        samples, self._seen, self._size = self._seen, 0, 0
        if self._kept:
            self._score(samples)

    def _score(self, samples: int) -> None:
        outputs, summed, labels = map(_joined, zip(*self._kept, strict=True))
        self._kept = []
        self.scores.append(self._module.score(outputs, summed, labels, samples))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
