"""From `model.name` and its arguments to a backbone."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torchvision
from pydantic import ValidationError, validate_call

from pipeline_local.configfile import did_you_mean
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.models import (
    cifar_resnet,
    custom,
    mlp,
    resnet,
    swin,
    torchvision_families,
    vgg,
    vit,
)
from pipeline_local.models.backbone import Backbone, check_classifier, shapes

ImageShape = tuple[int, int, int]
Builder = Callable[..., Backbone]

_TORCHVISION: dict[tuple[str, ...], Builder] = {
    ("resnet", "resnext", "wide_resnet"): resnet.build,
    ("vit_",): vit.build,
    ("swin_",): swin.build,
    ("vgg",): vgg.build,
    **torchvision_families.BUILDERS,
}
_GIVEN = ("num_classes", "image_shape")
_REFUSALS = (ValueError, TypeError, AssertionError, RuntimeError, ZeroDivisionError)


def names() -> list[str]:
    """Every `model.name` but the custom ones."""
    return list(_builders())


def build(
    name: str, args: Mapping[str, Any], num_classes: int, image_shape: ImageShape
) -> Backbone:
    """Build a backbone on the meta device: no memory, milliseconds.

    Args:
        name: one of `names()`, or "python:package.module:function".
        args: the further `model.*` keys, for that model's builder.
        num_classes: outputs of the classifier.
        image_shape: channels, height, width.

    Raises:
        UserError: no such model, arguments that it does not take, or images that it cannot take.
    """
    builder = _find(name)
    if problems := list(_wrong_keys(name, builder, args)):
        raise ConfigError(problems)
    if not name.startswith("python:"):
        builder = validate_call(builder)
    try:
        with torch.device("meta"):
            backbone = builder(num_classes=num_classes, image_shape=image_shape, **args)
    except ValidationError as error:
        raise ConfigError(list(_wrong_values(error))) from None
    except _REFUSALS as error:
        raise UserError(
            f"model.*: {name} cannot be built with {dict(args)} ({_line(error)}); change them"
        ) from None
    _check_images(name, backbone, image_shape, num_classes)
    return backbone


def _builders() -> dict[str, Builder]:
    found: dict[str, Builder] = {"mlp": mlp.build}
    found |= {f"resnet{depth}": partial(cifar_resnet.build, depth) for depth in cifar_resnet.DEPTHS}
    found |= {"vit": vit.build_any, "vgg": vgg.build_small}
    for name in torchvision.models.list_models(module=torchvision.models):
        for prefixes, builder in _TORCHVISION.items():
            if name.startswith(prefixes):
                found[name] = partial(builder, name)
    return found


def _find(name: str) -> Builder:
    if name.startswith("python:"):
        return custom.builder(name)
    builders = _builders()
    if name not in builders:
        raise UserError(
            f"model.name: got {name!r}{did_you_mean(name, list(builders)) or ';'} choose one of"
            f" {', '.join(builders)}, or python:package.module:function"
        )
    return builders[name]


def _wrong_keys(name: str, builder: Builder, args: Mapping[str, Any]) -> Iterator[str]:
    """Keys that the builder does not take, and keys that it needs."""
    known = {k: p for k, p in inspect.signature(builder).parameters.items() if k not in _GIVEN}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        return
    for key in args:
        if key not in known:
            hint = did_you_mean(key, list(known)).replace("'", "'model.", 1)
            takes = f"; it takes {', '.join(known) or 'none'}"
            yield f"unknown key 'model.{key}' for model.name={name}{hint or takes}"
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in args:
            yield f"missing key 'model.{key}': model.name={name} needs it; add model.{key}=VALUE"


def _wrong_values(error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False):
        problem = item["msg"].replace("Input should be", "should be")
        yield f"model.{'.'.join(map(str, item['loc']))}: {problem}, got {item['input']!r}"


def _check_images(name: str, backbone: Backbone, image_shape: ImageShape, num_classes: int) -> None:
    """Images too small for the network show here, before anything is spent."""
    try:
        *_, features = shapes(backbone, (2, *image_shape))
        check_classifier(backbone, features, num_classes)
    except Exception as error:  # a model of the user's may raise anything
        size = "x".join(map(str, image_shape))
        raise UserError(
            f"model.name: {name} cannot take images of {size} ({_line(error)});"
            f" choose another model, or other data"
        ) from None


def _line(error: BaseException) -> str:
    """The first line of torch's explanation."""
    return next(iter(str(error).splitlines()), type(error).__name__)
