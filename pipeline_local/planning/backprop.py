"""Blocks under plain backpropagation, rehearsed on fake tensors: what 1F1B is made of."""

from dataclasses import dataclass

import torch

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.contract import Spec
from pipeline_local.learning.body import Body
from pipeline_local.learning.optimizer import build
from pipeline_local.memory.dry_run import FAKE_DEVICE, make_state, state
from pipeline_local.memory.fake_edges import num_bytes
from pipeline_local.memory.fake_mode import fake_mode
from pipeline_local.memory.live_bytes import LiveBytes
from pipeline_local.models import backbone as backbones


@dataclass(frozen=True)
class PassBytes:
    """Blocks under plain backpropagation, one microbatch, in bytes.

    Attributes:
        activations: kept between forward and backward.
        output: of the last block, as it crosses to the next device.
        peak: with parameters, gradients of all of them, optimizer state, and what the device's
            libraries keep for themselves.
    """

    activations: int
    output: int
    peak: int


def pass_through(blueprint: Blueprint, blocks: range, size: int) -> PassBytes:
    """Forward and backward of `size` samples through some blocks, the classifier behind the last.

    Args:
        blueprint: of a single module, on the device in question.
        blocks: consecutive.
        size: samples.
    """
    live_bytes, device = LiveBytes(), blueprint.device
    with fake_mode(device.type):
        body = _fake_body(blueprint, blocks)
        params = [p for p in body.parameters() if p.requires_grad]
        optimizer = build(blueprint.config.optimizer, params)
        make_state(params, optimizer)
        live_bytes.hold([*body.parameters(), *body.buffers(), *state(optimizer)])
        x = torch.empty(size, *blueprint.input_shapes[blocks.start], dtype=blueprint.dtype)
        with live_bytes:
            before = live_bytes.live
            low = blueprint.wire_format.inside == torch.bfloat16
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                y = body(x.requires_grad_(blocks.start > 0))
            kept = live_bytes.live - before
            grads = torch.autograd.grad(y, params, torch.empty_like(y), allow_unused=True)
        del grads
    output = blueprint.output_shapes[blocks[-1]]
    wire_format = num_bytes([Spec((size, *output), blueprint.wire_format.inside)])
    return PassBytes(kept, wire_format, live_bytes.peak + device.workspaces)


def _fake_body(blueprint: Blueprint, blocks: range) -> Body:
    """In unfilled memory."""
    paper = [blueprint.backbone.blocks[i].module for i in blocks]
    if blocks.stop == len(blueprint.backbone.blocks):
        paper.append(blueprint.backbone.classifier.module)
    fake_copy = [backbones.fake_copy(part, FAKE_DEVICE, blueprint.dtype) for part in paper]
    return Body(fake_copy, blueprint.config.modules.recompute)
