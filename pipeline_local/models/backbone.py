"""A backbone is a flat list of named blocks and a classifier, on the meta device.

Everything is built on the meta device. A rank gives memory and weights to its own blocks only, and
a block's weights are a function of (seed, block): they do not depend on who else is built where.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from pipeline_local import seeds
from pipeline_local.errors import UserError
from pipeline_local.layout import Layout
from pipeline_local.side_effects.writes import Writes

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Block:
    """The smallest unit, never split.

    Attributes:
        name: unique in its backbone.
        module: on the meta device. It never modifies its input, which may be a leaf that requires
            a gradient or a tensor on its way to another rank; one that would gets a copy.
        prefix: put before its tensors' names, it gives their names in the model's state dict.
        values: of its parameters and buffers, by their names in `module`, where the user made the
            weights; None: the backbone's own rule draws them.
    """

    name: str
    module: nn.Module
    prefix: str = ""
    values: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)


Adopt = Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], list[str]]]
"""A published state dict -> the same under the model's names, and what was made of it."""


@dataclass(frozen=True)
class Language:
    """What is known of a language model beside its blocks.

    Attributes:
        vocabulary: the number of tokens that it gives logits for, at least that of the data.
        args: the `model.*` keys that build it again, wherever they came from.
        files: what belongs beside its weights in a folder, by name.
        adopt: reads state dicts as others publish them.
        first: gives the same of the model that has only so many of its layers, the first ones.
        tied: names of the matrix of the embedding and of that of the unembedding, where these are
            one.
    """

    vocabulary: int
    args: Mapping[str, Any]
    files: Mapping[str, str]
    adopt: Adopt
    first: Callable[[int], "Language"]
    tied: tuple[str, str] | None = None


