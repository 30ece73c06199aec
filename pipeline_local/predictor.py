"""A finished run as a predictor: all its heads together, on a program's own inputs."""

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from pipeline_local.data.datasets import DataInfo
from pipeline_local.data.images.normalize import Normalize
from pipeline_local.finished import load
from pipeline_local.given import handed, like
from pipeline_local.models.given import Given
from pipeline_local.ranks.caller import undisturbed
from pipeline_local.record.folder import RunFolder

CPU = torch.device("cpu")


class Predictor:
    """Predicts by the newest complete checkpoint of a run, with all heads together.

    Args:
        run: its folder.
        device: where to compute.
        model: of a run that `fit` has made, a model like the one that was trained; its own weights
            stay as they are.

    Attributes:
        classes: the names of the classes, in the order of the columns; () of a run of `fit`.

    Raises:
        UserError: no run, or no complete checkpoint.
    """

    @undisturbed
    def __init__(
        self, run: str | Path, device: torch.device = CPU, model: Given | None = None
    ) -> None:
        folder = RunFolder(Path(run))
        folder.load_config()  # says what is no run folder
        info = DataInfo.from_json(folder.load_info())
        with nullcontext() if model is None else handed(like(model, info)):
            blueprint, modules, _ = load(folder.path, device)
        self.classes = blueprint.info.classes
        self._shape = blueprint.info.image_shape
        self._wire_format = blueprint.wire_format
        self._task = blueprint.task
        self._modules = [module.eval() for module in modules]
        self._dtype = blueprint.input_dtype
        self._normalize = Normalize(info, self._dtype, device) if info.mean else None
        self._device = device

    @undisturbed
    def __call__(self, inputs: Tensor) -> Tensor:
        """The outputs of all heads together, of inputs [B, ...] such as images [B, C, H, W].

        For classification log-probabilities [B, classes] of the heads' geometric mean.

        Args:
            inputs: as the data has them, of its size; images that the configuration names have
                values in [0, 255], of any dtype.

        Raises:
            ValueError: they have another shape.
        """
        got = list(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        if not isinstance(inputs, Tensor) or tuple(inputs.shape[1:]) != tuple(self._shape):
            wanted = ", ".join(map(str, self._shape))
            raise ValueError(f"inputs must be a tensor [B, {wanted}], got {got}")
        x, summed = inputs.to(self._device), None
        x = self._normalize(x) if self._normalize else x.to(self._dtype)
        for module in self._modules:
            if module.index > 0:
                x = self._wire_format.widen(self._wire_format.round_activations(x))
            x, summed = module.predict(x, summed)
        assert summed is not None, "a run has at least one module"
        return self._task.together(summed, len(self._modules))
