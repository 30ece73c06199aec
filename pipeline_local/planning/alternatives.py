"""Estimates of what other methods need for the same network, batch and optimizer."""

from dataclasses import dataclass, replace

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.device import Device
from pipeline_local.config import ModulesConfig, ParallelConfig, ReconcileConfig
from pipeline_local.memory.dry_run import stage_bytes
from pipeline_local.placement import partition
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import Placement
from pipeline_local.planning.backprop import pass_through
from pipeline_local.simulation.simulate import step_seconds


@dataclass(frozen=True)
class Alternative:
    """What another method needs for the same network, batch and optimizer.

    Attributes:
        name: name of the method, with its p devices and m microbatches.
        peak: bytes on the device that needs the most memory.
        bubble: theoretical idle fraction of an average device.
        traffic: most bytes that one device sends per step.
        seconds: simulated seconds of a step; None without a profile.
    """

    name: str
    peak: int
    bubble: float
    traffic: float
    seconds: float | None


def alternatives(placement: Placement) -> tuple[Alternative, ...]:
    """Return backpropagation on one device, and 1F1B and DDP on as many as there are stages."""
    blueprint, devices = placement.blueprint, len(placement.stages)
    size, device = blueprint.config.data.batch_size, placement.costs[0].device
    whole = _backpropagation(blueprint, size, device)
    peak = stage_bytes(whole, range(1), 1, whole.device).peak
    seconds = step_seconds(blueprint, "ddp", 1)
    found = [Alternative("BP, 1 device", peak, 0.0, 0.0, seconds)]
    if devices > 1:
        for parts in (devices, 4 * devices):
            if size % parts == 0:
                timed = step_seconds(blueprint, "1f1b", devices, parts)
                found.append(replace(_one_f_one_b(whole, devices, parts), seconds=timed))
        if size >= devices:
            timed = step_seconds(blueprint, "ddp", devices)
            found.append(replace(_data_parallel(blueprint, devices, device), seconds=timed))
    return tuple(found)


def _backpropagation(blueprint: Blueprint, batch_size: int, device: Device) -> Blueprint:
    config = blueprint.config
    plain = replace(
        config,
        modules=ModulesConfig(count=1, recompute=config.modules.recompute),
        reconcile=ReconcileConfig(),
        parallel=ParallelConfig(),
        data=replace(config.data, batch_size=batch_size),
        train=replace(config.train, microbatches=1),
    )
    return draw(plain, blueprint.info, device)


def _one_f_one_b(whole: Blueprint, devices: int, microbatches: int) -> Alternative:
    """Stage s of p keeps the activations of up to p - s of the m microbatches.

    Blocks are divided evenly; the best cut by activations is not searched for.
    """
    blocks = len(whole.backbone.blocks)
    micro = whole.config.data.batch_size // microbatches
    peak, traffic = 0, 0.0
    for stage, part in enumerate(partition.uniform(blocks, min(devices, blocks))):
        held = pass_through(whole, part, micro)
        in_flight = min(devices - stage, microbatches)
        peak = max(peak, held.peak + (in_flight - 1) * held.activations)
        if part.stop < blocks:
            traffic = max(traffic, 2.0 * microbatches * held.output)
    bubble = (devices - 1) / (microbatches + devices - 1)
    return Alternative(f"1F1B, p={devices}, m={microbatches}", peak, bubble, traffic, None)


def _data_parallel(blueprint: Blueprint, devices: int, device: Device) -> Alternative:
    """Each device has the whole network, its part of the batch, and DDP's gradient buckets."""
    part = blueprint.config.data.batch_size // devices
    whole = _backpropagation(blueprint, part, device)
    held = stage_bytes(whole, range(1), 1, whole.device)
    gradients = held.modules[0].gradients
    traffic = 2 * gradients * (devices - 1) / devices
    return Alternative(f"data parallel, p={devices}", held.peak + gradients, 0.0, traffic, None)
