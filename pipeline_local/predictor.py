"""A finished run as a classifier: all its heads together, on images of the user's."""

from pathlib import Path

import torch
from torch import Tensor

from pipeline_local.data.images.normalize import Normalize
from pipeline_local.finished import load

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
        self._wire_format = blueprint.wire_format
        self._task = blueprint.task
        self._modules = [module.eval() for module in modules]
        self._normalize = Normalize(blueprint.info, blueprint.dtype, device)
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        """The outputs of all heads together, of images [B, C, H, W].

        For classification log-probabilities [B, classes] of the heads' geometric mean.

        Args:
            images: as the data has them, of its size, with values in [0, 255]; any dtype.

        Raises:
            ValueError: they have another shape.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != tuple(self._shape):
            raise ValueError(
                f"images must be [B, {', '.join(map(str, self._shape))}], got {list(images.shape)}"
            )
        x, summed = self._normalize(images.to(self._device)), None
        for module in self._modules:
            if module.index > 0:
                x = self._wire_format.widen(self._wire_format.round_activations(x))
            x, summed = module.predict(x, summed)
        assert summed is not None, "a run has at least one module"
        return self._task.together(summed, len(self._modules))