@dataclass(frozen=True)
class Backbone:
    """A network cut as finely as it can be.

    Attributes:
        blocks: the body, in order; run one after the other, then the classifier, they are the
            model.
        classifier: the network's own head.
        initialize: the architecture's own rule. It fills every parameter and buffer of an
            uninitialised block, drawing from torch's global generator.
        layout: of the blocks' outputs.
        language: what it is beside that, if it is a language model.
        adopt: reads state dicts as others publish them, whatever stands before their names; None:
            they have the model's own names.

    Raises:
        ValueError: no block, or two of one name.
    """

    blocks: tuple[Block, ...]
    classifier: Block
    initialize: Callable[[nn.Module], None]
    layout: Layout
    language: Language | None = None
    adopt: Adopt | None = None

    def __post_init__(self) -> None:
        names = [block.name for block in (*self.blocks, self.classifier)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several blocks are named {', '.join(twice)}")
        if not self.blocks:
            raise ValueError("no block in front of the classifier")

    def rules(self, start: int) -> list[Callable[[nn.Module], None]]:
        """Return what draws copies afresh: for each block from `start` on, then the classifier.

        A copy takes over what `initialize` leaves alone of a block that carries values: a mask, or
        a scale that no layer knows how to draw.
        """
        return [_rule(block, self.initialize) for block in (*self.blocks[start:], self.classifier)]


def _rule(block: Block, initialize: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
    """A function, which copies of a head share with all that it refers to."""
    values = block.values
    if values is None:
        return initialize

    def draw(copied: nn.Module) -> None:
        # first, as a layer may go on from what it has: the vectors of spectral norm
        for name, tensor in tensors(copied):
            tensor.copy_(values[name])
        initialize(copied)

    return draw


def unfilled(module: nn.Module, initialize: Callable[[nn.Module], None]) -> list[str]:
    """The names of what `initialize` would leave unfilled of a module on the meta device."""
    copied = copy.deepcopy(module)
    before = {name: tensor.untyped_storage() for name, tensor in tensors(copied)}
    with Writes() as writes:
        initialize(copied)
    return [
        name
        for name, tensor in tensors(copied)
        if tensor.untyped_storage()._cdata == before[name]._cdata and not writes.to(tensor)
    ]


def materialize(
    module: M,
    initialize: Callable[[M], None],
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> M:
    """Give a meta module memory and fresh weights; the original stays on the meta device.

    The weights are drawn on the CPU in float32, so they are the same on any device. The global
    generators are left as they were.

    Raises:
        UserError: `initialize` leaves tensors unfilled.
    """
    module = copy.deepcopy(module).to_empty(device="cpu")
    with seeds.generators_kept(), torch.no_grad(), torch.device("cpu"):
        _spoil(module)
        seeds.seed_generators(seed)
        initialize(module)
        left = list(_spoiled(module))
    if left:
        raise UserError(
            f"model.name: the initialisation of {type(module).__name__} leaves"
            f" {', '.join(left)} unfilled; let it fill every parameter and buffer"
        )
    refill(module, lambda tensor: tensor.to(device, precision(tensor, dtype)))
    return module


def made(
    block: Block,
    initialize: Callable[[nn.Module], None],
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    """Give a block memory, with a copy of the values that it carries, or with fresh weights.

    Raises:
        UserError: it carries none, and `initialize` leaves tensors unfilled.
    """
    if block.values is None:
        return materialize(block.module, initialize, seed, device, dtype)
    module = copy.deepcopy(block.module)
    values, names = block.values, {tensor: name for name, tensor in tensors(module)}

    def value(tensor: Tensor) -> Tensor:
        return values[names[tensor]].detach().to(device, precision(tensor, dtype), copy=True)

    with torch.no_grad():
        refill(module, value)
    return module


def fake_copy(
    module: M, device: torch.device, dtype: torch.dtype, channels_last: bool = False
) -> M:
    """A copy of a meta module in unfilled memory: under a FakeTensorMode it takes none.

    `Module.to_empty` cannot make fake parameters, and `Module.to` cannot lay them out as
    `channels_last` does.
    """
    with unset_fake_temporarily():
        copied = copy.deepcopy(module)

    def empty(tensor: Tensor) -> Tensor:
        made = torch.empty(tensor.shape, dtype=precision(tensor, dtype), device=device)
        turned = channels_last and made.dim() == 4
        return made.to(memory_format=torch.channels_last) if turned else made

    refill(copied, empty)
    return copied


def refill(module: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Put another tensor in the place of each; tied ones stay tied, frozen ones frozen."""
    made: dict[Tensor, Tensor] = {}
    for layer in module.modules():
        for owned in (layer._parameters, layer._buffers):
            for name, old in list(owned.items()):
                if old is None:
                    continue
                if old not in made:
                    new = make(old)
                    made[old] = nn.Parameter(new, old.requires_grad) if _is_parameter(old) else new
                setattr(layer, name, made[old])  # recurrent layers list their tensors, too


def precision(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a tensor in a run whose floating point is `dtype`: others keep their own."""
    return dtype if tensor.is_floating_point() else tensor.dtype


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def shapes(
    backbone: Backbone, input_shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> list[torch.Size]:
    """The output shape of every block, for an input of `input_shape` (batch axis included).

    In evaluation mode: batch normalisation refuses to train on one value per channel.

    Raises:
        ValueError: a block gives no batch of numbers.
    """
    x = torch.empty(*input_shape, device="meta", dtype=dtype)
    result = []
    for block in backbone.blocks:
        x = through(block, x)
        result.append(x.shape)
    return result


def check_classifier(
    backbone: Backbone, input_shape: Sequence[int], output_shape: Sequence[int]
) -> None:
    """The classifier must give what the task learns: [B, *output_shape].

    Raises:
        ValueError: it does not.
    """
    logits = through(backbone.classifier, torch.empty(*input_shape, device="meta"))
    if logits.shape != (input_shape[0], *output_shape):
        raise ValueError(
            f"the classifier gives {list(logits.shape)} for a batch of {input_shape[0]}, and the"
            f" task learns {list(output_shape)} per sample"
        )


@torch.no_grad()
def through(block: Block, x: Tensor) -> Tensor:
    """The output of a block on the meta device, in evaluation mode.

    Raises:
        ValueError: it gives no batch of numbers, or its shape depends on values.
    """
    try:
        y: object = copy.deepcopy(block.module).eval()(x)
    except NotImplementedError as error:
        operation = str(error).partition(": ")[0]
        raise ValueError(
            f"block {block.name!r} uses {operation}, whose shape torch cannot tell without values;"
            f" use another operation"
        ) from error
    if not isinstance(y, Tensor) or not y.is_floating_point():
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"block {block.name!r} gives {kind} instead of a tensor of numbers")
    if y.dim() < 2 or len(y) != len(x):
        raise ValueError(
            f"block {block.name!r} gives {list(y.shape)} for a batch of {len(x)}; the first axis"
            f" must stay"
        )
    return y


def reset_parameters(module: nn.Module) -> None:
    """Torch's own initialisation of every layer, inner layers first.

    Layers without one are passed over.
    """
    for layer in reversed(list(module.modules())):
        if reset := reset_method(layer):
            reset()


def reset_method(layer: nn.Module) -> Callable[[], None] | None:
    """How this layer initialises its own tensors; torch spells it in two ways."""
    reset: Callable[[], None] | None = getattr(layer, "reset_parameters", None)
    return reset or getattr(layer, "_reset_parameters", None)


def tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers with their names."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _mark(tensor: Tensor) -> float | None:
    """A value that no initialisation gives; None where a type has none to spare."""
    if tensor.is_floating_point() or tensor.is_complex():
        return float("nan")
    return None if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).min


def _spoil(module: nn.Module) -> None:
    """Fresh memory often holds plausible zeros: make what stays unfilled plain to see."""
    for _, tensor in tensors(module):
        if (mark := _mark(tensor)) is not None:
            tensor.fill_(mark)


def _spoiled(module: nn.Module) -> Iterator[str]:
    return (name for name, tensor in tensors(module) if _is_spoiled(tensor))


def _is_spoiled(tensor: Tensor) -> bool:
    mark = _mark(tensor)
    if mark is None:
        return False
    spoiled = tensor.isnan() if math.isnan(mark) else torch.eq(tensor, mark)
    return bool(spoiled.any())
