"""What the families of torchvision have in common.

A model is built by torchvision itself, on the meta device, and taken apart: wrappers keep the names
of its tensors, so weights travel in both directions under `strict=True`. Because blocks get their
memory one by one, torchvision's initialisation is repeated in each family as rules per layer.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Annotated, Any

import torchvision
from pydantic import Field
from torch import Tensor, nn

from pipeline_local.errors import UserError
from pipeline_local.layout import ImageShape, Layout
from pipeline_local.models.backbone import Backbone, Block, reset_parameters

Probability = Annotated[float, Field(ge=0, le=1)]
Part = tuple[str, nn.Module]


class Steps(nn.Module):
    """Submodules under their own names, run in order."""

    def __init__(self, **steps: nn.Module) -> None:
        super().__init__()
        for name, step in steps.items():
            self.add_module(name, step)

    def forward(self, x: Tensor) -> Tensor:
        """Through every step."""
        for step in self.children():
            x = step(x)
        return x


class SpatialMean(nn.Module):
    """[B, C, H, W] -> [B, C], as `x.mean([2, 3])`."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean over all positions."""
        return x.mean([2, 3])


_CALLED: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "avgpool": lambda: nn.AdaptiveAvgPool2d(1),
    "flatten": nn.Flatten,
    "mean": SpatialMean,
}
"""What torchvision's models call as functions instead of holding as modules."""


def whole(name: str, num_classes: int, image_shape: ImageShape, **args: Any) -> Any:  # noqa: ANN401
    """torchvision's own model of this name; arguments that are None keep torchvision's default.

    Raises:
        UserError: the images do not have three channels.
    """
    check_channels(name, image_shape)
    given = {key: value for key, value in args.items() if value is not None}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **given)


def check_channels(name: str, image_shape: ImageShape) -> None:
    """torchvision's models take colour images only.

    Raises:
        UserError: the images do not have three channels.
    """
    if image_shape[0] != 3:
        raise UserError(
            f"model.name: {name} takes images of 3 channels, got data with {image_shape[0]};"
            f" choose resnet20..110, mlp, or other data"
        )


def cut(
    model: nn.Module,
    units: tuple[type[nn.Module], ...],
    head: Sequence[str],
    initialize: Callable[[nn.Module], None],
    layout: Layout = "NCHW",
) -> Backbone:
    """Cut a model whose submodules run in the order in which it holds them.

    A block starts at every unit and at every other container with parameters; the layers between
    (norms, activations, pools) belong to the block before them. It is named after its first part.

    Args:
        units: classes of modules that are a block each; containers of units are opened.
        head: paths of the classifier's parts, or names of functions (`_CALLED`), in order.
        initialize: torchvision's rule, see `Backbone.initialize`.
        layout: of the blocks' outputs.
    """
    body = [part for part in _open("", model, units) if part[0] not in head]
    groups: list[list[Part]] = []
    for part in body:
        if not groups or _starts(part[1], units):
            groups.append([])
        groups[-1].append(part)
    blocks = tuple(_block(group) for group in groups)
    classifier = Block("classifier", _nested([(path, _step(model, path)) for path in head]))
    return Backbone(blocks, classifier, initialize, layout)


def _open(path: str, module: nn.Module, units: tuple[type[nn.Module], ...]) -> Iterator[Part]:
    """The parts of a model from outside in, down to units and to what holds none."""
    held = any(isinstance(inner, units) for inner in module.modules())
    if path and (isinstance(module, units) or not held):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _open(f"{path}.{name}".lstrip("."), child, units)


def _starts(module: nn.Module, units: tuple[type[nn.Module], ...]) -> bool:
    container = next(module.children(), None) is not None
    return isinstance(module, units) or (container and next(module.parameters(), None) is not None)


def _block(group: list[Part]) -> Block:
    """A single part as it is; several under the names that they have where they stand."""
    path, module = group[0]
    if len(group) == 1:
        return Block(path, module, f"{path}.")
    parent = path.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    return Block(path, Steps(**{name.removeprefix(prefix): part for name, part in group}), prefix)


def _step(model: nn.Module, path: str) -> nn.Module:
    held = any(name == path for name, _ in model.named_modules())
    return model.get_submodule(path) if held else _CALLED[path]()


def _nested(parts: Sequence[Part]) -> Steps:
    """Steps whose tensors have the paths of the parts as names."""
    steps: dict[str, nn.Module] = {}
    for first, group in groupby(parts, key=lambda part: part[0].partition(".")[0]):
        inner = [(path.partition(".")[2], module) for path, module in group]
        steps[first] = _nested(inner) if inner[0][0] else inner[0][1]
    return Steps(**steps)


Draw = Callable[[Tensor], object]
"""Fills a weight in place."""


def initializer(
    draws: dict[type[nn.Module], Draw], zero_biases: bool = True
) -> Callable[[nn.Module], None]:
    """A rule that fills the weights of some kinds of layers, and leaves the others to torch.

    Args:
        draws: for each kind of layer, what fills its weight.
        zero_biases: of those layers; otherwise their biases are torch's own, too.
    """

    def initialize(module: nn.Module) -> None:
        reset_parameters(module)
        for layer in module.modules():
            for kind, draw in draws.items():
                if isinstance(layer, kind):
                    draw(layer.get_parameter("weight"))
                    if zero_biases and layer.bias is not None:
                        nn.init.zeros_(layer.get_parameter("bias"))

    return initialize


def kaiming_fan_out(weight: Tensor) -> None:
    """He et al.'s normal distribution, for what flows backwards."""
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


initialize_convolutions = initializer({nn.Conv2d: kaiming_fan_out})
"""Kaiming normal (fan out) weights and zero biases, as in torchvision's ResNet."""

initialize_fan_out = initializer(
    {nn.Conv2d: kaiming_fan_out, nn.Linear: partial(nn.init.normal_, std=0.01)}
)
"""The same, and small linear weights, as in torchvision's VGG and MobileNets."""
