"""Balancing: finds modules or stages whose most expensive part is as cheap as possible, and of
which each fits its device's memory.

The cost of a part is known beforehand (`costs`), so the best cut is found at once; for stages whose
network link has been measured, the longer of computing and receiving counts. The memory of a part
needs a dry run: the parts of the best cut are tried, those that do not fit are ruled out, and the
search starts again. The first cut that fits is the cheapest of all that fit.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from torch import nn

from pipeline_local.blueprint.blueprint import Blueprint, head_key
from pipeline_local.errors import UserError, counted
from pipeline_local.learning.heads import copies
from pipeline_local.memory.dry_run import kept_bytes, stage_bytes
from pipeline_local.placement import partition
from pipeline_local.placement.costs import Costs, possible_heads, possible_terms

GIBIBYTE = 2**30
"""Bytes in a GiB."""

FOR_TENSORS = 0.9
"""The fraction of a device's memory for tensors; the rest is for context, kernels, free blocks."""

NumberedRange = tuple[int, range]
"""A part's number, from 0, and the items that it holds."""


def best_modules(uncut: Blueprint, costs: Sequence[Costs]) -> list[range]:
    """Balances the costs of modules, as if each were alone on its device.

    Args:
        uncut: the run; its present modules are ignored.
        costs: the costs on the device of each module.

    Returns:
        The blocks of each module.

    Raises:
        UserError: no such modules fit.
    """
    count, last = len(costs), len(uncut.backbone.blocks)

    def cost(part: NumberedRange) -> float:
        index, blocks = part
        if (index == count - 1) != (blocks.stop == last):
            return math.inf  # only the last module reaches the classifier
        return costs[index].module(index, count, blocks).total

    def peak(part: NumberedRange, cut: Sequence[range]) -> int:
        index, _ = part
        drawn = replace(uncut, modules=tuple(cut))
        return stage_bytes(drawn, [index], count, costs[index].device).peak

    def alike(index: int) -> Hashable:
        if index == count - 1:
            return index == 0, None
        return index == 0, copies(uncut.config.head, index, count, last)

    grows = _grows(uncut)
    return _Search("modules", cost, peak, alike, grows, room(uncut, costs)).best(last)


def even_memory(uncut: Blueprint, count: int) -> list[range]:
    """Balances the memory of `count` modules on one device; the largest keeps as little as can be.

    Together they take what they always hold, and what the largest keeps during its acts, as each
    is done before the next one begins: its activations, and those of its head.

    Returns:
        The blocks of each module.

    Raises:
        UserError: no heads fit behind any such modules.
    """
    blocks = [block.module for block in uncut.backbone.blocks]
    first = kept_bytes(uncut, blocks, 0)  # from images, so maybe in another precision
    later = [0, *kept_bytes(uncut, blocks[1:], 1)] if len(blocks) > 1 else first
    heads = {key: _kept_bytes_of_head(uncut, head, key[0]) for key, head in possible_heads(uncut)}
    terms = {
        uncut.ends(part): _kept_bytes_of_head(uncut, term, part.stop)
        for part, term in possible_terms(uncut)
    }

    def keeps(index: int, part: range) -> float:
        kept: float = sum((later if part.start else first)[block] for block in part)
        if index == count - 1:
            return kept if part.stop == len(blocks) else math.inf
        if part.stop == len(blocks):
            return math.inf
        key = head_key(uncut.config, part.stop, len(blocks), index, count)
        if uncut.config.information.name is not None:
            kept += terms.get(uncut.ends(part), math.inf)
        return kept + heads.get(key, math.inf)

    cut = partition.cheapest(len(blocks), count, keeps)
    if any(keeps(*part) == math.inf for part in enumerate(cut)):
        raise UserError(
            f"modules.cuts=memory: no cut into {count} modules has a place for each head; choose"
            f" another head.name, or fewer modules"
        )
    return cut


def _kept_bytes_of_head(uncut: Blueprint, head: nn.Module, end: int) -> int:
    return sum(kept_bytes(uncut, [head], end))


