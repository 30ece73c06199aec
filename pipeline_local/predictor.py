"""A finished run as a predictor: its best heads together, on a program's own inputs."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipeline_local import configfile
from pipeline_local.data.datasets import DataInfo
from pipeline_local.data.images.normalize import Normalize
from pipeline_local.errors import UserError
from pipeline_local.finished import load
from pipeline_local.given import handed, like
from pipeline_local.models.given import Given
from pipeline_local.ranks.caller import undisturbed
from pipeline_local.record.choice import HeadChoice, chosen_heads
from pipeline_local.record.folder import RunFolder

CPU = torch.device("cpu")
WHITE = 255.0


class Predictor:
    """Predicts by the newest complete checkpoint of a run, with its best heads together.

    Args:
        run: its folder.
        device: where to compute.
        model: of a run that `fit` has made, a model like the one that was trained; its own weights
            stay as they are.
        heads: the numbers of the modules, from 1, whose heads predict together, or "all"; None: the
            last one alone or the first k together, whichever was best in the run's latest
            evaluation.

    Attributes:
        classes: the names of the classes, in the order of the columns; () of a run of `fit`.
        heads: the numbers of the modules whose heads predict together.
        reason: why these.

    Raises:
        UserError: no run, or no complete checkpoint.
        ValueError: there are no such heads.
    """

    @undisturbed
    def __init__(
        self,
        run: str | Path,
        device: torch.device = CPU,
        model: Given | None = None,
        heads: Sequence[int] | Literal["all"] | None = None,
    ) -> None:
        folder = RunFolder(configfile.path("run", run))
        folder.load_config()  # says what is no run folder
        info = DataInfo.from_json(folder.load_info())
        with nullcontext() if model is None else handed(like(model, info)):
            blueprint, modules, step = load(folder.path, device)
        self.classes = blueprint.info.classes
        self._shape = blueprint.info.sample_shape
        self._wire_format = blueprint.wire_format
        self._task = blueprint.task
        if not self._task.predicts:
            raise UserError(
                f"run: {run} is a run of a language model, which continues texts; use Generator, or"
                f" pipeline-local generate"
            )
        if heads is None:
            choice = chosen_heads(folder, step, len(modules), self._task)
        else:
            choice = _wanted(heads, len(modules))
        self.heads, self.reason = choice.heads, choice.reason
        self._modules = modules[: max(self.heads)]
        self._dtype = blueprint.input_dtype
        self._normalize = Normalize(info, self._dtype, device) if info.mean else None
        self._device = device

    @undisturbed
    def __call__(self, inputs: Tensor, white: float | None = None) -> Tensor:
        """The outputs of the heads together, of inputs [B, ...] such as images [B, C, H, W].

        For classification log-probabilities [B, classes] of the heads' geometric mean.

        Args:
            inputs: as the data has them, of its size; images that the configuration names have
                values in [0, 255], of any dtype.
            white: the largest value that a pixel of such images can have, such as 1 or 65535; None:
                255, and images that seem to have another range are refused.

        Raises:
            ValueError: they have another shape or range.
        """
        got = list(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        if not isinstance(inputs, Tensor) or tuple(inputs.shape[1:]) != tuple(self._shape):
            wanted = ", ".join(map(str, self._shape))
            raise ValueError(f"inputs must be a tensor [B, {wanted}], got {got}")
        x, summed = inputs.to(self._device), None
        x = self._normalize(_pixels(x, white)) if self._normalize else x.to(self._dtype)
        for module in self._modules:
            if module.index > 0:
                x = self._wire_format.widen(self._wire_format.round_activations(x))
            if module.index + 1 in self.heads:
                x, summed = module.predict(x, summed)
            else:
                x = module.activations(x)
        assert summed is not None, "at least one head predicts"
        return self._task.together(summed, len(self.heads))


def _wanted(heads: Sequence[int] | Literal["all"], count: int) -> HeadChoice:
    every = range(1, count + 1)
    chosen = tuple(every if heads == "all" else sorted({*heads}))
    if not chosen or not {*chosen} <= {*every}:
        raise ValueError(f"heads must be 'all' or numbers from 1 to {count}, got {heads!r}")
    return HeadChoice(chosen, "as the program asks")


def _pixels(images: Tensor, white: float | None) -> Tensor:
    """Images with values in [0, 255]; what has another range would be classified as noise."""
    if not images.numel():
        return images
    most = WHITE if white is None else white
    low, high = (value.item() for value in images.double().aminmax())
    # Floating-point images of [0, 1] are what torchvision's ToTensor gives: resizing may overshoot
    # a little. Whole numbers may be dark.
    fractions = images.is_floating_point() or images.dtype == torch.bool
    dim = white is None and fractions and 0 < high < 2
    if dim or not (most > 0 and 0 <= low <= high <= most):
        raise ValueError(
            f"images must have values in [0, {most:g}], got {images.dtype} from {low:g} to"
            f" {high:g}; give them as they are stored, not normalised, or say which value is white,"
            f" such as predict(images, white=1)"
        )
    return images if white is None else images.double() * (WHITE / white)
