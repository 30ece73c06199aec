"""Defaults of the options of `bench baselines`; wrong ones are in test_bad_input.py."""

import pytest

from pipeline_local.bench.options import NAMES, BenchOptions
from pipeline_local.cli import main
from pipeline_local.configfile import configfile
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.ranks.mesh import Mesh, chain


def config(**more):
    tree = {
        "model": {"name": "mlp", "hidden": 16},
        "data": {"name": "digits", "batch_size": 16},
        "modules": {"count": 2},
        "train": {"steps": 1},
    }
    return configfile.parse({**tree, **more})


def test_defaults():
    request = BenchOptions.read(config(), chain(2))
    assert request.baselines == NAMES
    assert (request.microbatches, request.runs, request.steps) == ((2,), 5, 8)


def test_the_help_names_every_baseline(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "baselines", "--help"])
    assert f"whichof{','.join(NAMES)}" in "".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("every", "steps"), [(1, 8), (3, 9), (8, 8), (20, 20)])
def test_turns_are_whole_rounds_of_reconciliation(every, steps):
    own = config(reconcile={"weight": 1.0, "every": every})
    assert BenchOptions.read(own, chain(2)).steps == steps


def test_order_is_kept_and_duplicates_are_dropped():
    request = BenchOptions.read(
        config(), chain(2), baselines="local, bp,local", microbatches="4,2,4"
    )
    assert request.baselines == ("local", "bp")
    assert request.microbatches == (4, 2)


def test_microbatches_are_ignored_without_pipelines():
    assert BenchOptions.read(
        config(), chain(2), baselines="ddp", microbatches="1"
    ).microbatches == (1,)
    assert BenchOptions.read(config(), chain(2), baselines="bp", microbatches="3").microbatches == (
        3,
    )


def test_what_accumulates_needs_equal_parts_only():
    assert BenchOptions.read(
        config(), chain(2), baselines="accumulate", microbatches="1"
    ).microbatches == (1,)
    with pytest.raises(ConfigError, match=r"equal parts of data.batch_size=16, got 3"):
        BenchOptions.read(config(), chain(1), baselines="accumulate,1f1b", microbatches="3")


def test_every_stage_of_a_v_needs_a_block():
    shallow = config(model={"name": "mlp", "hidden": 16, "depth": 3})
    with pytest.raises(UserError, match=r"zbv has 2 stages .* 4 blocks are needed, got 3; .* zbv,"):
        BenchOptions.read(shallow, chain(2), baselines="1f1b,zbv,dualpipev")
    assert BenchOptions.read(shallow, chain(2), baselines="1f1b")


def test_baselines_scale_no_losses():
    half = {"precision": "float16", "engine": "deepspeed", "deepspeed": {"fp16": {"enabled": True}}}
    with pytest.raises(ConfigError, match=r"precision: .* got float16; pass precision=bfloat16"):
        BenchOptions.read(config(**half), chain(2))


def test_all_problems_at_once():
    with pytest.raises(ConfigError) as caught:
        BenchOptions.read(
            config(), chain(2), baselines="lokal,bq", microbatches="3", runs=0, steps=0
        )
    assert len(caught.value.problems) == 4  # without pipelines, their microbatches do not matter


def test_stages_must_fit_the_modules():
    with pytest.raises(UserError, match="3 stages for 2 modules"):
        BenchOptions.read(config(data={"name": "digits", "batch_size": 15}), chain(3))


@pytest.mark.parametrize(
    ("size", "options", "problem"),
    [
        (6, {"baselines": "ddp"}, r"multiple of the 4 ranks for ddp, got 6; change it or leave"),
        (10, {"baselines": "ddp"}, r"multiple of the 4 ranks for ddp, got 10"),
        (
            12,
            {"baselines": "1f1b", "microbatches": "4"},
            r"the 2 replicas' shares of data.batch_si",
        ),
        (10, {"baselines": "gpipe,accumulate"}, r"at least one per stage \(2\), .*=10, got 2"),
    ],
)
def test_replicas_get_equal_parts(size, options, problem):
    own = config(data={"name": "digits", "batch_size": size})
    with pytest.raises(ConfigError, match=problem):
        BenchOptions.read(own, Mesh((2, 2)), **options)


def test_parts_that_replicas_can_share():
    own = config(data={"name": "digits", "batch_size": 12})
    assert BenchOptions.read(own, Mesh((2, 2)), baselines="ddp,1f1b,local", microbatches="2,3")
    assert BenchOptions.read(own, Mesh((2, 2)), baselines="accumulate,local", microbatches="12")
    assert BenchOptions.read(own, Mesh((1, 2)), baselines="gpipe,ddp", microbatches="5"), (
        "no pipelines"
    )


def test_pipelines_of_one_stage_have_replicas_too():
    own = config(model={"name": "mlp", "hidden": 16, "depth": 1}, modules={"count": 1})
    with pytest.raises(ConfigError, match=r"2 replicas' shares of data.batch_size=16, got 5"):
        BenchOptions.read(own, Mesh((2,)), baselines="1f1b", microbatches="5")
