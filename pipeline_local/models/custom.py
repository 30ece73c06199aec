"""A user's own backbone: `model.name: python:package.module:function`.

The function is called on the meta device with `num_classes`, `image_shape` and the further
`model.*` keys. It returns a `Backbone`, or a list of modules or (name, module) pairs, the
classifier last.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pipeline_local.errors import UserError
from pipeline_local.layout import ImageShape, Layout
from pipeline_local.models import layouts
from pipeline_local.models.backbone import Backbone, Block, reset_method, reset_parameters, through
from pipeline_local.registry import reason


def builder(name: str, function: Callable[..., Any]) -> Callable[..., Backbone]:
    """The user's function, with its own signature, giving a `Backbone`.

    Args:
        name: `python:package.module:function`, for messages.
        function: what stands there.
    """

    @functools.wraps(function)
    def build(*, num_classes: int, image_shape: ImageShape, **args: Any) -> Backbone:  # noqa: ANN401
        try:
            made = function(num_classes=num_classes, image_shape=image_shape, **args)
            return made if isinstance(made, Backbone) else _assemble(name, made, image_shape)
        except UserError:
            raise
        except Exception as error:  # the user's own code
            raise UserError(
                f"model.name: {name} cannot be built with {args} ({reason(error)}); fix it or"
                f" change model.*"
            ) from error

    return build


def _assemble(name: str, made: object, image_shape: ImageShape) -> Backbone:
    """A backbone from a list of parts; torch's own initialisation for every layer."""
    *blocks, classifier = _blocks(name, made)
    for block in (*blocks, classifier):
        _check_initialization(name, block)
        _keep_input(block.module)
    _check_unshared(name, (*blocks, classifier))
    layout = _layout(name, (*blocks, classifier), image_shape)
    return Backbone(tuple(blocks), classifier, reset_parameters, layout)


def _blocks(name: str, made: object) -> list[Block]:
    parts = list(made) if isinstance(made, Sequence) else []
    pairs = [
        part if isinstance(part, tuple) else (f"block{i}", part) for i, part in enumerate(parts)
    ]
    if len(pairs) < 2 or not all(_is_pair(pair) for pair in pairs):
        raise UserError(
            f"model.name: {name} must return a Backbone, or a list of at least two nn.Modules or"
            f" (name, nn.Module) pairs, the classifier last; got {_describe(made)}"
        )
    return [Block(label, module, f"{label}.") for label, module in pairs]


def _is_pair(pair: tuple[object, ...]) -> bool:
    return len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], nn.Module)


def _describe(made: object) -> str:
    kinds = [type(part).__name__ for part in made] if isinstance(made, (list, tuple)) else []
    return f"{type(made).__name__}{f' of {kinds}' if kinds else ''}"


def _check_initialization(name: str, block: Block) -> None:
    """Every layer that owns tensors must know how to fill them."""
    for path, layer in block.module.named_modules():
        where = f"in {name}, layer {'.'.join(filter(None, [block.name, path]))}"
        where += f" ({type(layer).__name__})"
        owns = next(chain(layer.parameters(False), layer.buffers(False)), None) is not None
        if owns and reset_method(layer) is None:
            raise UserError(
                f"model.name: {where} holds tensors but has no reset_parameters();"
                f" add one, or return a Backbone with its own `initialize`"
            )
        if plain := [key for key, value in vars(layer).items() if isinstance(value, Tensor)]:
            raise UserError(
                f"model.name: {where} keeps {', '.join(plain)} as a plain attribute, which never"
                f" gets memory; use register_buffer and fill it in reset_parameters()"
            )


def _check_unshared(name: str, blocks: Sequence[Block]) -> None:
    """Blocks train apart from each other, so no tensor can be in two places."""
    owners: dict[int, str] = {}
    for block in blocks:
        for path, parameter in block.module.named_parameters(block.name, remove_duplicate=False):
            first = owners.setdefault(id(parameter), path)
            if first != path:
                raise UserError(
                    f"model.name: in {name}, {first} and {path} share a parameter; blocks are"
                    f" given memory one by one, so give each its own"
                )


def _keep_input(module: nn.Module) -> None:
    """No in-place operation before the first layer that makes a tensor of its own.

    Flatten, or dropout in evaluation mode, hand on the very memory that they got.
    """
    for layer in _leaves(module):
        if next(layer.parameters(), None) is not None:
            return
        if getattr(layer, "inplace", False):
            layer.inplace = False  # type: ignore[assignment]


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in module.modules() if next(layer.children(), None) is None)


def _layout(name: str, blocks: Sequence[Block], image_shape: ImageShape) -> Layout:
    """Found on the meta device, on copies: lazy layers would change what they run in."""
    modules = [copy.deepcopy(block.module).eval() for block in blocks]
    x = given = torch.empty(2, *image_shape, device="meta")
    for block in blocks:
        x = through(block, x)  # names the block that gives no batch of numbers
    try:
        return layouts.find(modules, given)
    except layouts.LayoutError as error:
        raise UserError(
            f"model.name: the blocks of {name} must all give [B, C], all [B, T, C], all [B, C, T],"
            f" all [B, C, H, W] or all [B, H, W, C], but {error}; flatten in the classifier, or"
            f" return a Backbone with its own layout"
        ) from None
