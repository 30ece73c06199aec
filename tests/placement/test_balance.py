"""The best cuts: cheapest of those that fit, by brute force over all of them."""

import math
from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.device import Device
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.memory.dry_run import stage_bytes
from pipeline_local.placement import balance
from pipeline_local.placement.costs import Cost, Costs, Link
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.placement.placement import Placement

RESNET = {"name": "resnet20", "width": 8}
MLP = {"name": "mlp", "hidden": 32, "depth": 8}


def draw(model=MLP, **sections):
    tree = {
        "model": model,
        "data": {"name": "digits", "batch_size": 16},
        "head": {"name": "linear"},
        "train": {"steps": 3},
        **sections,
    }
    config = configfile.parse(tree)
    return draw_blueprint(config, describe(config.data))


def made(blueprint, blocks, head):
    return Costs(
        blueprint.config,
        "seconds",
        tuple(Cost(b, 0, 0) for b in blocks),
        {(end, 0): Cost(head, 0, 0) for end in range(1, len(blocks))},
        Cost(0, 0, 0),
    )


def all_cuts(num_items, count):
    for opens in combinations(range(1, num_items), count - 1):
        yield [range(a, b) for a, b in pairwise([0, *opens, num_items])]


def with_limit(blueprint, gibibytes):
    parallel = replace(blueprint.config.parallel, memory=gibibytes)
    return replace(blueprint, config=replace(blueprint.config, parallel=parallel))


def test_the_best_modules_leave_room_for_heads():
    """The last module has a cheap classifier only, so it can take more blocks."""
    blueprint = draw()
    costs = made(blueprint, (1,) * 8, head=4)
    assert balance.best_modules(blueprint, [costs] * 2) == [range(2), range(2, 8)]
    assert balance.best_modules(blueprint, [costs]) == [range(8)]


SMALL_VIT = {"name": "vit", "patch_size": 8, "num_layers": 5, "num_heads": 2}
SMALL_VIT |= {"hidden_dim": 32, "mlp_dim": 64}