def best_stages(
    blueprint: Blueprint, costs: Sequence[Costs], replicas: Sequence[int]
) -> list[range]:
    """Balances the costs of stages, each shared by its replicas.

    Args:
        blueprint: the run, with its modules.
        costs: the costs on the device of each stage.
        replicas: the number of replicas of each stage.

    Returns:
        The modules of each stage.

    Raises:
        UserError: no such stages fit.
    """
    modules = blueprint.modules
    received = _received_bytes(blueprint)

    def computing(part: NumberedRange) -> float:
        stage, numbers = part
        each = (costs[stage].module(k, len(modules), modules[k]) for k in numbers)
        return sum(cost.shared(replicas[stage]) for cost in each)

    def cost(part: NumberedRange) -> float:
        """The longer of computing and receiving, as a stage computes while it receives."""
        link, num_bytes = costs[part[0]].link, received[part[1].start] / replicas[part[0]]
        return max(computing(part), num_bytes / link.bytes_per_second if link else 0.0)

    def peak(part: NumberedRange, _: Sequence[range]) -> int:
        stage, numbers = part
        device, each = costs[stage].device, replicas[stage]
        return stage_bytes(blueprint, numbers, len(costs), device, each).peak

    def alike(stage: int) -> Hashable:
        return replicas[stage]

    grows, space, count = _grows(blueprint), room(blueprint, costs), len(modules)
    cut = _Search("stages", cost, peak, alike, grows, space).best(count)
    if all(on_device.link is None for on_device in costs):
        return cut
    longest = max(map(cost, enumerate(cut)))

    def within(part: NumberedRange) -> float:
        """The computing alone, so that of all cuts as good as the best the most even one wins."""
        return computing(part) if cost(part) <= longest else math.inf

    return _Search("stages", within, peak, alike, grows, space).best(count)


def _received_bytes(blueprint: Blueprint) -> list[float]:
    """Returns the bytes that each module receives from upstream in an average step."""
    wire_format, signals = blueprint.wire_format, blueprint.run_plan.compare_fraction
    width = wire_format.activations.itemsize + signals * wire_format.gradients.itemsize
    shapes = [blueprint.input_shapes[blocks.start] for blocks in blueprint.modules[1:]]
    sizes = [blueprint.config.data.batch_size * math.prod(shape) for shape in shapes]
    return [0.0, *(size * width for size in sizes)]


def _grows(blueprint: Blueprint) -> bool:
    """Whether a longer part never holds less: not so with activation checkpointing, where a part
    that begins with a more expensive block may, nor with a term that reconstructs its input."""
    config = blueprint.config
    return not config.modules.recompute and config.information.name is None


def room(blueprint: Blueprint, costs: Sequence[Costs]) -> list[float]:
    """Returns the bytes that each device has for tensors; infinite where they are not known."""
    if (limit := blueprint.config.parallel.memory) is not None:
        return [limit * GIBIBYTE] * len(costs)
    sizes = [on_device.device.memory for on_device in costs]
    return [math.inf if size is None else FOR_TENSORS * size for size in sizes]


class _Search:
    """The search for the cheapest cut that fits.

    Args:
        what: the name of the parts, for messages.
        cost: returns the cost of a part; infinite if the part is not allowed.
        peak: returns the bytes that a part of this cut takes.
        alike: returns a key; parts with equal keys take the same bytes for the same items.
        grows: whether more items upstream, with the same head, only add to what a part holds.
        room: the bytes that each part's device has.
    """

    def __init__(
        self,
        what: str,
        cost: Callable[[NumberedRange], float],
        peak: Callable[[NumberedRange, Sequence[range]], int],
        alike: Callable[[int], Hashable],
        grows: bool,
        room: Sequence[float],
    ) -> None:
        self._what = what
        self._cost = cost
        self._peak = peak
        self._alike = alike
        self._grows = grows
        self._room = room
        self._peaks: dict[tuple[Hashable, range], int] = {}
        self._too_large: list[NumberedRange] = []

    def best(self, num_items: int) -> list[range]:
        """Returns contiguous non-empty ranges of the items, one for each device."""
        while True:
            cut = partition.cheapest(num_items, len(self._room), self._allowed)
            parts = list(enumerate(cut))
            if self._too_large and any(self._allowed(*part) == math.inf for part in parts):
                raise self._nothing_fits()
            fits = [self._fits(part, cut) for part in parts]  # all are tried: each rules some out
            if all(fits):
                return cut

    def _allowed(self, number: int, items: range) -> float:
        """Returns a part's cost; infinite if the part is known to be too large."""
        starts = items if self._grows else items[:1]
        known = (self._peaks.get((self._alike(number), range(k, items.stop)), 0) for k in starts)
        return math.inf if max(known) > self._room[number] else self._cost((number, items))

    def _fits(self, part: NumberedRange, cut: Sequence[range]) -> bool:
        number, items = part
        if self._room[number] == math.inf:
            return True
        key = self._alike(number), items
        if key not in self._peaks:
            self._peaks[key] = self._peak(part, cut)
        if self._peaks[key] <= self._room[number]:
            return True
        self._too_large.append(part)
        return False

    def _nothing_fits(self) -> UserError:
        number, items = min(self._too_large, key=lambda part: len(part[1]))
        peak = self._peaks[self._alike(number), items]
        return UserError(
            f"parallel.memory: no cut into {counted(len(self._room), self._what[:-1])} fits,"
            f" {self._what[:-1]} {number + (self._what == 'modules')} would need"
            f" {peak / GIBIBYTE:.3g} GiB of {self._room[number] / GIBIBYTE:.3g}; cut into more, or"
            f" set modules.recompute=true, more train.microbatches or a smaller data.batch_size"
        )
