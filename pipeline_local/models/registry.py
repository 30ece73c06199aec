"""From `model.name` and its arguments to a backbone."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from pipeline_local.errors import UserError, first_line
from pipeline_local.models import causal_lm, cifar_resnet, custom, mlp
from pipeline_local.models.backbone import Backbone, check_classifier, shapes
from pipeline_local.user_input.registry import GIVEN, Registry

Shape = tuple[int, ...]
Builder = Callable[..., Backbone]

_REFUSALS = (ValueError, TypeError, AssertionError, RuntimeError, ZeroDivisionError)


def build(
    name: str,
    args: Mapping[str, Any],
    outputs: int | tuple[int, ...],
    sample_shape: Shape,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Backbone, list[Shape]]:
    """Build a backbone on the meta device: no memory, milliseconds.

    Args:
        name: an entry of `MODELS`, or "python:package.module:function".
        args: the further `model.*` keys, for that model's builder.
        outputs: the classifier's output shape for one sample, or its only axis; the first axis is
            `num_classes`, of outputs for each of a row of whole numbers the last one.
        sample_shape: of one sample's input: channels, height, width of an image. A builder knows it
            as `image_shape`.
        dtype: of the input.
        seed: of what a user's own function draws while it builds.

    Returns:
        The backbone, and the output shape of every block, for one sample.

    Raises:
        UserError: no such model, arguments that it does not take, or images that it cannot take.
    """
    builder, options = MODELS.find(name), MODELS.options(name, args)
    if name.startswith("python:"):
        builder = custom.builder(name, builder, seed, dtype)
    output_shape = (outputs,) if isinstance(outputs, int) else outputs
    classes = output_shape[-1 if _is_sequence(output_shape, dtype) else 0]
    try:
        with torch.device("meta"):
            backbone = builder(num_classes=classes, image_shape=sample_shape, **options)
    except _REFUSALS as error:
        raise UserError(
            f"model.*: {name} cannot be built with {dict(args)} ({first_line(error)}); change them"
        ) from None
    if backbone.language:
        output_shape = (*output_shape[:-1], backbone.language.vocabulary)
    return backbone, _shapes(name, backbone, sample_shape, output_shape, dtype)


def _is_sequence(output_shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether outputs are one row [T, classes] for inputs of whole numbers."""
    return len(output_shape) == 2 and not dtype.is_floating_point


def _models() -> Registry[Builder]:
    given = ("num_classes", "image_shape")
    models: Registry[Builder] = Registry("model.name", "model", given, slow=_torchvision)
    models.add("mlp", mlp.build)
    models.add("causal_lm", causal_lm.build)
    for depth in cifar_resnet.DEPTHS:
        models.add(f"resnet{depth}", partial(cifar_resnet.build, depth))
    return models


def _torchvision() -> dict[str, Builder]:
    """Torchvision's models, and those made of its parts: it takes as long to import as torch."""
    import torchvision

    from pipeline_local.models import resnet, swin, torchvision_families, vgg, vit

    families: dict[tuple[str, ...], Builder] = {
        ("resnet", "resnext", "wide_resnet"): resnet.build,
        ("vit_",): vit.build,
        ("swin_",): swin.build,
        ("vgg",): vgg.build,
        **torchvision_families.BUILDERS,
    }
    found: dict[str, Builder] = {"vit": vit.build_any, "vgg": vgg.build_small}
    for name in torchvision.models.list_models(module=torchvision.models):
        for prefixes, builder in families.items():
            if name.startswith(prefixes):
                found[name] = partial(builder, name)
    return found


MODELS = _models()
"""What `model.name` may name."""


def _shapes(
    name: str,
    backbone: Backbone,
    sample_shape: Shape,
    output_shape: tuple[int, ...],
    dtype: torch.dtype,
) -> list[Shape]:
    """Images too small for the network show here, before anything is spent."""
    try:
        found = shapes(backbone, (2, *sample_shape), dtype)
        check_classifier(backbone, found[-1], output_shape)
        return [tuple(shape[1:]) for shape in found]
    except Exception as error:  # a model of the user's may raise anything
        if name == GIVEN:
            raise UserError(
                f"model: does not fit the data or the task ({first_line(error)}); change one of"
                f" them"
            ) from None
        size, what = (
            "x".join(map(str, sample_shape)),
            "images" if len(sample_shape) > 1 else "inputs",
        )
        raise UserError(
            f"model.name: {name} cannot take {what} of {size} ({first_line(error)});"
            f" choose another model, or other data"
        ) from None
