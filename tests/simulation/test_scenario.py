"""What may be simulated."""

import pytest

from pipeline_local.configfile import configfile
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.placement.costs import Link, LinkOptions
from pipeline_local.ranks.mesh import Mesh, chain
from pipeline_local.simulation.scenario import Scenario

CONFIG = configfile.parse(
    {
        "model": {"name": "mlp"},
        "data": {"name": "synthetic", "image_size": 8, "batch_size": 32},
        "train": {"steps": 10},
    }
)


def scenario(**more):
    return Scenario(**{"methods": ("local", "1f1b", "gpipe", "ddp"), "stages": (2,), **more})


def test_the_link_is_the_profiled_one_unless_set():
    profiled = Link(0.5, 100.0)
    assert scenario().link.over(profiled) == profiled
    assert scenario(link=LinkOptions(0.0, 1e9)).link.over(profiled) == Link(0.0, 1.25e8)
    busy = Link(0.5, 100.0, at_least=True)
    assert scenario(link=LinkOptions(latency=0.0)).link.over(busy) == Link(0.0, 100.0, True)
    assert scenario(link=LinkOptions(bandwidth=80.0)).link.over(busy) == Link(0.5, 10.0)


@pytest.mark.parametrize(("stages", "parts"), [(1, 1), (4, 4), (6, 4), (32, 32), (1000, 32)])
def test_microbatches_are_equal_parts_of_the_batch(stages, parts):
    assert scenario().parts(CONFIG, chain(stages)) == parts
    assert scenario(microbatches=8).parts(CONFIG, chain(stages)) == 8


def test_replicas_share_microbatches():
    """Four ranks in two pipelines have four microbatches, two each; six ranks of three have three
    each, which do not divide 32: no number does."""
    assert scenario().parts(CONFIG, Mesh((2, 2))) == 4
    assert scenario(microbatches=8).parts(CONFIG, Mesh((2, 2))) == 8
    with pytest.raises(UserError, match=r"a multiple of parallel.replicas=3 .*=32, got no such"):
        scenario().parts(CONFIG, Mesh((3, 3)))


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"methods": ("locl",)}, "--methods: got 'locl'; did you mean 'local'?"),
        ({"methods": ()}, "--methods: got none; choose from local, 1f1b, 1f1b-8bit, "),
        ({"methods": ("x",)}, "--methods: got 'x'; choose from local, 1f1b, 1f1b-8bit, "),
        ({"stages": (4, 0)}, "--stages: positive whole numbers such as 4,64, got 4,0"),
        ({"stages": ()}, "--stages: positive whole numbers such as 4,64, got none"),
        ({"stages": (64,)}, "--stages: at most data.batch_size=32 with ddp, .* got 64;"),
        ({"microbatches": 0}, "--microbatches: equal parts of data.batch_size=32, got 0"),
        ({"microbatches": 3}, "--microbatches: equal parts of data.batch_size=32, got 3"),
        ({"microbatches": 64}, "--microbatches: equal parts of data.batch_size=32, got 64"),
        ({"link": LinkOptions(None, -1.0)}, "--bandwidth: bits per second, more than 0, got -1.0"),
        (
            {"link": LinkOptions(None, float("nan"))},
            "--bandwidth: bits per second, more than 0, got nan",
        ),
        ({"link": LinkOptions(-1.0)}, "--latency: seconds, at least 0, got -1.0"),
        ({"link": LinkOptions(float("nan"))}, "--latency: seconds, at least 0, got nan"),
        ({"jitter": float("inf")}, "--jitter: seconds, at least 0, got inf"),
    ],
)
def test_wrong_options_are_refused(wrong, problem):
    scenario().check(CONFIG)
    with pytest.raises(ConfigError, match=f"^{problem.replace('?', '[?]')}"):
        scenario(**wrong).check(CONFIG)


def test_every_problem_is_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        scenario(stages=(0,), jitter=-1.0, microbatches=5).check(CONFIG)
    assert len(str(refused.value).splitlines()) == 3
