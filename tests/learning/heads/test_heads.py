"""Auxiliary heads on every layout: shapes, cost, what AugLocal copies, initialisation."""

import pytest
import torch
from torch import nn

from pipeline_local.config import HeadConfig
from pipeline_local.learning import heads
from pipeline_local.learning.heads import Head, Site, ToMap

SHAPES = {"NCHW": (8, 6, 6), "NHWC": (6, 6, 8), "NCT": (8, 12), "NTC": (10, 8), "NC": (8,)}


def mark(module):
    """A recognisable initialisation."""
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.125)


def later_blocks(layout):
    """Three blocks, and the shapes before each and behind the last.

    On maps the second one halves the side and doubles the channels.
    """
    if layout == "NCHW":
        blocks = [nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)]
        return [*blocks, nn.Conv2d(16, 16, 3, padding=1)], [(8, 6, 6)] * 2 + [(16, 3, 3)] * 2
    if layout == "NCT":
        blocks = [nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 16, 3, 2, 1)]
        return [*blocks, nn.Conv1d(16, 16, 3, padding=1)], [(8, 12)] * 2 + [(16, 6)] * 2
    shape = SHAPES[layout]
    return [nn.Linear(8, 8) for _ in range(3)], [shape] * 4


def site(layout, copies=2, shape=None):
    with torch.device("meta"):
        blocks, shapes = later_blocks(layout)
    return Site(layout, shape or SHAPES[layout], blocks, shapes, copies, [mark] * 4, (5,))


def materialized(head):
    head = head.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*head.parameters(), *head.buffers()]:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
        head.initialize()
    return head


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("name", ["linear", "etf", "mlp", "conv", "auglocal"])
def test_every_head_on_every_layout(name, layout):
    head = heads.build(HeadConfig(name=name), site(layout))
    assert all(p.is_meta for p in head.parameters())
    head = materialized(head)
    assert all(torch.isfinite(t).all() for t in [*head.parameters(), *head.buffers()])
    x = torch.randn(4, *SHAPES[layout], requires_grad=True)
    logits = head(x)
    assert logits.shape == (4, 5)
    logits.logsumexp(1).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize("layout", SHAPES)
def test_etf_has_no_parameter_and_classifies_by_direction(layout):
    head = materialized(heads.build(HeadConfig(name="etf"), site(layout)))
    assert not list(head.parameters())
    x = torch.randn(4, *SHAPES[layout])
    torch.testing.assert_close(head(x), head(7 * x), rtol=0.01, atol=0.01)


def copied(head):
    return [name for name, _ in head.layers.named_children() if name.startswith("copy")]


@pytest.mark.parametrize(
    ("taper", "depth", "expected"),
    [(True, 4, [4, 4, 3, 2, 1]), (True, 9, [5, 4, 3, 2, 1]), (False, 3, [3, 3, 3, 2, 1])],
)
def test_how_many_blocks_a_head_copies(taper, depth, expected):
    """Six modules of one block each: 5 to 1 blocks are left behind the hidden ones."""
    config = HeadConfig(name="auglocal", depth=depth, taper=taper)
    assert [heads.copies(config, k, 6, 5 - k) for k in range(5)] == expected


def test_a_head_copies_no_block_too_many():
    """Two thirds of 9 are 6, though not as floats: 9 * (1 - 1 / 3) is a little more."""
    config = HeadConfig(name="auglocal", depth=9)
    assert [heads.copies(config, k, 4, 20) for k in range(3)] == [9, 6, 3]


@pytest.mark.parametrize("name", ["linear", "etf", "mlp", "conv"])
def test_other_heads_copy_nothing(name):
    assert heads.copies(HeadConfig(name=name), 0, 2, 3) == 0


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_auglocal_copies_so_many(depth):
    head = heads.build(HeadConfig(name="auglocal"), site("NCHW", depth))
    assert len(copied(head)) == depth


