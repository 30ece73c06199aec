"""A backbone is a flat list of named blocks and a classifier, on paper.

Everything is built on the meta device. A rank gives memory and weights to its own blocks only, and
a block's weights are a function of (seed, block): they do not depend on who else is built where.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

Layout = Literal["NCHW", "NHWC", "NTC", "NC"]
Initialize = Callable[[nn.Module], object]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Block:
    """The smallest unit, never split.

    Attributes:
        name: unique in its backbone.
        module: on the meta device.
        prefix: put before its tensors' names, it gives their names in the model's state dict.
    """

    name: str
    module: nn.Module
    prefix: str = ""


@dataclass(frozen=True)
class Backbone:
    """A network cut as finely as it can be.

    Attributes:
        blocks: the body, in order; run one after the other, then the classifier, they are the
            model.
        classifier: the network's own head.
        initialize: the architecture's own rule. It fills every parameter and buffer of a module,
            drawing from the global generator.
        layout: of the blocks' outputs.
    """

    blocks: tuple[Block, ...]
    classifier: Block
    initialize: Initialize
    layout: Layout


def materialize(
    module: M,
    initialize: Callable[[M], object],
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> M:
    """Give a meta module memory and fresh weights; the original stays on the meta device.

    The weights are drawn on the CPU in float32, so they are the same on any device.

    Raises:
        ValueError: `initialize` has left a tensor as it was; the message names it.
    """
    module = copy.deepcopy(module).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for tensor in _floats(module).values():
            tensor.fill_(torch.nan)  # memory that nobody fills must not pass for weights
        torch.manual_seed(seed)
        initialize(module)
    for name, tensor in _floats(module).items():
        if tensor.isnan().any():
            raise ValueError(f"the model's initialisation does not fill {name}")
    return module.to(device=device, dtype=dtype)


def _floats(module: nn.Module) -> dict[str, Tensor]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor for name, tensor in named if tensor.is_floating_point()}


def shapes(backbone: Backbone, input_shape: Sequence[int]) -> list[torch.Size]:
    """The output shape of every block, for an input of `input_shape` (batch axis included)."""
    x = torch.empty(*input_shape, device="meta")
    result = []
    with torch.no_grad():
        for block in backbone.blocks:
            x = copy.deepcopy(block.module).eval()(x)
            result.append(x.shape)
    return result


def reset_parameters(module: nn.Module) -> list[str]:
    """Torch's own initialisation of every layer, inner layers first.

    Returns:
        The layers that own tensors and have no initialisation of their own.
    """
    left = []
    for name, layer in reversed(list(module.named_modules())):
        reset = getattr(layer, "reset_parameters", None)
        reset = reset or getattr(layer, "_reset_parameters", None)
        if reset is not None:
            reset()
        elif [*layer.parameters(False), *layer.buffers(False)]:
            left.append(name or type(layer).__name__)
    return left
