"""The trainer: what the ranks agree on before anything begins, and what a failure leaves."""

import pytest
import torch

from pipeline_local import configfile
from pipeline_local.errors import UserError
from pipeline_local.pipeline.place import Place
from pipeline_local.trainer import check, train


def parse(folder, **sections):
    tree = {
        "model": {"name": "resnet20", "width": 4},
        "data": {"name": "digits", "batch_size": 32},
        "modules": {"count": 4},
        "train": {"steps": 4, "log_every": 2},
        "parallel": {"threads": 1},
        "run": {"dir": str(folder)},
    }
    return configfile.parse({**tree, **sections})


def refused(place, config):
    """How this rank ends."""
    try:
        train(config, place)
    except UserError as error:
        return str(error)
    except SystemExit as error:
        return error.code
    return "trained"


def test_a_refusal_is_explained_by_the_first_rank_alone(tmp_path, run_ranks):
    (tmp_path / "run" / "old").mkdir(parents=True)
    first, *others = run_ranks(refused, 3, parse(tmp_path / "run"))
    assert "never overwritten" in first
    assert others == [2, 2]


def differing(place, folder):
    seed = {"steps": 4, "seed": place.rank}
    return refused(place, parse(folder, train=seed))


def test_ranks_with_different_configurations_do_not_train(tmp_path, run_ranks):
    first, second, third = run_ranks(differing, 3, tmp_path / "run")
    assert first == 2
    assert "differs from the first rank's" in second
    assert second == third


@pytest.mark.parametrize("stages", [1, 3])
def test_what_is_derived_is_announced_with_its_reason(tmp_path, run_ranks, capfd, stages):
    run_ranks(refused, stages, parse(tmp_path / "run"))
    shown = capfd.readouterr().out
    assert "resnet20: 0.02 M parameters in 10 blocks, 4 modules; images 1x8x8" in shown
    assert "4 steps (train.steps), 32 of 1442 samples each" in shown
    assert f"{stages} stage" in shown
    assert "1 CPU threads each (parallel.threads)" in shown
    assert shown.count("Test set, per head") == 1


def test_checkpoints_are_kept_as_asked(tmp_path):
    checkpoint = {"every_steps": 1, "keep": 2}
    train(parse(tmp_path / "run", checkpoint=checkpoint), Place())
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000004"]


def test_check_spends_nothing(tmp_path):
    before = torch.get_rng_state()
    check(parse(tmp_path / "run"), Place(0, 4, 0, 4))
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(UserError, match="5 stages for 4 modules"):
        check(parse(tmp_path / "run"), Place(0, 5, 0, 5))
