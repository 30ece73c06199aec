"""`predict`: image files, classified by a run as its own evaluation would."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline_local.data.augment import fit
from pipeline_local.data.images.decode import read_image
from pipeline_local.data.images.imagefolder import EXTENSIONS
from pipeline_local.data.images.skipping import UnreadableImageError
from pipeline_local.errors import UserError
from pipeline_local.finished.predictor import Predictor
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.user_input.json_text import Facts

BATCH = 32
"""Images that are computed at once."""


@dataclass(frozen=True)
class Asked:
    """How images are to be classified.

    Attributes:
        exit: number of the module, from 1, whose head predicts, or with a confidence the last one
            that may; None: as `Predictor` chooses.
        confidence: as for `Predictor.classify`.
        top: number of classes of each image.
        step: of the checkpoint, as `Predictor` takes it.
    """

    exit: int | None = None
    confidence: float | None = None
    top: int = 1
    step: int | str = "newest"

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UserError: a number is out of its range.
        """
        if self.confidence is not None and not 0 < self.confidence <= 1:
            raise UserError(f"--confidence: must be above 0 and at most 1, got {self.confidence:g}")
        if self.top < 1:
            raise UserError(f"--top: must be at least 1, got {self.top}")


@dataclass(frozen=True)
class Prediction:
    """What a run says of an image.

    Attributes:
        path: of the file.
        classes: the most probable ones, the best first.
        probabilities: of these.
        exit: number of the module, from 1, behind which the image has left.
    """

    path: str
    classes: list[str]
    probabilities: list[float]
    exit: int

    def __str__(self) -> str:
        both = zip(self.classes, self.probabilities, strict=True)
        return f"{self.path}: {', '.join(f'{n} {p:.1%}' for n, p in both)} (exit {self.exit})"

    def facts(self) -> Facts:
        """Return it for JSON."""
        return asdict(self)


def predict(run: Path, images: Sequence[Path], asked: Asked) -> Iterator[Prediction]:
    """Classify image files, one after the other.

    Args:
        run: the folder of a run on images.
        images: files, and folders whose image files are taken at any depth, in order of their name.
        asked: how.

    Raises:
        UserError: no such run, module or file, a file that is no image, or a run that does not
            classify images.
    """
    asked.check()
    files = iter(_files(images))
    predictor = _predictor(run, asked)
    while batch := list(islice(files, BATCH)):
        pixels = torch.stack([_pixels(path, predictor.sample_shape) for path in batch])
        found = predictor.classify(pixels, asked.confidence)
        most = found.probabilities.cpu().topk(min(asked.top, found.probabilities.shape[1]))
        for path, values, labels, exit in zip(batch, *most, found.exits.tolist(), strict=True):
            names = [predictor.classes[label] for label in labels.tolist()]
            yield Prediction(str(path), names, values.tolist(), exit)


def _predictor(run: Path, asked: Asked) -> Predictor:
    alone = asked.exit is not None and asked.confidence is None
    heads = [asked.exit] if alone and asked.exit else None
    try:
        found = Predictor(run, RankInfo().device, heads=heads, upto=asked.exit, step=asked.step)
    except ValueError as error:
        raise UserError(f"--exit: {str(error).removeprefix('upto ')}") from None
    if len(found.sample_shape) != 3 or found.sample_shape[0] not in (1, 3):
        shape = "x".join(map(str, found.sample_shape))
        raise UserError(f"{run} takes inputs of {shape}, which image files have not; use Predictor")
    return found


def _files(images: Sequence[Path]) -> list[Path]:
    """What is named, and the images below folders; names that start with a dot are passed over."""
    found: list[Path] = []
    for path in images:
        if not os.path.exists(path):  # False also for a name that is too long
            raise UserError(f"IMAGE: {path} does not exist; name image files or folders of them")
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if _is_image(p.relative_to(path)))
            if not inside:
                raise UserError(f"IMAGE: {path} has no images ({', '.join(EXTENSIONS)}) in it")
        found += inside
    return found


def _is_image(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in EXTENSIONS and not hidden


def _pixels(path: Path, shape: tuple[int, ...]) -> Tensor:
    """An image as the run's evaluation has it: uint8 [C, H, W]."""
    channels, side, _ = shape
    try:
        image = read_image(str(path))
    except UnreadableImageError as error:
        raise UserError(
            f"IMAGE: {path} cannot be read ({error.reason}); repair it, or leave it out"
        ) from None
    return fit(image if channels == 3 else _grey(image), side)


def _grey(image: Tensor) -> Tensor:
    """[3, H, W] -> [1, H, W]."""
    coloured = Image.fromarray(image.permute(1, 2, 0).numpy())
    return torch.from_numpy(np.array(coloured.convert("L")))[None]