def test_auglocal_copies_are_fresh_and_follow_the_backbones_rule():
    place = site("NTC", 3)
    head = heads.build(HeadConfig(name="auglocal"), place)
    originals = {id(p) for block in place.later for p in block.parameters()}
    assert not originals & {id(p) for p in head.parameters()}
    head = materialized(head)
    assert all(
        p.eq(0.125).all()
        for name in copied(head)
        for p in head.layers.get_submodule(name).parameters()
    )
    assert not any(p.eq(0.125).all() for p in head.layers.classifier.parameters() if p.dim() > 1)


@pytest.mark.parametrize("layout", ["NCHW", "NCT"])
def test_auglocal_adapts_to_a_later_resolution(layout):
    head = heads.build(HeadConfig(name="auglocal"), site(layout, 1))
    assert "adapter0" in dict(head.layers.named_children())
    assert materialized(head)(torch.randn(2, *SHAPES[layout])).shape == (2, 5)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NCT", "NTC"])
def test_copies_on_pooled_positions(layout):
    """Every position of the pooled activations is the mean of a square of them."""
    config = HeadConfig(name="auglocal", pool=2)
    head = materialized(heads.build(config, site(layout)))
    x = torch.randn(4, *SHAPES[layout], requires_grad=True)
    seen = head.layers.pool(x)
    to_map = ToMap(layout, SHAPES[layout])
    to_map.norm = nn.Identity()
    shape = heads.layers.output_shape(head.layers.pool, SHAPES[layout])
    small = ToMap(layout, shape)
    small.norm = nn.Identity()
    squares = [2 if size > 1 else 1 for size in to_map.map_shape[1:]]
    expected = nn.functional.avg_pool2d(to_map(x), squares, ceil_mode=True)
    torch.testing.assert_close(small(seen), expected)
    if layout == "NTC":
        torch.testing.assert_close(seen[:, 0], x[:, 0])  # the class token
    head(x).logsumexp(1).sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_without_positions_there_is_nothing_to_pool():
    with pytest.raises(ValueError, match="no positions to pool"):
        heads.build(HeadConfig(name="auglocal", pool=2), site("NC"))


def test_auglocal_refuses_what_it_cannot_adapt():
    with pytest.raises(ValueError, match="no adapter"):
        heads.build(HeadConfig(name="auglocal"), site("NTC", shape=(5, 8)))


@pytest.mark.parametrize(
    ("layout", "shape", "expected"),
    [
        ("NCHW", (8, 4, 6), (8, 4, 6)),
        ("NHWC", (4, 6, 8), (8, 4, 6)),
        ("NTC", (17, 8), (8, 4, 4)),
        ("NTC", (16, 8), (8, 4, 4)),
        ("NTC", (7, 8), (8, 7, 1)),
        ("NCT", (8, 7), (8, 1, 7)),
        ("NC", (8,), (8, 1, 1)),
    ],
)
def test_to_map(layout, shape, expected):
    to_map = ToMap(layout, shape)
    assert to_map.map_shape == expected
    assert to_map(torch.randn(3, *shape)).shape == (3, *expected)


def test_tokens_lie_on_their_grid_without_the_class_token():
    to_map = ToMap("NTC", (5, 2))
    to_map.norm = nn.Identity()
    x = torch.arange(10.0).reshape(1, 5, 2)
    grid = to_map(x)
    assert torch.equal(grid[0, :, 0, 1], x[0, 2])
    assert torch.equal(grid[0, :, 1, 0], x[0, 3])


def test_series_lie_in_one_row_in_order():
    x = torch.arange(6.0).reshape(1, 2, 3)
    assert torch.equal(ToMap("NCT", (2, 3))(x)[0, :, 0], x[0])


def test_heads_differ_in_cost():
    sizes = [
        sum(p.numel() for p in heads.build(HeadConfig(name=n), site("NCHW")).parameters())
        for n in ("etf", "linear", "mlp", "conv")
    ]
    assert sizes == sorted(sizes)
    assert isinstance(heads.build(HeadConfig(name="linear"), site("NC")), Head)
