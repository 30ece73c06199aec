"""Gradients of norms in bfloat16 against those in float32."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_local.learning.body import Body
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.precision import autocast
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import Step
from pipeline_local.learning.tasks import Classification
from pipeline_local.learning.wire_format import WireFormat
from pipeline_local.models import backbone, registry

ROWS, WIDTH = 4096, 16


class Functional(nn.Module):
    """A layer norm without a layer."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.shift = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        return functional.layer_norm(x, (WIDTH,), weight=self.scale, bias=self.shift)


def gradients(module, x, inside):
    """Of a loss that moves all outputs one way, as they add up most."""
    module = copy.deepcopy(module)
    with autocast("cpu", inside):
        y = module(x.to(inside))
    y.backward((1 + torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).to(y.dtype))
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def farthest(module, x, only=""):
    """The largest difference of a gradient in bfloat16 from that in float32, over its norm."""
    low, high = (gradients(module, x, dtype) for dtype in (torch.bfloat16, torch.float32))
    return max(
        ((low[name] - high[name]).norm() / high[name].norm()).item()
        for name in high
        if only in name
    )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(WIDTH), Functional])
def test_layer_norms_add_up_all_rows(norm, recompute):
    torch.manual_seed(0)
    body = Body([norm(), nn.Linear(WIDTH, WIDTH), norm()], recompute)
    assert farthest(body, torch.randn(ROWS, WIDTH)) < 0.02


def test_layer_norms_add_up_in_float16_too():
    torch.manual_seed(0)
    norm, x = nn.LayerNorm(WIDTH), torch.randn(ROWS, WIDTH)
    low, high = (gradients(norm, x, dtype) for dtype in (torch.float16, torch.float32))
    assert all((low[name] - high[name]).norm() < 0.003 * high[name].norm() for name in high)
    with autocast("cpu", torch.float16):
        assert nn.Linear(WIDTH, 1)(x).dtype == torch.float16


def test_without_it_they_stop():
    """If this fails, torch does so itself."""
    norm = nn.LayerNorm(WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        norm(torch.randn(ROWS, WIDTH).bfloat16()).sum().backward()
    assert norm.bias.grad.max() < ROWS / 2


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.GroupNorm(4, WIDTH), (64, WIDTH, 8, 8)),
        (nn.BatchNorm2d(WIDTH), (64, WIDTH, 8, 8)),
        (nn.InstanceNorm2d(WIDTH, affine=True), (64, WIDTH, 8, 8)),
        (nn.RMSNorm(WIDTH), (ROWS, WIDTH)),
        (nn.Linear(WIDTH, WIDTH), (ROWS, WIDTH)),
        (nn.Conv2d(WIDTH, WIDTH, 3), (64, WIDTH, 8, 8)),
    ],
)
@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
def test_other_layers_add_up_in_float32_themselves(layer, shape):
    torch.manual_seed(0)
    only = "bias" if hasattr(layer, "bias") else ""
    assert farthest(layer, torch.randn(shape), only) < 0.02


TINY = {"patch_size": 2, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}


@pytest.mark.parametrize(("name", "args", "norms"), [("vit", TINY, "ln_"), ("swin_t", {}, "norm")])
def test_norms_of_transformers(name, args, norms):
    made = registry.build(name, args, 5, (3, 32, 32))[0]
    stem, block = (
        backbone.materialize(block.module, made.initialize, k, torch.device("cpu"), torch.float32)
        for k, block in enumerate(made.blocks[:2])
    )
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = stem.eval()(images)
    assert farthest(block.eval(), x, only=norms) < 0.03  # in bfloat16 a half and more


def test_a_module_learns_so():
    """In all three acts, with the head's norm."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3))
    body = Body([nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)])
    x, labels = torch.randn(ROWS, WIDTH), torch.zeros(ROWS, dtype=torch.int64)
    found = []
    for inside in (torch.float32, torch.bfloat16):
        rules = Rules(task=Classification(3), wire_format=WireFormat(inside))
        parts = copy.deepcopy((body, head))
        module = LocalModule(0, *parts, lambda p: torch.optim.SGD(p, lr=0.1), rules)
        module(x, labels, Step(0, 0.1))
        module.signal()
        module.learn()
        found.append(module.gradients)
    for high, low in zip(*found, strict=True):
        assert (low - high).norm() < 0.03 * high.norm()