LINEAR, AUGLOCAL = {"name": "linear"}, {"name": "auglocal", "depth": 2}


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (SMALL_VIT, AUGLOCAL),
        pytest.param(RESNET, LINEAR, marks=pytest.mark.long),
        pytest.param(RESNET, AUGLOCAL, marks=pytest.mark.long),
        pytest.param(SMALL_VIT, LINEAR, marks=pytest.mark.long),
    ],
)
def test_even_memory(model, head):
    """Rehearsed by brute force, no cut into two takes much less: what is on its way between blocks
    is not in it. Heads count."""
    data = {"name": "synthetic", "image_size": 32, "batch_size": 64}
    blueprint = draw(model, data=data, head=head, modules={"count": 2, "cuts": "memory"})
    num_blocks = len(blueprint.backbone.blocks)
    peaks = [
        stage_bytes(replace(blueprint, modules=tuple(cut)), range(2), 1).peak
        for cut in all_cuts(num_blocks, 2)
    ]
    found = stage_bytes(blueprint, range(2), 1).peak
    assert found <= 1.1 * min(peaks)
    assert found < sorted(peaks)[num_blocks // 2]
    names = [block.name for block in blueprint.backbone.blocks]
    opens = tuple(names[part.start] for part in blueprint.modules[1:])
    assert blueprint.config.modules.cuts == opens, "a run that goes on has the same modules"


def test_modules_that_share_a_device_take_less_where_memory_is_even():
    image = {"name": "synthetic", "image_size": 32, "batch_size": 16}
    modules = {cuts: {"count": 4, "cuts": cuts} for cuts in ("uniform", "auto", "memory")}
    peaks = {
        cuts: stage_bytes(draw(RESNET, data=image, modules=section), range(4), 1).peak
        for cuts, section in modules.items()
    }
    assert peaks["memory"] < min(peaks["uniform"], peaks["auto"])


def test_even_memory_has_a_place_for_each_head(monkeypatch):
    def nowhere(*_):
        raise UserError("does not fit")

    data = {"name": "synthetic", "image_size": 32, "batch_size": 16}
    blueprint = draw(RESNET, data=data)
    monkeypatch.setattr(Blueprint, "auxiliary_head", nowhere)
    assert balance.even_memory(blueprint, 1) == [range(10)]
    with pytest.raises(UserError, match="no cut into 3 modules has a place for each head"):
        balance.even_memory(blueprint, 3)


def test_a_slow_device_gets_less():
    blueprint = draw(modules={"count": 8})
    fast, slow = made(blueprint, (1,) * 8, head=0), made(blueprint, (3,) * 8, head=0)
    assert balance.best_modules(blueprint, [fast, slow]) == [range(6), range(6, 8)]
    assert balance.best_stages(blueprint, [slow, fast], [1, 1]) == [range(2), range(2, 8)]


def test_a_slow_line_is_crossed_where_messages_are_small():
    """Half of the bytes behind each block that halves both sides and doubles the channels."""
    uncut = draw(RESNET, modules={"count": 9}, data={"name": "synthetic", "batch_size": 16})
    costs = made(uncut, (1,) * 10, head=0)
    numbers = [math.prod(shape) for shape in uncut.input_shapes]
    assert numbers[4:9] == [8192, 4096, 4096, 4096, 2048]
    single = replace(uncut, modules=tuple(range(k, k + 1) for k in range(10)))
    assert balance.best_stages(single, [costs] * 2, [1, 1]) == [range(5), range(5, 10)]
    for seconds, opens in ((4.9, 5), (5.9, 5), (9.0, 8)):  # on the line, with block 5 behind it
        speed = 16 * numbers[5] * 4 * (1 + uncut.run_plan.compare_fraction) / seconds
        slow = replace(costs, link=Link(1.0, speed))
        assert balance.best_stages(single, [slow] * 2, [1, 1]) == [range(opens), range(opens, 10)]
    even = [range(5), range(5, 10)]
    assert balance.best_modules(uncut, [slow] * 2) == even, "what is learned is no matter of lines"


def test_where_the_line_decides_stages_are_even_still():
    """All cuts behind block 8 are as good for it: an MLP's messages are alike everywhere."""
    blueprint = draw(modules={"count": 8})
    costs = replace(made(blueprint, (1,) * 8, head=0), link=Link(0.0, 1e-3))
    assert balance.best_stages(blueprint, [costs] * 4, [1] * 4) == [
        range(k, k + 2) for k in (0, 2, 4, 6)
    ]


@pytest.fixture(scope="module")
def peak_of_one_of_three():
    """The bytes of a module, which follow from its number and its blocks, in this network of equal
    blocks; each is rehearsed once."""
    uncut = draw(data={"name": "digits", "batch_size": 512})
    found = {}

    def peak(number, part, cut):
        if (number, part) not in found:
            whole = replace(uncut, modules=tuple(cut))
            found[number, part] = stage_bytes(whole, [number], 3).peak
        return found[number, part]

    return peak


@pytest.mark.parametrize("part_of_peak", [0.99, 0.8])
def test_the_cheapest_modules_that_fit(part_of_peak, peak_of_one_of_three):
    """Cheap blocks keep as much as dear ones."""
    uncut = draw(data={"name": "digits", "batch_size": 512})
    costs = [made(uncut, (9, 5, 1, 1, 1, 1, 1, 2), head=0)] * 3

    def peaks(cut):
        return [peak_of_one_of_three(k, part, cut) for k, part in enumerate(cut)]

    def cost(cut):
        return max(costs[k].module(k, 3, part).total for k, part in enumerate(cut))

    free = balance.best_modules(uncut, costs)
    limit = part_of_peak * max(peaks(free))
    fitting = [cut for cut in all_cuts(8, 3) if max(peaks(cut)) <= limit]
    found = balance.best_modules(with_limit(uncut, limit / balance.GIBIBYTE), costs)
    assert found != free
    assert found in fitting
    assert cost(found) == min(map(cost, fitting))


def test_stages_keep_within_memory():
    blueprint = draw(RESNET, modules={"cuts": "blocks"})
    costs = Placement.of(blueprint, 2).costs
    free = balance.best_stages(blueprint, costs, [1] * len(costs))
    limit = max(stage_bytes(blueprint, part, 2).peak for part in free) - 1
    limited = with_limit(blueprint, limit / balance.GIBIBYTE)
    found = balance.best_stages(limited, costs, [1] * len(costs))
    assert found != free
    assert max(stage_bytes(blueprint, part, 2).peak for part in found) <= limit


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"modules": {"count": 2, "cuts": "auto"}}, "no cut into 2 modules fits, module "),
        ({"modules": {"count": 4}, "parallel": {"cuts": "auto"}}, "no cut into 2 stages fits, sta"),
    ],
)
def test_where_nothing_fits(sections, message):
    sections["parallel"] = {**sections.get("parallel", {}), "memory": 1e-5}
    with pytest.raises(UserError, match=message) as error:
        Placement.of(draw(**sections), 2)
    assert "GiB of 1e-05" in str(error.value)
    assert "\n" not in str(error.value)


def test_memory_of_the_profiled_device():
    blueprint = draw()
    costs = made(blueprint, (1,) * 8, 0)
    assert balance.room(blueprint, [costs]) == [math.inf]
    own = [replace(costs, device=Device(memory=size)) for size in (1000, 2000)]
    assert balance.room(blueprint, own) == [900, 1800]
    assert balance.room(with_limit(blueprint, 2), own) == [2 * 2**30] * 2


@pytest.mark.parametrize(("grows", "best"), [(False, [range(1), range(1, 4)]), (True, None)])
def test_a_longer_part_may_hold_less(grows, best):
    """With activation checkpointing: block 2 alone in front holds more than 1 and 2 do."""
    held = {range(1): 1, range(3, 4): 1, range(2, 4): 9, range(1, 4): 5, range(3): 9, range(2): 9}

    def cost(part):
        return float(len(part[1]))

    def peak(part, _):
        return held[part[1]]

    search = balance._Search("modules", cost, peak, lambda number: number, grows, [5, 5])
    if best is None:
        with pytest.raises(UserError, match="no cut into 2 modules fits"):
            search.best(4)
    else:
        assert search.best(4) == best
