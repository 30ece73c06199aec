"""A finished run can be scored and exported on any machine that sees its folder."""

import pytest
import torch
from safetensors.torch import load_file

from pipeline_local import configfile, finished
from pipeline_local.data.images.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.trainer import train

TREE = {
    "model": {"name": "resnet20", "width": 4},
    "data": {"name": "digits", "batch_size": 32},
    "modules": {"count": 3},
    "train": {"steps": 3},
    "parallel": {"threads": 1},
}


@pytest.fixture
def run(tmp_path):
    config = configfile.parse({**TREE, "run": {"dir": str(tmp_path / "run")}})
    return tmp_path / "run", train(config, RankInfo())


def test_evaluation_repeats_the_runs_own(run):
    folder, summary = run
    shown = []
    facts = finished.evaluate(folder, lambda rows, facts, _: shown.append((rows, facts)))
    assert facts["accuracy"] == summary["accuracy"]
    assert facts["ensemble_accuracy"] == summary["ensemble_accuracy"]
    assert facts["ensemble_accuracy"][0] == facts["accuracy"][0], "the first head is alone"
    assert facts["loss"] == summary["loss"]
    assert len(shown[0][0]) == 3


def test_export_holds_the_checkpoints_weights(run, tmp_path):
    folder, _ = run
    state = finished.export(folder, tmp_path / "deep" / "model.safetensors")
    stored = load_file(tmp_path / "deep" / "model.safetensors")
    assert stored.keys() == state.keys()
    modules = [load_file(path) for path in sorted(folder.glob("checkpoints/*/*.safetensors"))]
    assert torch.equal(stored["conv1.weight"], modules[0]["body.0.conv1.weight"])
    assert torch.equal(stored["fc.bias"], modules[-1]["head.fc.bias"])


def test_an_unfinished_run_is_refused(tmp_path):
    config = configfile.parse(TREE)
    RunFolder(tmp_path).create(config, describe(config.data).to_json())
    with pytest.raises(UserError, match="no complete checkpoint"):
        finished.load(tmp_path, torch.device("cpu"))
