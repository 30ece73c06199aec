"""A user's own backbone: `model.name: python:package.module:function`.

The function is called with `num_classes`, `image_shape` and the further `model.*` keys. It returns
a `Backbone`, or a list of modules or (name, module) pairs, the classifier last. It is called on the
meta device first, which costs no memory. Where that does not do, as the function asks for values or
sets them, it is called on the CPU, too, with all random numbers a function of the seed.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from pipeline_local import seeds
from pipeline_local.errors import UserError
from pipeline_local.layout import ImageShape, Layout
from pipeline_local.models import layouts
from pipeline_local.models.backbone import (
    Backbone,
    Block,
    refill,
    reset_method,
    reset_parameters,
    tensors,
    through,
)
from pipeline_local.side_effects.building import (
    Record,
    Values,
    fill_rest,
    give_shapes,
    loses_values,
    own_tensors,
    plain_tensors,
)
from pipeline_local.side_effects.writes import keeps_input, on_a_copy
from pipeline_local.user_input.user_code import reason

CPU, META = torch.device("cpu"), torch.device("meta")


def builder(
    name: str, function: Callable[..., Any], seed: int = 0, dtype: torch.dtype = torch.float32
) -> Callable[..., Backbone]:
    """The user's function, with its own signature, giving a `Backbone`.

    Args:
        name: `python:package.module:function`, for messages.
        function: what stands there.
        seed: of all random numbers that it draws.
        dtype: of the input.
    """

    @functools.wraps(function)
    def build(*, num_classes: int, image_shape: ImageShape, **args: Any) -> Backbone:  # noqa: ANN401
        given = {"num_classes": num_classes, "image_shape": image_shape, **args}
        example = torch.empty(2, *image_shape, device=META, dtype=dtype)
        called = _Called(name, functools.partial(function, **given), seed, example)
        try:
            return called.backbone()
        except UserError:
            raise
        except Exception as error:  # the user's own code
            raise UserError(
                f"model.name: {name} cannot be built with {args} ({reason(error)}); fix it or"
                f" change model.*"
            ) from error

    return build


@dataclass(frozen=True)
class _Called:
    """One call of a user's function.

    Attributes:
        name: for messages.
        function: with all its arguments.
        seed: of all random numbers that it draws.
        example: two inputs, on the meta device.
    """

    name: str
    function: Callable[[], Any]
    seed: int
    example: Tensor

    def backbone(self) -> Backbone:
        """What it builds, on the meta device; values that are lost there come from the CPU."""
        try:
            made, blocks, record = self.made(META)
        except UserError:
            raise
        except Exception:  # it asks for values; or it is wrong, and fails on the CPU, too
            made, blocks, record = self.made(CPU)
        rule = made.initialize if isinstance(made, Backbone) else reset_parameters
        if rule is reset_parameters:
            for block in blocks:
                _check_filled(self.name, block, record)
            if any(loses_values(block.module, rule, record) for block in blocks):
                blocks = [replace(b, values=Values(self.values, b.name)) for b in blocks]
        for block in blocks:
            refill(block.module, lambda tensor: tensor.to(META))
        if not isinstance(made, Backbone):
            return _assemble(self.name, blocks, self.example)
        _protect(blocks, self.example)
        return replace(made, blocks=tuple(blocks[:-1]), classifier=blocks[-1])

    def made(self, device: torch.device) -> tuple[Any, list[Block], Record]:
        """What the function gives on a device, its blocks, and who has filled them.

        Lazy layers have got their shapes.
        """
        record = Record()
        with torch.random.fork_rng(devices=[]), torch.device(device), record:
            seeds.reseed(CPU, self.seed, "model")
            made = self.function()
            if isinstance(made, Backbone):
                blocks = [*made.blocks, made.classifier]
            else:
                blocks = _blocks(self.name, made)
            modules = [block.module for block in blocks]
            give_shapes(modules, torch.zeros_like(self.example, device=device))
            if device == CPU:
                fill_rest(modules, reset_method, record)
        return made, blocks, record

    @functools.cache  # noqa: B019 (as long as the backbone)
    def values(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The tensors of all blocks as the function has filled them."""
        with unset_fake_temporarily():
            _, blocks, _ = self.made(CPU)
        return {block.name: dict(tensors(block.module)) for block in blocks}


def _protect(blocks: Sequence[Block], x: Tensor) -> None:
    """Blocks that would modify their input get a copy of it."""
    for block in blocks:
        if not keeps_input(block.module, x):
            on_a_copy(block.module)
        x = through(block, x)  # names the block that gives no batch of numbers


def _assemble(name: str, blocks: Sequence[Block], example: Tensor) -> Backbone:
    """A backbone from a list of parts; torch's own initialisation for every layer."""
    for block in blocks:
        _check_attributes(name, block)
        _keep_input(block.module)
    _check_unshared(name, blocks)
    _protect(blocks, example)
    layout = _layout(name, blocks, example)
    return Backbone(tuple(blocks[:-1]), blocks[-1], reset_parameters, layout)


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


def _check_filled(name: str, block: Block, record: Record) -> None:
    """Every layer that owns tensors must have filled them, or know how to."""
    for path, layer in block.module.named_modules():
        empty = any(record.by(tensor) == "nobody" for _, tensor in own_tensors(layer))
        above = [m for p, m in block.module.named_modules() if f"{path}.".startswith(p and f"{p}.")]
        if empty and not any(map(reset_method, above)):
            raise UserError(
                f"model.name: {_where(name, block, path, layer)} holds tensors that nothing fills,"
                f" and has no reset_parameters(); add one"
            )


def _check_attributes(name: str, block: Block) -> None:
    for path, layer in block.module.named_modules():
        if plain := plain_tensors(layer):
            raise UserError(
                f"model.name: {_where(name, block, path, layer)} keeps {', '.join(plain)} as a"
                f" plain attribute, which never gets memory; use register_buffer"
            )


def _where(name: str, block: Block, path: str, layer: nn.Module) -> str:
    where = ".".join(filter(None, [block.name, path]))
    return f"in {name}, layer {where} ({type(layer).__name__})"


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


def _layout(name: str, blocks: Sequence[Block], given: Tensor) -> Layout:
    """Found on the meta device, on copies."""
    modules = [copy.deepcopy(block.module).eval() for block in blocks]
    try:
        return layouts.find(modules, given)
    except layouts.LayoutError as error:
        raise UserError(
            f"model.name: the blocks of {name} must all give [B, C], all [B, T, C], all [B, C, T],"
            f" all [B, C, H, W] or all [B, H, W, C], but {error}; flatten in the classifier, or"
            f" return a Backbone with its own layout"
        ) from None
