"""A finished run as a predictor: its best heads together, or early exit, on a program's inputs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pipeline_local.configfile import configfile
from pipeline_local.data.images.normalize import Normalize
from pipeline_local.errors import UserError
from pipeline_local.finished.exits.thresholds import top
from pipeline_local.finished.finished import CPU, load, standing_in
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.tasks import Classification
from pipeline_local.models.given import GivenModel
from pipeline_local.ranks.caller import undisturbed
from pipeline_local.record.choice import HeadChoice, chosen_heads
from pipeline_local.record.folder import RunFolder

WHITE = 255.0


class Classified(NamedTuple):
    """What a run says of some samples.

    Attributes:
        probabilities: of each class [B, classes].
        exits: the number of the module, from 1, behind which each sample has left [B], int64.
    """

    probabilities: Tensor
    exits: Tensor


class Predictor:
    """Predicts by a complete checkpoint of a run, with its best heads together or by early exit.

    Args:
        run: its folder.
        device: where to compute.
        model: of a run that `fit` has made, a model like the one that was trained; its own weights
            stay as they are.
        heads: the number of a module, from 1, whose head predicts, or several that do together, or
            "all"; None: the last one alone or the first k together, whichever was best in the run's
            latest evaluation.
        upto: the number of a module, from 1: no later one is computed, and its head counts as the
            last one; None: all may be.
        step: of the checkpoint: "newest", a number of optimizer steps, or a name such as "best".

    Attributes:
        classes: the names of the classes, in the order of the columns; () of a run of `fit`.
        sample_shape: of one input, such as (C, H, W).
        heads: the numbers of the modules whose heads predict together.
        reason: why these.

    Raises:
        UserError: no run, or no such checkpoint.
        ValueError: there are no such heads, or no such module.

    Example:
        >>> summary = fit(model, (x, y), (x, y), modules=2, epochs=1, run_dir="runs/seen-again")
        >>> predictor = Predictor("runs/seen-again", model=model)
        >>> predictor(torch.rand(5, 64)).shape
        torch.Size([5, 10])
    """

    @undisturbed
    def __init__(
        self,
        run: str | Path,
        device: torch.device = CPU,
        model: GivenModel | None = None,
        heads: int | Sequence[int] | Literal["all"] | None = None,
        upto: int | None = None,
        step: int | str = "newest",
    ) -> None:
        folder = RunFolder(configfile.path("run", run))
        with standing_in(folder, model):
            blueprint, modules, step = load(folder.path, device, step)
        info = blueprint.info
        self.classes = blueprint.info.classes
        self.sample_shape = blueprint.info.sample_shape
        self._wire_format = blueprint.wire_format
        self._task = blueprint.task
        if not self._task.predicts:
            raise UserError(
                f"run: {run} is a run of a language model, which continues texts; use Generator, or"
                f" pipeline-local generate"
            )
        if upto is not None and upto not in range(1, len(modules) + 1):
            raise ValueError(f"upto must be a module from 1 to {len(modules)}, got {upto}")
        count = int(upto or len(modules))
        if heads is None:
            choice = chosen_heads(folder, step, count, self._task)
            self._exits: Sequence[int] = range(1, count + 1)
        else:
            choice = _wanted(heads, count)
            self._exits = choice.heads
        self.heads, self.reason = choice.heads, choice.reason
        self._modules = modules[: max(self._exits)]
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
        x, summed = self._ready(inputs, white), None
        for module in self._modules[: max(self.heads)]:
            x, summed = self._run(module, x, summed, module.index + 1 in self.heads)
        assert summed is not None, "at least one head predicts"
        return self._task.together(summed, len(self.heads))

    @undisturbed
    def classify(
        self, inputs: Tensor, confidence: float | None = None, white: float | None = None
    ) -> Classified:
        """The probabilities of the classes, and the exits that gave them.

        Args:
            inputs, white: as for a call.
            confidence: early exit: each sample leaves at the first head whose own top probability
                reaches this, and later modules do not see it; the last head takes all that are
                left. The heads are those that were given, else all (up to `upto`). None: the heads
                of a call together, without early exit.

        Raises:
            ValueError: as for a call, or the confidence is not in (0, 1].
            UserError: the run's task is not classification.
        """
        if not isinstance(self._task, Classification):
            raise UserError("run: outputs are no classes; call the predictor instead of classify")
        if confidence is None:
            probabilities = self(inputs, white).exp()
            return Classified(probabilities, torch.full((len(inputs),), max(self.heads)))
        if not 0 < confidence <= 1:
            raise ValueError(f"confidence must be above 0 and at most 1, got {confidence}")
        return self._leave_early(self._ready(inputs, white), confidence)

    def _leave_early(self, x: Tensor, confidence: float) -> Classified:
        found = torch.zeros(len(x), self._task.num_outputs, device=x.device)
        exits = torch.full((len(x),), max(self._exits), device=x.device)
        there = torch.arange(len(x), device=x.device)
        for module in self._modules:
            number, last = module.index + 1, module is self._modules[-1]
            x, part = self._run(module, x, None, number in self._exits)
            if part is None:
                continue
            said = self._task.together(part, 1)
            sure = (top(said) >= confidence) | last
            found[there[sure]], exits[there[sure]] = said[sure].exp(), number
            x, there = x[~sure], there[~sure]
            if not len(there):
                break
        return Classified(found, exits.cpu())

    def _ready(self, inputs: Tensor, white: float | None) -> Tensor:
        got = list(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        if not isinstance(inputs, Tensor) or tuple(inputs.shape[1:]) != tuple(self.sample_shape):
            wanted = ", ".join(map(str, self.sample_shape))
            raise ValueError(f"inputs must be a tensor [B, {wanted}], got {got}")
        x = inputs.to(self._device)
        return self._normalize(_pixels(x, white)) if self._normalize else x.to(self._dtype)

    def _run(
        self, module: LocalModule, x: Tensor, summed: Tensor | None, speaks: bool
    ) -> tuple[Tensor, Tensor | None]:
        """A module's activations, and the sum with its head's part if that speaks."""
        if module.index > 0:
            x = self._wire_format.widen(self._wire_format.round_activations(x))
        if speaks:
            return module.predict(x, summed)
        return module.activations(x), summed


def _wanted(heads: int | Sequence[int] | Literal["all"], count: int) -> HeadChoice:
    every = range(1, count + 1)
    named = {*heads} if isinstance(heads, Iterable) else {heads}
    chosen = tuple(each for each in every if isinstance(heads, str) or each in named)
    if not chosen or (heads != "all" if isinstance(heads, str) else not named <= {*every}):
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
