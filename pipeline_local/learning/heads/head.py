"""The seam for auxiliary heads: what turns a module's activations into outputs for its local loss.

Built on the meta device, like the backbone's blocks, so that a rank pays only for its own. Images,
token sequences and series meet the same heads: tokens are layer-normalised and laid out on their
grid, series in one row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline_local.config import HeadConfig
from pipeline_local.errors import FitsNowhereError
from pipeline_local.layout import Layout
from pipeline_local.learning.heads import own
from pipeline_local.learning.heads.layers import output_shape, reset
from pipeline_local.user_input.registry import Registry
from pipeline_local.user_input.user_code import reason

HEADS: Registry[Callable[..., nn.Module]] = Registry("head.name", kind="head", given=("site",))
"""The registry of auxiliary heads, by name (`head.name`).

An entry takes a `Site` and its own options, and returns an `nn.Module` on the meta device. Its
attribute `copies`, if there is one, is a function that returns how many later blocks a head copies,
from the module's index, the number of modules, the number of later blocks, and the options. Its
attribute `learns`, if false, states that its heads have no parameters. Its attribute `refresh`, if
there is one, returns after how many steps copies of parameters are published for them, from the
options, and its attribute `follows` says which (`HasCopy.follows`). Its attribute `title` puts the
options into words for display.
"""


@dataclass(frozen=True)
class Site:
    """Where a head is attached.

    Attributes:
        layout: meaning of the axes of the activations.
        shape: shape of one sample's activations, without the batch axis.
        later: the backbone's blocks behind this module, on the meta device.
        later_shapes: for each of them, the shape of one sample's input; then of the last's output.
        copies: how many of the later blocks a head copies, if it copies any (`copies`).
        rules: functions that draw fresh weights: one for each later block, then one for the
            classifier.
        output_shape: shape of one sample's outputs: (classes,), (classes, H, W) for dense tasks, or
            (T, V) for tokens.
        classifier: the backbone's own, on the meta device.
    """

    layout: Layout
    shape: tuple[int, ...]
    later: Sequence[nn.Module]
    later_shapes: Sequence[tuple[int, ...]]
    copies: int
    rules: Sequence[Callable[[nn.Module], object]]
    output_shape: tuple[int, ...]
    classifier: nn.Module | None = None

    @property
    def num_outputs(self) -> int:
        """The number of outputs of a head that returns one vector per sample.

        Raises:
            FitsNowhereError: the task needs outputs at each position.
        """
        if len(self.output_shape) > 1:
            names = "linear, auglocal, ema" + (" or readout" if len(self.output_shape) == 2 else "")
            raise FitsNowhereError(
                f"it gives a vector per sample, and the task wants outputs {self.output_shape}",
                f"choose a head with outputs at each position: {names}",
            )
        return self.output_shape[0]


class Head(nn.Module):
    """A head made of layers in order: activations [B, ...] -> outputs [B, ...].

    Args:
        layers: the layers, in order.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """Map activations [B, ...] to outputs [B, ...]."""
        outputs: Tensor = self.layers(x)
        return outputs

    def initialize(self) -> None:
        """Draw all weights afresh from the global random generator."""
        reset(self.layers)


def copies(config: HeadConfig, index: int, count: int, later: int) -> int:
    """Return how many of the `later` blocks behind module `index` (from 0) of `count` its head
    copies; 0 for heads that copy none."""
    rule = getattr(HEADS.find(config.name), "copies", None)
    return int(rule(index, count, later, **options(config))) if rule else 0


def refresh(config: HeadConfig) -> int:
    """Return the steps from one publication of parameters for the heads to the next; 0: none."""
    rule = getattr(HEADS.find(config.name), "refresh", None)
    return int(rule(**options(config))) if rule else 0


def follows(config: HeadConfig) -> str | None:
    """Return what parameters are published for the heads (`HasCopy.follows`)."""
    return getattr(HEADS.find(config.name), "follows", None)


def options(config: HeadConfig) -> dict[str, Any]:
    """Return the options of the configured head: the general keys that it takes, and its own."""
    return _options(config, HEADS.find(config.name))


@lru_cache(maxsize=64)
def _options(config: HeadConfig, _entry: Callable[..., nn.Module]) -> dict[str, Any]:
    """Also by the entry: a notebook may have registered another one under the same name."""
    own = {
        key: value for key, value in vars(config).items() if key not in ("name", "args", "fraction")
    }
    return HEADS.options(config.name, config.args, own)


def title(config: HeadConfig) -> str:
    """The name of the configured heads, with what the entry adds to it (`title`)."""
    rule = getattr(HEADS.find(config.name), "title", None)
    return f"{config.name}, {rule(**options(config))}" if rule else config.name


def build(config: HeadConfig, site: Site) -> nn.Module:
    """Build the auxiliary head of one module on the meta device, uninitialised.

    Raises:
        ValueError: the head does not fit these activations or outputs.
        UserError: a user's own entry fails, or returns no module.
    """
    make = partial(HEADS.make, config.name, nn.Module, {"site": site}, options(config))
    if HEADS.comes_with_us(config.name):
        with torch.device("meta"):
            head: nn.Module = make()
        return head
    head = own.build(make, site.shape, initialize)
    _check_outputs(head, site)
    return own.protected(head, site.shape)


def _check_outputs(head: nn.Module, site: Site) -> None:
    try:
        got = output_shape(head, site.shape)
    except Exception as error:  # the user's own code
        raise ValueError(f"{reason(error)}") from error
    if got != site.output_shape:
        raise ValueError(f"it gives {list(got)} per sample instead of {list(site.output_shape)}")


def initialize(head: nn.Module) -> None:
    """Draw a head's weights afresh, by its method `initialize` if it has one, else by torch's."""
    method = own.rule(head)
    if method:
        method()
    else:
        reset(head)
