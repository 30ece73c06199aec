"""AugLocal: a head made of fresh copies of later blocks (Ma et al., ICLR 2024)."""

import copy
from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import Field
from torch import nn

from pipeline_local.errors import counted
from pipeline_local.layout import Layout
from pipeline_local.learning.heads.head import HEADS, Head, Site
from pipeline_local.learning.heads.layers import (
    Pool,
    ToChannelsLast,
    ToMap,
    linear_head,
    output_shape,
    reset,
)


class AugLocalHead(Head):
    """A head of fresh copies of later blocks and a linear classifier (Ma et al., 2024).

    Args:
        layers: copies, adapters and classifier, in order.
        rules: draw the copied blocks afresh, by their names among the layers.
    """

    def __init__(
        self, layers: nn.Sequential, rules: Mapping[str, Callable[[nn.Module], object]]
    ) -> None:
        super().__init__(layers)
        self.rules = rules

    def initialize(self) -> None:
        """Draw all weights afresh: copies by their rules, other layers by torch's."""
        for name, layer in self.layers.named_children():
            self.rules.get(name, reset)(layer)


class AugLocal:
    """The registry entry: builds heads that copy as many later blocks as `copies` returns."""

    def __call__(
        self,
        site: Site,
        *,
        depth: Annotated[int, Field(ge=1)] = 2,
        taper: bool = True,
        pool: Annotated[int, Field(ge=1)] = 1,
    ) -> AugLocalHead:
        """Copy later blocks at even distances, up to the last; add adapters where shapes differ.

        Args:
            site: where the head is attached.
            depth: number of copied blocks in the first module's head.
            taper: whether later modules copy linearly fewer blocks; else all copy as many, as long
                as there are enough.
            pool: side of the squares of positions whose means the copies see; with 2, a copy costs
                about a quarter.

        Raises:
            ValueError: there are no positions to pool.
        """
        chosen = [(i + 1) * len(site.later) // site.copies - 1 for i in range(site.copies)]
        layers = nn.Sequential()
        shape = site.shape
        if pool > 1:
            layers.add_module("pool", Pool(site.layout, shape, pool))
            shape = _pooled(site.layout, shape, pool)
        for i, index in enumerate(chosen):
            wanted = _pooled(site.layout, site.later_shapes[index], pool)
            if shape != wanted:
                layers.add_module(f"adapter{i}", _adapter(site.layout, shape, wanted))
            block = copy.deepcopy(site.later[index])
            layers.add_module(f"copy{i}", block)
            known = pool == 1  # a dry run of a block takes milliseconds
            shape = site.later_shapes[index + 1] if known else output_shape(block, wanted)
        layers.add_module("classifier", linear_head(site.layout, shape, site.output_shape))
        rules = {f"copy{i}": site.rules[index] for i, index in enumerate(chosen)}
        return AugLocalHead(layers, rules)

    @staticmethod
    def copies(
        index: int, count: int, later: int, *, depth: int = 2, taper: bool = True, pool: int = 1
    ) -> int:
        """Return how many of the `later` blocks behind module `index` (of `count`) are copied.

        The number falls linearly towards the output (Ma et al., 2024), or is the same for all
        modules (docs/results/reconciliation.md).
        """
        wanted = -(-depth * (count - 1 - index) // (count - 1)) if taper else depth  # rounded up
        return min(max(1, wanted), later)

    @staticmethod
    def title(*, depth: int, taper: bool, pool: int = 1) -> str:
        """How deep the first module's head is, or each, for people."""
        pooled = f" on maps pooled {pool} x {pool}" if pool > 1 else ""
        return f"{counted(depth, 'block')}{'' if taper else ' each'}{pooled}"


HEADS.add("auglocal", AugLocal())


def _pooled(layout: Layout, shape: tuple[int, ...], side: int) -> tuple[int, ...]:
    return shape if side == 1 else output_shape(Pool(layout, shape, side), shape)


def _adapter(layout: Layout, shape: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Module:
    """Pool and project activations to the shape that a later block expects."""
    if layout == "NCHW":
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(wanted[1:]),
            nn.Conv2d(shape[0], wanted[0], 1, bias=False),
            nn.BatchNorm2d(wanted[0]),
            nn.ReLU(),
        )
    if layout == "NCT":
        return nn.Sequential(
            nn.AdaptiveAvgPool1d(wanted[1]),
            nn.Conv1d(shape[0], wanted[0], 1, bias=False),
            nn.BatchNorm1d(wanted[0]),
            nn.ReLU(),
        )
    if layout == "NHWC":
        to_map = ToMap("NHWC", shape)
        pool = nn.AdaptiveAvgPool2d(wanted[:-1])
        return nn.Sequential(to_map, pool, ToChannelsLast(), nn.Linear(shape[-1], wanted[-1]))
    if shape[:-1] != wanted[:-1]:
        raise ValueError(f"no adapter from {layout} activations {shape} to {wanted}")
    return nn.Linear(shape[-1], wanted[-1])
