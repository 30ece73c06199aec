"""From `model.name` and its arguments to a backbone."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline_local.configfile import did_you_mean
from pipeline_local.errors import UserError
from pipeline_local.models import cifar_resnet, mlp, torchvision_models
from pipeline_local.models.backbone import Backbone, Block, Layout, reset_parameters

ImageShape = tuple[int, int, int]
CIFAR_RESNETS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}
_REFUSALS = (ValueError, TypeError, AssertionError, RuntimeError, ZeroDivisionError)


def names() -> list[str]:
    """Every `model.name` but the custom ones."""
    return ["mlp", *CIFAR_RESNETS, *torchvision_models.names()]


def build(
    name: str, args: Mapping[str, Any], num_classes: int, image_shape: ImageShape
) -> Backbone:
    """Build a backbone on the meta device: no memory, milliseconds.

    Args:
        name: one of `names()`, or "python:package.module:function".
        args: further `model.*` keys, for that model's builder.
        num_classes: outputs of the classifier.
        image_shape: channels, height, width.

    Raises:
        UserError: no such model, or arguments that it does not take.
    """
    if name.startswith("python:"):
        return _custom(name, args, num_classes, image_shape)
    if name == "mlp":
        _check(name, args, inspect.signature(mlp.build).parameters, ("image_shape", "num_classes"))
        return _refusing(name, lambda: mlp.build(image_shape, num_classes, **args))
    if name in CIFAR_RESNETS:
        known = inspect.signature(cifar_resnet.build).parameters
        _check(name, args, known, ("depth", "channels", "num_classes"))
        depth, channels = CIFAR_RESNETS[name], image_shape[0]
        return _refusing(name, lambda: cifar_resnet.build(depth, channels, num_classes, **args))
    if name in torchvision_models.names():
        return _torchvision(name, args, num_classes, image_shape)
    raise UserError(
        f"model.name: got {name!r}{did_you_mean(name, names())}"
        f" choose one of {', '.join(names())}, or python:package.module:function"
    )


def _torchvision(
    name: str, args: Mapping[str, Any], num_classes: int, image_shape: ImageShape
) -> Backbone:
    _check(name, args, torchvision_models.arguments(name), ())
    if image_shape[0] != 3:
        raise UserError(
            f"model.name: {name} takes images of 3 channels, got data with {image_shape[0]};"
            f" choose another model or other data"
        )
    size = image_shape[1]
    return _refusing(name, lambda: torchvision_models.build(name, args, num_classes, size))


def _check(
    name: str,
    args: Mapping[str, Any],
    known: Mapping[str, inspect.Parameter],
    given: tuple[str, ...],
) -> None:
    """Refuse arguments that the builder does not take, and miss none that it needs."""
    takes = [key for key in known if key not in given]
    for key in args:
        if key not in takes:
            hint = did_you_mean(f"model.{key}", [f"model.{key}" for key in takes])
            raise UserError(f"unknown key 'model.{key}' for model.name={name}{hint}")
    needed = [k for k in takes if known[k].default is inspect.Parameter.empty and k not in args]
    needed = [key for key in needed if key != "image_size"]  # the data's own
    if needed:
        raise UserError(f"missing key 'model.{needed[0]}': model.name={name} needs it; add it")


def _refusing(name: str, make: Callable[[], Backbone]) -> Backbone:
    """Build on the meta device; what the builder refuses is the user's to mend."""
    try:
        with torch.device("meta"):
            return make()
    except _REFUSALS as error:
        raise UserError(
            f"model.*: {name} cannot be built with these keys ({error}); change them"
        ) from None


# ---- custom models --------------------------------------------------------------------------


def _custom(
    name: str, args: Mapping[str, Any], num_classes: int, image_shape: ImageShape
) -> Backbone:
    function = _find(name)

    def make() -> Backbone:
        made = function(num_classes=num_classes, image_shape=image_shape, **args)
        return made if isinstance(made, Backbone) else _assemble(name, made, image_shape)

    return _refusing(name, make)


def _find(name: str) -> Callable[..., Any]:
    """Import the named function, from the current folder too, as `python -m` would."""
    module, _, function = name.removeprefix("python:").partition(":")
    if not module or not function:
        raise UserError(f"model.name: got {name!r}; write python:package.module:function")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise UserError(
            f"model.name: module {module!r} cannot be imported ({error}); start from the folder"
            f" that holds it, or install it"
        ) from None
    except AttributeError:
        raise UserError(
            f"model.name: module {module!r} has no {function!r}; name another"
        ) from None
    if not callable(found):
        raise UserError(f"model.name: {name} is no function; name one that returns blocks")
    return found  # type: ignore[no-any-return]


def _assemble(name: str, made: object, image_shape: ImageShape) -> Backbone:
    """A backbone from a list of modules or (name, module) pairs; the last one classifies."""
    parts = list(made) if isinstance(made, Iterable) else []
    blocks = []
    for i, part in enumerate(parts):
        label, module = part if isinstance(part, tuple) and len(part) == 2 else (f"block{i}", part)
        if not isinstance(label, str) or not isinstance(module, nn.Module):
            parts = []
            break
        blocks.append(Block(label, module, f"{label}."))
    if len(parts) < 2:
        raise UserError(
            f"model.name: {name} must return a Backbone, or a list of at least two nn.Modules or"
            f" (name, nn.Module) pairs, the classifier last; got {type(made).__name__}"
        )
    for block in blocks:
        _check_resettable(name, block)
    return Backbone(
        tuple(blocks[:-1]), blocks[-1], reset_parameters, _layout(blocks[:-1], image_shape)
    )


def _check_resettable(name: str, block: Block) -> None:
    for path, layer in block.module.named_modules():
        has = hasattr(layer, "reset_parameters") or hasattr(layer, "_reset_parameters")
        if not has and [*layer.parameters(False), *layer.buffers(False)]:
            raise UserError(
                f"model.name: in {name}, {'.'.join(filter(None, [block.name, path]))}"
                f" ({type(layer).__name__}) holds tensors but has no reset_parameters();"
                f" add one, or return a Backbone with its own `initialize`"
            )


def _layout(blocks: list[Block], image_shape: ImageShape) -> Layout:
    x = torch.empty(1, *image_shape)
    with torch.no_grad():
        for block in blocks:
            x = block.module.eval()(x)
            block.module.train()
    layouts: dict[int, Layout] = {2: "NC", 3: "NTC", 4: "NCHW"}
    return layouts[x.dim()]
