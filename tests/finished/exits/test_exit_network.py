"""The network up to an exit computes what the run's own modules compute, bit for bit."""

import pytest
import torch

from pipeline_local.configfile import configfile
from pipeline_local.errors import UserError
from pipeline_local.finished import finished
from pipeline_local.finished.exits.network import ExitNetwork, check
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.side_effects.untouched import evaluating
from pipeline_local.training.train import train


def own_outputs(run, x, exit):
    """Outputs of head `exit` as an evaluation of the run has them."""
    _, modules, _ = finished.load(run)
    for module in modules[:exit]:
        wire_format = module.rules.wire_format
        if module.index:
            x = wire_format.widen(wire_format.round_activations(x))
        with evaluating(module):
            x, outputs, _ = module.evaluate(x)
    return outputs


@pytest.mark.parametrize("exit", [1, 2, 3])
def test_an_exit_is_the_runs_own_head(exit_run, exit):
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    _, modules, _ = finished.load(exit_run)
    network = ExitNetwork(modules[:exit])
    with torch.no_grad():
        assert torch.equal(network(x), own_outputs(exit_run, x, exit))
    assert not any(layer.training for layer in network.modules())
    later = {id(p) for module in modules[exit:] for p in module.parameters()}
    assert not later & {id(p) for p in network.parameters()}


def test_rounding_and_terms_of_training(tmp_path):
    """It rounds as the run does, and has no second term of the local loss."""
    tree = {
        "model": {"name": "resnet20", "width": 4},
        "data": {"name": "digits", "batch_size": 32},
        "modules": {"count": 2},
        "information": {"name": "contrast"},
        "channels_last": True,
        "train": {"steps": 2},
        "parallel": {"threads": 1, "wire_dtype": "bfloat16"},
        "run": {"dir": str(tmp_path / "run")},
    }
    train(configfile.parse(tree), RankInfo())
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    _, modules, _ = finished.load(tmp_path / "run")
    network = ExitNetwork(modules)
    with torch.no_grad():
        found, y = network(x), modules[0].body(x)
        assert torch.equal(found, own_outputs(tmp_path / "run", x, 2))
        assert not torch.equal(found, modules[1].head(modules[1].body(y))), "it rounds"
        first = ExitNetwork(modules[:1])
        assert torch.equal(first(x), own_outputs(tmp_path / "run", x, 1))
    assert not any("information" in name for name in first.state_dict())


def test_modules_that_are_not_there():
    assert check("--exit", None, 3) == 3
    assert check("--exit", 2, 3) == 2
    for wrong in (0, 4, -1):
        with pytest.raises(UserError, match=f"--exit: must be a module from 1 to 3, got {wrong}"):
            check("--exit", wrong, 3)
