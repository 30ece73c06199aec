"""A finished run as a classifier: all its heads together, on images of the user's."""

from pathlib import Path

import torch
from torch import Tensor

from pipeline_local.data.images.normalize import Normalize
from pipeline_local.finished import load
from pipeline_local.learning.loss import IGNORE

CPU = torch.device("cpu")


class Predictor:
    """Classifies images by the newest complete checkpoint of a run.

    Args:
        run: its folder.
        device: where to compute.

    Attributes:
        classes: their names, in the order of the columns.

    Raises:
        UserError: no run, or no complete checkpoint.
    """

    def __init__(self, run: str | Path, device: torch.device = CPU) -> None:
        blueprint, modules, _ = load(Path(run), device)
        self.classes = blueprint.info.classes
        self._shape = blueprint.info.image_shape
        self._crossing = blueprint.crossing
        self._modules = [module.eval() for module in modules]
        self._normalize = Normalize(blueprint.info, blueprint.dtype, device)
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        """Log-probabilities [B, classes], the mean over all heads, of images [B, C, H, W].

        Args:
            images: as the data has them, of its size, with values in [0, 255]; any dtype.

        Raises:
            ValueError: they have another shape.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != tuple(self._shape):
            raise ValueError(
                f"images must be [B, {', '.join(map(str, self._shape))}], got {list(images.shape)}"
            )
        x, votes = self._normalize(images.to(self._device)), None
        labels = torch.full((len(x),), IGNORE, device=self._device)
        for module in self._modules:
            if module.index > 0:
                x = self._crossing.widen(self._crossing.round_activations(x))
            x, votes, _ = module.evaluate(x, labels, votes)
        assert votes is not None, "a run has at least one module"
        return (votes / len(self._modules)).log_softmax(1)
