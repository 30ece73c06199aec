"""The seam for auxiliary heads: what turns a module's activations into outputs for its local loss.

Built on the meta device, like the backbone's blocks, so that a rank pays only for its own. Images,
token sequences and series meet the same heads: tokens are layer-normalised and laid out on their
grid, series in one row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pipeline_local.config import HeadConfig
from pipeline_local.layout import Layout
from pipeline_local.learning.heads.layers import output_shape, reset
from pipeline_local.registry import Registry, reason

HEADS: Registry[Callable[..., nn.Module]] = Registry("head.name", kind="head", given=("site",))
"""All families of auxiliary heads, by name (`head.name`).

An entry gets a `Site` and its own options, and gives an `nn.Module` on the meta device. Where it
has an attribute `copies`, that says how many later blocks the head of a module copies, from the
module's index, the number of modules, the number of later blocks, and the options. An attribute
`learns` that is false says that its heads have no parameters. An attribute `title` puts the options
into words for people.
"""


@dataclass(frozen=True)
class Site:
    """Where a head is attached.

    Attributes:
        layout: meaning of the axes of the activations.
        shape: one sample's activations, without the batch axis.
        later: the backbone's blocks behind this module, on the meta device.
        later_shapes: one sample's input shape of each of them.
        copies: how many of the later blocks a head copies, if it copies any (`copies`).
        initialize: the backbone's own initialisation, for copies of its blocks.
        output_shape: one sample's outputs: (classes,), or (classes, H, W) at each position.
    """

    layout: Layout
    shape: tuple[int, ...]
    later: Sequence[nn.Module]
    later_shapes: Sequence[tuple[int, ...]]
    copies: int
    initialize: Callable[[nn.Module], object]
    output_shape: tuple[int, ...]

    @property
    def num_outputs(self) -> int:
        """Outputs of a head that gives one vector per sample.

        Raises:
            ValueError: the task wants outputs at each position.
        """
        if len(self.output_shape) > 1:
            raise ValueError(
                f"it gives a vector per sample, and the task wants outputs {self.output_shape}"
            )
        return self.output_shape[0]


class Head(nn.Module):
    """Activations [B, ...] -> outputs [B, ...]."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of a batch of activations."""
        outputs: Tensor = self.layers(x)
        return outputs

    def initialize(self) -> None:
        """Draw all weights afresh, from the global generator."""
        reset(self.layers)


def copies(config: HeadConfig, index: int, count: int, later: int) -> int:
    """How many of the `later` blocks behind module `index` (from 0) of `count` its head copies; 0
    for heads that copy none."""
    rule = getattr(HEADS.find(config.name), "copies", None)
    return int(rule(index, count, later, **options(config))) if rule else 0


@lru_cache(maxsize=64)
def options(config: HeadConfig) -> dict[str, Any]:
    """The options of the configured head: the section's own keys that it names, and its further
    ones."""
    own = {"depth": config.depth, "taper": config.taper}
    return HEADS.options(config.name, config.args, own)


def title(config: HeadConfig) -> str:
    """The name of the configured heads, with what the entry adds to it (`title`)."""
    rule = getattr(HEADS.find(config.name), "title", None)
    return f"{config.name}, {rule(**options(config))}" if rule else config.name


def build(config: HeadConfig, site: Site) -> nn.Module:
    """The auxiliary head of one module, on the meta device, uninitialised.

    Raises:
        ValueError: it does not fit these activations or outputs.
        UserError: a user's own entry fails, or gives no module.
    """
    with torch.device("meta"):
        head: nn.Module = HEADS.make(config.name, nn.Module, {"site": site}, options(config))
    if config.name not in HEADS.names():
        _check_outputs(head, site)
    return head


def _check_outputs(head: nn.Module, site: Site) -> None:
    try:
        got = output_shape(head, site.shape)
    except Exception as error:  # the user's own code
        raise ValueError(f"{reason(error)}") from error
    if got != site.output_shape:
        raise ValueError(f"it gives {list(got)} per sample instead of {list(site.output_shape)}")


def initialize(head: nn.Module) -> None:
    """Draw a head's weights afresh, by its own rule (`initialize`) or torch's."""
    own = getattr(head, "initialize", None)
    if own:
        own()
    else:
        reset(head)
