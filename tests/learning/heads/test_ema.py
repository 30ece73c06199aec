"""A head that begins with a copy of the next block: what learns, what follows, what only passes."""

import copy

import pytest
import torch
from torch import nn

from pipeline_local.config import HeadConfig, OptimizerConfig
from pipeline_local.configfile import configfile
from pipeline_local.engines import optimizer
from pipeline_local.errors import ConfigError
from pipeline_local.learning import heads
from pipeline_local.learning.compiler import compile_part
from pipeline_local.learning.heads import EmaHead, Site

SHAPES = {"NCHW": (6, 5, 5), "NHWC": (5, 5, 6), "NCT": (6, 9), "NTC": (9, 6), "NC": (6,)}
BLOCKS = {
    "NCHW": lambda: nn.Sequential(nn.Conv2d(6, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()),
    "NCT": lambda: nn.Sequential(nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), nn.ReLU()),
}


def block(layout):
    return BLOCKS.get(layout, lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU()))()


def site(layout, later=None):
    with torch.device("meta"):
        blocks = [later or block(layout)]
    return Site(layout, SHAPES[layout], blocks, [SHAPES[layout]], 0, [], (5,))


def made(layout="NCHW", **options):
    """A head, and the block that it has begun with."""
    torch.manual_seed(0)
    head = heads.build(HeadConfig("ema", **options), site(layout))
    assert all(tensor.is_meta for tensor in head.state_dict().values())
    head = head.to_empty(device="cpu")
    heads.initialize(head)
    original = block(layout)
    head.begin(original)
    return head, original


@pytest.mark.parametrize("layout", SHAPES)
def test_the_gradient_passes_through_the_copy_and_leaves_none_there(layout):
    head, original = made(layout)
    x = torch.randn(4, *SHAPES[layout])
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs = head(mine)
    assert outputs.shape == (4, 5)
    scale, classifier = head.layers.scale, head.layers.classifier
    expected = classifier(scale(original(theirs)))
    assert torch.equal(outputs, expected)
    for y in (outputs, expected):
        y.logsumexp(1).sum().backward()
    assert torch.equal(mine.grad, theirs.grad)
    assert mine.grad.any()
    learning = {name for name, p in head.named_parameters() if p.grad is not None}
    assert learning == {name for name, p in head.named_parameters() if p.requires_grad}
    assert not any(name.startswith("layers.copy.") for name in learning)
    assert {"layers.scale.weight", "layers.scale.bias"} < learning


def test_a_scale_and_bias_for_each_channel():
    for layout, shape in SHAPES.items():
        head, original = made(layout)
        y = original(torch.randn(2, *shape))
        scale = head.layers.scale
        assert torch.equal(scale(y), y), "at first"
        axis = 1 if layout in ("NCHW", "NCT") else -1
        with torch.no_grad():
            scale.weight.copy_(torch.arange(8.0))
            scale.bias.fill_(0.5)
        assert torch.equal(scale(y).select(axis, 3), 3 * y.select(axis, 3) + 0.5)


@pytest.mark.parametrize("layout", SHAPES)
def test_the_scale_is_no_matrix(layout):
    """It neither decays as one, nor is made orthogonal."""
    head, _ = made(layout)
    learned = [p for p in head.parameters() if p.requires_grad]
    config = OptimizerConfig("muon", lr=0.1)
    matrices, rest = (part.param_groups for part in optimizer.build(config, learned)._parts)
    assert [p.shape for group in matrices for p in group["params"]] == [(5, 8)]
    assert rest[0]["params"][:2] == [*head.layers.scale.parameters()]
    assert rest[0]["weight_decay"] == 0


@pytest.mark.parametrize(("refresh", "decay"), [(1, 0.9), (4, 0.9), (10, 0.995), (5, 0.0)])
def test_the_copy_is_a_running_mean(refresh, decay):
    """`decay` is that of a step, however rarely the block is published."""
    head, original = made(refresh=refresh, decay=decay)
    published = [torch.randn_like(p) for p in original.parameters()]
    rest = torch.ones(1)
    arrived = iter([*published, rest])
    head.follow(arrived)
    assert next(arrived) is rest, "what others have sent stays"
    mean = decay**refresh
    for mine, old, new in zip(
        head.copy.parameters(), original.parameters(), published, strict=True
    ):
        torch.testing.assert_close(mine, mean * old + (1 - mean) * new)


def test_running_statistics_are_those_of_the_heads_own_batches():
    head, original = made()
    original[1].running_mean.fill_(7.0)
    head.begin(original)
    x = torch.randn(8, *SHAPES["NCHW"])
    head(x)
    norm = head.copy[1]
    own = 0.9 * 7 + 0.1 * original[0](x).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, own)
    head.follow(iter([torch.zeros_like(p) for p in original.parameters()]))
    torch.testing.assert_close(norm.running_mean, own)


def test_fresh_weights_do_not_depend_on_the_block():
    weights = []
    for later in (nn.Linear(6, 8), nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))):
        head = heads.build(HeadConfig("ema"), site("NC", later.to("meta"))).to_empty(device="cpu")
        torch.manual_seed(1)
        heads.initialize(head)
        weights.append(head.layers.classifier[-1].weight)
    assert torch.equal(*weights)


def test_a_block_without_parameters_is_refused():
    with pytest.raises(ValueError, match="the next one, has no parameters"):
        heads.build(HeadConfig("ema"), site("NC", nn.ReLU()))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"refresh": 0}, r"head\.refresh: should be greater than or equal to 1"),
        ({"decay": 1.0}, r"head\.decay: should be less than 1"),
        ({"speed": 2}, r"head\.speed"),
    ],
)
def test_options_are_checked(options, problem):
    tree = {
        "model": {"name": "mlp"},
        "data": {"name": "digits"},
        "train": {"steps": 1},
        "head": {"name": "ema", **options},
    }
    with pytest.raises(ConfigError, match=problem):
        configfile.parse(tree)


def test_only_this_head_is_refreshed():
    assert heads.refresh(HeadConfig("ema")) == 10
    assert heads.refresh(HeadConfig("ema", refresh=3)) == 3
    assert heads.refresh(HeadConfig("linear")) == 0
    assert isinstance(heads.build(HeadConfig("ema"), site("NC")), EmaHead)


def test_a_compiled_head_sees_its_copy_move():
    head, _ = made()
    compiled = copy.deepcopy(head)
    compile_part(compiled, backend="aot_eager")
    x, published = torch.randn(4, *SHAPES["NCHW"]), torch.ones(1)
    for _ in range(2):
        assert torch.equal(compiled(x), head(x))
        for each in (compiled, head):
            each.follow(published.expand_as(p) for p in each.copy.parameters())
