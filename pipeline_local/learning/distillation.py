"""Distillation: how far a head is from a teacher that consists of later heads.

Pure functions of tensors. The outputs of later heads come as lagged messages (contents.py).
"""

from typing import NamedTuple

from torch import Tensor

from pipeline_local.config import DistillConfig
from pipeline_local.learning.tasks import Task


class Lesson(NamedTuple):
    """What a head learns from a teacher.

    Attributes:
        loss: what the head descends, a scalar.
        divergence: of its outputs from the teacher's, a scalar.
        summed: the sum of the parts of all heads of the teacher [B, ...].
    """

    loss: Tensor
    divergence: Tensor
    summed: Tensor


def lesson(
    settings: DistillConfig, task: Task, outputs: Tensor, later: Tensor, heads: int
) -> Lesson:
    """Compare a head with its teacher, which is a constant.

    Args:
        settings: weight and temperature.
        task: says what heads are together, and how far apart two are.
        outputs: outputs of the head [B, ...].
        later: sum of the parts of later heads (`Task.part`) for the same samples.
        heads: number of heads in the teacher, this one among them; 1: `later` is one head's part.
    """
    summed = later if heads == 1 else later + task.part(outputs.detach())
    teacher = task.together(summed, heads)
    assert task.divergence is not None, "a run without one is refused"
    divergence = task.divergence(outputs, teacher, settings.temperature)
    return Lesson(settings.strength * divergence, divergence, summed)
