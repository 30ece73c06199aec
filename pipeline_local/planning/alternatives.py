"""What local learning and its rivals need for the same network, batch and optimizer.

All methods are shown with the same numbers of microbatches: the configured one, as many as devices,
and four times as many.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.config import (
    DistillConfig,
    InformationConfig,
    ModulesConfig,
    ParallelConfig,
    ReconcileConfig,
)
from pipeline_local.memory.dry_run import stage_bytes
from pipeline_local.placement import balance, partition
from pipeline_local.placement.costs import Cost
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import Placement
from pipeline_local.planning.backprop import pass_through
from pipeline_local.simulation.simulate import step_seconds


@dataclass(frozen=True)
class Alternative:
    """What a method needs for the same network, batch and optimizer.

    Attributes:
        name: name of the method, with its p stages and m microbatches.
        method: name of the method alone.
        microbatches: m, of the batch; of DDP, of each device's share of it.
        peak: bytes on the device that needs the most memory.
        fits: whether every device has room for it; None: the room is not known.
        bubble: theoretical idle fraction of an average device.
        cost: cost of a step on the busiest device, in the plan's unit, heads and reconciliation
            included.
        traffic: most bytes that one device sends per step.
        seconds: simulated seconds of a step; None without a profile.
        speed: steps per second over those of local learning as configured, by simulated seconds,
            else by costs and bubbles.
    """

    name: str
    method: str
    microbatches: int
    peak: int
    fits: bool | None
    bubble: float
    cost: float
    traffic: float
    seconds: float | None
    speed: float = 1.0


def alternatives(
    placement: Placement, peaks: Sequence[int], traffic: float
) -> tuple[Alternative, ...]:
    """Return local learning first, backpropagation on one device, without and with activation
    checkpointing, and 1F1B and DDP on as many devices as there are ranks, with each number of
    microbatches. Of several, all but pipelines accumulate the gradients. Where stages have unequal
    replicas, 1F1B is left out: its pipelines are whole.

    Args:
        placement: the run and its stages.
        peaks: bytes that each stage needs as configured.
        traffic: most bytes that one rank sends per step.
    """
    compared = _Compared(placement, traffic)
    own = compared.local(placement.blueprint.config.train.microbatches, peaks)
    found = [own]
    for m in microbatches(placement):
        try:
            local = [] if m == own.microbatches else [compared.local(m)]
            found += [*local, *compared.rivals(m)]
        except ValueError:  # of a batch norm with one value per channel
            if m == own.microbatches or m < placement.blueprint.config.data.batch_size:
                raise
    return tuple(replace(one, speed=_speed(one, own)) for one in found)


def others(placement: Placement) -> tuple[Alternative, ...]:
    """Return the other methods with the configured number of microbatches alone; their speed and
    traffic are not compared."""
    return tuple(_Compared(placement, 0.0).rivals(placement.blueprint.config.train.microbatches))


def microbatches(placement: Placement) -> list[int]:
    """Return the numbers of microbatches to compare: as configured, a microbatch per rank and four
    times as many, as far as the batch has equal parts and replicas can share them."""
    config, mesh = placement.blueprint.config, placement.mesh
    size, parts = config.data.batch_size, mesh.parts
    found = {config.train.microbatches}
    for most in (mesh.num_ranks, 4 * mesh.num_ranks):
        usual = [m for m in range(parts, most + 1, parts) if size % m == 0]
        found |= {*usual[-1:]}
    return sorted(found)


def divided(blueprint: Blueprint, batch_size: int, microbatches: int) -> Blueprint:
    """Return the same run with another batch and other parts of it."""
    config = replace(
        blueprint.config,
        data=replace(blueprint.config.data, batch_size=batch_size),
        train=replace(blueprint.config.train, microbatches=microbatches),
    )
    return replace(blueprint, config=config, run_plan=replace(blueprint.run_plan, config=config))


def stage_peaks(placement: Placement, blueprint: Blueprint) -> list[int]:
    """Return the bytes that each stage of this placement needs for another such run."""
    parts = zip(placement.stages, placement.costs, placement.mesh.replicas, strict=True)
    return [
        stage_bytes(blueprint, part, len(placement.stages), costs.device, replicas).peak
        for part, costs, replicas in parts
    ]


def fill(placement: Placement, microbatches: int) -> float:
    """Return the part of the run before the last stage starts: the forward passes of one microbatch
    through all other stages."""
    costs, steps = placement.module_costs, placement.blueprint.run_plan.num_steps
    first = sum(module.forward for stage in costs[:-1] for module in stage) / microbatches
    whole = first + steps * max(placement.stage_costs)
    return first / whole if whole else 0.0


def all_reduced(num_bytes: float, members: int) -> float:
    """Return the bytes that each member of a ring sends to add up so many."""
    return 2 * num_bytes * (members - 1) / members


def _speed(one: Alternative, own: Alternative) -> float:
    if one.seconds and own.seconds:
        return own.seconds / one.seconds
    mine, theirs = (each.cost / (1 - each.bubble) for each in (own, one))
    return mine / theirs if theirs else 1.0


class _Compared:
    """The methods on the devices of one placement, with any number of microbatches."""

    def __init__(self, placement: Placement, traffic: float) -> None:
        self._placement = placement
        self._traffic = traffic
        self._blueprint = blueprint = placement.blueprint
        self._devices = len(placement.stages)
        self._mesh = placement.mesh
        one = replace(blueprint.config.parallel, replicas=1)
        self._single = replace(blueprint, config=replace(blueprint.config, parallel=one))
        self._size = blueprint.config.data.batch_size
        self._rooms = balance.room(blueprint, placement.costs)
        self._recomputes = blueprint.config.modules.recompute
        self._alone = {again: _backpropagation(placement, again) for again in (False, True)}
        self._whole = self._alone[self._recomputes]
        self._parts = [[*costs.blocks] for costs in placement.costs]
        for blocks, costs in zip(self._parts, placement.costs, strict=True):
            blocks[-1] += costs.classifier
        count = len(blueprint.backbone.blocks)
        self._cut = partition.cheapest(count, self._devices, self._cost)

    def local(self, m: int, peaks: Sequence[int] | None = None) -> Alternative:
        """Local learning as it is placed; `peaks` where they are known."""
        if peaks is None:
            peaks = stage_peaks(self._placement, divided(self._blueprint, self._size, m))
        return self._of(
            "local",
            m,
            peaks,
            bubble=fill(self._placement, m),
            cost=max(self._placement.stage_costs),
            traffic=self._traffic,
            seconds=step_seconds(self._blueprint, "local", self._devices, m),
        )

    def rivals(self, m: int) -> Iterator[Alternative]:
        """All other methods that m microbatches are possible for."""
        yield self._backprop("BP", m, recompute=False)
        yield self._backprop("BP checkpointed", m, recompute=True)
        several = {*self._mesh.replicas}
        if self._devices > 1 and len(several) == 1:
            yield self._one_f_one_b(m, *several)
        if self._mesh.num_ranks > 1 and self._size % (self._mesh.num_ranks * m) == 0:
            yield self._data_parallel(m)

    def _backprop(self, method: str, m: int, recompute: bool) -> Alternative:
        whole = divided(self._alone[recompute], self._size, m)
        peak = stage_bytes(whole, range(1), 1, whole.device).peak
        again = self._recomputing(recompute)
        seconds = step_seconds(self._single, "ddp", 1)
        return self._of(
            method,
            m,
            [peak],
            cost=self._cost(0, range(len(self._parts[0]))) + again,
            seconds=None if seconds is None else seconds + again,
        )

    def _recomputing(self, recompute: bool) -> float:
        """What recomputation adds to a step as configured, or takes from it."""
        forward = sum(block.forward for block in self._placement.costs[0].blocks)
        return forward * (int(recompute) - int(self._recomputes))

    def _one_f_one_b(self, m: int, replicas: int) -> Alternative:
        """Stage s of p keeps the activations of up to p - s of its m microbatches, and where there
        are several, gradients of earlier ones; replicas of a pipeline have DDP's buckets."""
        devices, peaks, sent, before = self._devices, [], [0.0], 0.0
        own = m // replicas
        for stage, blocks in enumerate(self._cut):
            held = pass_through(self._whole, blocks, self._size // m)
            waiting = (min(devices - stage, own) - 1) * held.activations
            several = (own > 1) + (replicas > 1)
            peaks.append(held.peak + waiting + several * held.gradients)
            after = own * held.output if blocks.stop < len(self._parts[0]) else 0.0
            sent.append(before + after + all_reduced(held.gradients, replicas))
            before = after
        return self._of(
            "1F1B",
            m,
            peaks,
            bubble=(devices - 1) / (own + devices - 1),
            cost=max(self._cost(stage, blocks, replicas) for stage, blocks in enumerate(self._cut)),
            traffic=max(sent),
            seconds=step_seconds(self._blueprint, "1f1b", devices, m, self._cut),
        )

    def _data_parallel(self, m: int) -> Alternative:
        """Each device has the whole network, its part of the batch, and DDP's gradient buckets,
        which hold what several microbatches add up."""
        devices = self._mesh.num_ranks
        part = divided(self._whole, self._size // devices, m)
        held = stage_bytes(part, range(1), 1, self._whole.device)
        gradients = held.modules[0].gradients
        totals = (sum(blocks, Cost(0, 0, 0)) for blocks in self._parts)
        costs = [(one.forward + one.backward) / devices + one.update for one in totals]
        peak = held.peak + (gradients if m == 1 else 0)
        return self._of(
            "DDP",
            m,
            [peak] * devices,
            cost=max(costs),
            traffic=all_reduced(gradients, devices),
            seconds=step_seconds(self._blueprint, "ddp", self._devices),
        )

    def _of(
        self,
        method: str,
        m: int,
        peaks: Sequence[int],
        *,
        cost: float,
        seconds: float | None,
        bubble: float = 0.0,
        traffic: float = 0.0,
    ) -> Alternative:
        """A method whose devices have these peaks."""
        return Alternative(
            name=f"{method}, {self._where(method)}, m={m}",
            method=method,
            microbatches=m,
            peak=max(peaks),
            fits=self._fits(peaks),
            bubble=bubble,
            cost=cost,
            traffic=traffic,
            seconds=seconds,
        )

    def _where(self, method: str) -> str:
        """What a method runs on, for its name."""
        if method.startswith("BP"):
            return "1 device"
        several = "".join(f"{count}x" for count in {*self._mesh.replicas} - {1})
        if method == "DDP" or len({*self._mesh.replicas}) > 1:
            return f"{self._mesh.num_ranks} devices" if several else f"p={self._devices}"
        return f"{several}p={self._devices}"

    def _cost(self, device: int, blocks: range, replicas: int = 1) -> float:
        """The cost of a step of these blocks under backpropagation, on each of their replicas."""
        costs = (self._parts[device][block] for block in blocks)
        return sum((one.forward + one.backward) / replicas + one.update for one in costs)

    def _fits(self, peaks: Sequence[int]) -> bool | None:
        pairs = [*zip(peaks, self._rooms, strict=False)]
        known = all(room < float("inf") for _, room in pairs)
        return all(peak <= room for peak, room in pairs) if known else None


def _backpropagation(placement: Placement, recompute: bool) -> Blueprint:
    """The same network as a single module, on the first device."""
    config = placement.blueprint.config
    plain = replace(
        config,
        modules=ModulesConfig(count=1, recompute=recompute),
        information=InformationConfig(),
        reconcile=ReconcileConfig(),
        distill=DistillConfig(),
        parallel=ParallelConfig(),
    )
    return draw(plain, placement.blueprint.info, placement.costs[0].device)
