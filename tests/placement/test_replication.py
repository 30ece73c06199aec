import itertools

import pytest

from pipeline_local import configfile
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.placement.replication import fastest, resolved


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
    assert fastest(costs, ranks, microbatches) == expected


@pytest.mark.parametrize("costs", [(1.0, 5.0, 2.0), (4.0, 1.0, 1.0), (3.0, 3.0, 1.0)])
def test_no_other_numbers_are_faster(costs):
    found = fastest(costs, 7, 12)
    divisors = [1, 2, 3, 4, 6]
    every = [each for each in itertools.product(divisors, repeat=3) if sum(each) == 7]
    slowest = min(max(c / n for c, n in zip(costs, each, strict=True)) for each in every)
    assert max(c / n for c, n in zip(costs, found, strict=True)) == slowest


def parse(**parallel):
    return configfile.parse(
        {
            "model": {"name": "mlp", "hidden": 8, "depth": 6},
            "modules": {"count": 2},
            "data": {"name": "digits", "batch_size": 16},
            "train": {"steps": 2, "microbatches": 4},
            "head": {"name": "linear"},
            "parallel": {"replicas": "auto", **parallel},
        }
    )


def test_a_configuration_gets_numbers():
    config = resolved(parse(stages=2), 4)
    assert sum(config.parallel.replicas) == 4
    with pytest.raises(UserError, match="7 ranks cannot share 4 microbatches on 2 stages"):
        resolved(parse(stages=2), 7)


def test_it_needs_the_number_of_stages():
    with pytest.raises(ConfigError, match=r"parallel\.replicas=auto needs parallel\.stages"):
        parse()
