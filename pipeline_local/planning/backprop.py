"""Memory of blocks under plain backpropagation, from a dry run on fake tensors; used for 1F1B."""

from dataclasses import dataclass

import torch

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.contract import Spec
from pipeline_local.engines.optimizer import build
from pipeline_local.learning.body import Body
from pipeline_local.learning.precision import autocast
from pipeline_local.memory.dry_run import FAKE_DEVICE, make_state, state
from pipeline_local.memory.fake_edges import num_bytes
from pipeline_local.memory.fake_mode import fake_mode
from pipeline_local.memory.live_bytes import LiveBytes
from pipeline_local.models.backbone import fake_copy


@dataclass(frozen=True)
class PassBytes:
    """Memory of blocks under plain backpropagation of one microbatch, in bytes.

    Attributes:
        activations: bytes kept between forward and backward.
        gradients: bytes of all gradients.
        output: bytes of the last block's output as sent to the next device.
        peak: peak of a step, with parameters, all gradients, optimizer state, and the workspaces
            of the device's libraries.
    """

    activations: int
    gradients: int
    output: int
    peak: int


def pass_through(blueprint: Blueprint, blocks: range, size: int) -> PassBytes:
    """Run forward and backward through consecutive blocks on fake tensors, and count bytes.

    The classifier is included behind the last block.

    Args:
        blueprint: the specification of a run with a single module, on the device of interest.
        blocks: indices of the blocks.
        size: samples in a microbatch.
    """
    live_bytes, device = LiveBytes(), blueprint.device
    with fake_mode(device.type):
        body = _fake_body(blueprint, blocks)
        params = [p for p in body.parameters() if p.requires_grad]
        optimizer = build(blueprint.config.optimizer, params)
        make_state(params, optimizer)
        live_bytes.hold([*body.parameters(), *body.buffers(), *state(optimizer)])
        dtype = blueprint.dtype if blocks.start else blueprint.input_dtype
        x = torch.empty(size, *blueprint.input_shapes[blocks.start], dtype=dtype)
        with live_bytes:
            before = live_bytes.live
            with autocast("cpu", blueprint.wire_format.networks):
                y = body(x.requires_grad_(blocks.start > 0))
            kept = live_bytes.live - before
            grads = torch.autograd.grad(y, params, torch.empty_like(y), allow_unused=True)
        del grads
    output = blueprint.output_shapes[blocks[-1]]
    wire_format = num_bytes([Spec((size, *output), blueprint.wire_format.inside)])
    gradients = sum(p.numel() * p.element_size() for p in params)
    return PassBytes(kept, gradients, wire_format, live_bytes.peak + device.workspaces)


def _fake_body(blueprint: Blueprint, blocks: range) -> Body:
    """A body on fake tensors."""
    meta = [blueprint.backbone.blocks[i].module for i in blocks]
    if blocks.stop == len(blueprint.backbone.blocks):
        meta.append(blueprint.backbone.classifier.module)
    how = FAKE_DEVICE, blueprint.dtype, blueprint.config.channels_last
    fakes = [fake_copy(part, *how) for part in meta]
    return Body(fakes, blueprint.config.modules.recompute)
