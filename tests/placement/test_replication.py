import itertools

import pytest

from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.placement import profile_file
from pipeline_local.placement.costs import Cost
from pipeline_local.placement.draw import draw
from pipeline_local.placement.replication import fastest, resolved
from tests.placement.test_profile_file import write


def by_count(cost, microbatches):
    """The cost of a stage, by its replicas, which share all of it."""
    return {n: cost / n for n in range(1, microbatches + 1) if microbatches % n == 0}


@pytest.mark.parametrize(
    ("costs", "ranks", "microbatches", "expected"),
    [
        ([1.0, 2.0, 1.0], 4, 2, (1, 2, 1)),
        ([1.0, 1.0], 4, 4, (2, 2)),
        ([3.0, 1.0], 4, 6, (3, 1)),
        ([1.0], 3, 3, (3,)),
        ([1.0, 1.0], 5, 2, None),
        ([1.0, 1.0], 1, 2, None),
    ],
)
def test_the_slowest_stage_gets_more(costs, ranks, microbatches, expected):
    assert fastest([by_count(cost, microbatches) for cost in costs], ranks) == expected


@pytest.mark.parametrize("costs", [(1.0, 5.0, 2.0), (4.0, 1.0, 1.0), (3.0, 3.0, 1.0)])
def test_no_other_numbers_are_faster(costs):
    found = fastest([by_count(cost, 12) for cost in costs], 7)
    divisors = [1, 2, 3, 4, 6]
    every = [each for each in itertools.product(divisors, repeat=3) if sum(each) == 7]
    slowest = min(max(c / n for c, n in zip(costs, each, strict=True)) for each in every)
    assert max(c / n for c, n in zip(costs, found, strict=True)) == slowest


def parse(microbatches=4, profile=None, **parallel):
    return configfile.parse(
        {
            "model": {"name": "mlp", "hidden": 8, "depth": 6},
            "modules": {"count": 2, "profile": profile},
            "data": {"name": "digits", "batch_size": 24},
            "train": {"steps": 2, "microbatches": microbatches},
            "head": {"name": "linear"},
            "parallel": {"replicas": "auto", **parallel},
        }
    )


FREE = profile_file.row(Cost(0, 0, 0, 0))


def measured(path, config, blocks):
    """A profile of a network with these costs of its blocks and no others."""
    setting = profile_file.setting(draw(config, describe(config.data)))
    rows = {f"layer{i + 1}": profile_file.row(cost) for i, cost in enumerate(blocks)}
    return write(path, setting=setting, blocks=rows, classifier=FREE)


def test_a_configuration_gets_numbers():
    config = resolved(parse(stages=2), 4)
    assert sum(config.parallel.replicas) == 4
    with pytest.raises(UserError, match="7 ranks cannot share 4 microbatches on 2 stages"):
        resolved(parse(stages=2), 7)


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (Cost(1, 1, 0, 0), (2, 2)),
        (Cost(2, 3, 0, 0), (1, 3)),
        (Cost(0.1, 0.1, 0, 0), (3, 1)),
        (Cost(0.3, 0.4, 0, 16), (1, 3)),  # each replica makes the update: two do not halve it
    ],
)
def test_a_profile_says_which_stage_is_slow(later, expected, tmp_path):
    """Three blocks in each stage: the first of one second, forward and backward."""
    path = measured(tmp_path / "p.json", parse(6, stages=2), [Cost(1, 1, 0, 0)] * 3 + [later] * 3)
    config = parse(6, path, stages=2)
    assert resolved(config, 4).parallel.replicas == expected


def test_it_needs_the_number_of_stages():
    with pytest.raises(ConfigError, match=r"parallel\.replicas=auto needs parallel\.stages"):
        parse()
